"""Pictures from prompts and seeds, by a base and whatever is attached to it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from conceptkit.errors import BadBase, ConceptError
from conceptkit.inference.attach import attach

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

    from conceptkit.base.pipeline import Base
    from conceptkit.concepts.concept import Concept
    from conceptkit.merging.compose import Merge


STEPS = 25


@contextmanager
def guided(
    base: Base, guidance: float | None = None, pag: float | None = None
) -> Iterator[tuple[Any, dict[str, float]]]:
    """A pipeline to draw with and its scales, to be called with; what is attached to the base is on it.

    guidance: scale g of classifier-free guidance (2207.12598). pag: scale s of perturbed-attention guidance
    (2403.17377), away from p, what the UNet predicts of the prompt when each place attends to itself alone:
    u + g (c - u) + s (c - p), with c of the prompt and u without. Things hold together better, for half as
    much time again. Either is the base's own unless given.

    Whoever draws from several threads holds a lock, as the UNet's attention is exchanged meanwhile. Raises
    BadBase where diffusers has no such pipeline, ConceptError with a concept that looks at its photo.
    """
    guidance = base.family.guidance_scale if guidance is None else guidance
    looking = _looks_at_a_photo(base.pipe)
    if pag and looking:
        raise ConceptError(
            f"{looking} looks at its reference photo, which perturbed-attention guidance cannot do; draw it "
            "with a scale of 0"
        )
    pag = (0.0 if looking else base.family.pag_scale) if pag is None else pag
    if not pag:
        yield base.pipe, {"guidance_scale": guidance}
        return
    pipe = _with_pag(base)
    before = base.pipe.unet.attn_processors
    try:
        yield pipe, {"guidance_scale": guidance, "pag_scale": pag}
    finally:  # also after Ctrl-C, where diffusers would leave its own
        base.pipe.unet.set_attn_processor(before)


def _looks_at_a_photo(pipe: DiffusionPipeline) -> str | None:
    """The name of an attached concept that looks at its reference photo."""
    attachment: Any = getattr(pipe.encode_prompt, "attachment", None)
    looking = attachment is not None and attachment.attached and attachment.concept.reference is not None
    return str(attachment.concept.name) if looking else None


def _with_pag(base: Base) -> Any:
    """The same parts in diffusers' pipeline of that guidance, with what is attached to the first."""
    from diffusers import AutoPipelineForText2Image

    try:
        pipe = AutoPipelineForText2Image.from_pipe(
            base.pipe, enable_pag=True, pag_applied_layers=list(base.family.pag_layers)
        )
    except ValueError as error:
        raise BadBase(
            f"diffusers has no perturbed-attention guidance for a {type(base.pipe).__name__}; leave it out"
        ) from error
    pipe.set_progress_bar_config(**getattr(base.pipe, "_progress_bar_config", {}))
    # what is attached stands in the place of methods, on the pipeline itself
    methods = {name for name, _ in inspect.getmembers(type(base.pipe), inspect.isroutine)}
    vars(pipe).update({name: value for name, value in vars(base.pipe).items() if name in methods})
    attachment: Any = getattr(base.pipe.encode_prompt, "attachment", None)
    if attachment is not None and attachment.attached:
        attachment.goes_with(pipe)
    return pipe


def draw(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    guidance: float | None = None,
    pag: float | None = None,
    batch: int = 25,
) -> list[Image.Image]:
    """One picture of each prompt with the seed beside it; guidance and pag as for `guided`."""
    drawn: list[Image.Image] = []
    more = base.architecture.draw_options(base.pipe)
    with guided(base, guidance, pag) as (pipe, scales):
        for start in range(0, len(prompts), batch):
            dice = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[start : start + batch]]
            told = list(prompts[start : start + batch])
            asked = base.architecture.guided(scales, len(told)) | more
            drawn += pipe(prompt=told, num_inference_steps=steps, generator=dice, **asked).images
    return drawn


def draw_with(
    base: Base,
    concept: str | Concept | Merge | None,
    prompt: str,
    seeds: Sequence[int],
    steps: int = STEPS,
    pag: float | None = None,
    **options: Any,
) -> list[Image.Image]:
    """Pictures of one prompt, one a seed, with `concept` attached meanwhile (None: the base alone).

    options: of `attach`.
    """
    with attach(base.pipe, concept, **options) if concept is not None else nullcontext():
        return draw(base, [prompt] * len(seeds), seeds, steps=steps, pag=pag)
