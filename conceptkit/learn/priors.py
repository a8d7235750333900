"""Prior sets: what the frozen base draws for a class noun. Made once per base and class, shared by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from conceptkit.base import Base, captions
from conceptkit.recipes import Recipe

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry

BATCH = 8


@dataclass(frozen=True, eq=False)
class PriorSet:
    """Latents (n, c, h, w) that the base drew, and the prompt of each."""

    latents: Tensor
    prompts: tuple[str, ...]

    def to_bytes(self) -> bytes:
        header = {"conceptkit": json.dumps({"prompts": self.prompts})}
        return safetensors.torch.save({"latents": self.latents.half().contiguous()}, header)

    @classmethod
    def from_bytes(cls, data: bytes) -> PriorSet:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["conceptkit"])
        return cls(safetensors.torch.load(data)["latents"].float(), tuple(header["prompts"]))


def prompts_for(noun: str, base_name: str, count: int) -> tuple[str, ...]:
    """Captions that name the class: from the base's own as far as they reach, else "photo of a NOUN"."""
    told = [
        text
        for text in captions(base_name)
        if noun in text.split() and text.split().count("a") + text.split().count("an") < 3
    ]
    half = told[: count // 2]
    return (*half, *([f"photo of a {noun}"] * (count - len(half))))


def of_class(
    base: Base, noun: str, recipe: Recipe, registry: Registry | None, tick: Callable[[int, int], None]
) -> PriorSet:
    """The class's prior set, from the registry or drawn now; `tick(done, total)` follows the drawing."""
    prompts = prompts_for(noun, base.name, recipe.prior_size)
    told = json.dumps([prompts, recipe.prior_steps, recipe.prior_guidance])
    key = f"prior/{base.fingerprint.exact}/{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    stored = registry.get_asset(key) if registry else None
    if stored is None:
        stored = PriorSet(_draw(base, prompts, recipe, tick), prompts).to_bytes()
        if registry:
            registry.put_asset(key, stored)
    return PriorSet.from_bytes(stored)


def _draw(base: Base, prompts: tuple[str, ...], recipe: Recipe, tick: Callable[[int, int], None]) -> Tensor:
    drawn = []
    for start in range(0, len(prompts), BATCH):
        chunk = list(prompts[start : start + BATCH])
        seeds = [int(np.random.default_rng((7, start + k)).integers(2**31)) for k in range(len(chunk))]
        result = base.pipe(
            chunk,
            num_inference_steps=recipe.prior_steps,
            guidance_scale=recipe.prior_guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="latent",
        )
        drawn.append(result.images.float().cpu())
        tick(min(start + BATCH, len(prompts)), len(prompts))
    return torch.cat(drawn)
