"""Pictures from prompts and seeds, by a base and whatever is attached to it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from conceptkit.attach import attach

if TYPE_CHECKING:
    from PIL import Image

    from conceptkit.base import Base

STEPS = 25


def draw(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    guidance: float | None = None,
    batch: int = 25,
) -> list[Image.Image]:
    """One picture of each prompt with the seed beside it; guidance is the base's own unless given."""
    drawn: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        drawn += base.pipe(
            list(prompts[start : start + batch]),
            num_inference_steps=steps,
            guidance_scale=base.guidance if guidance is None else guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[start : start + batch]],
        ).images
    return drawn


def draw_with(
    base: Base, concept: Any, prompt: str, seeds: Sequence[int], steps: int = STEPS, **options: Any
) -> list[Image.Image]:
    """Pictures of one prompt, one a seed, with `concept` attached meanwhile (None: the base alone).

    options: of `attach`.
    """
    with attach(base.pipe, concept, **options) if concept is not None else nullcontext():
        return draw(base, [prompt] * len(seeds), seeds, steps=steps)
