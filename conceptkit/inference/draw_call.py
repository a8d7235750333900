"""What a pipeline is called with for one drawing: sizes, a negative prompt, guidance, who follows it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conceptkit.base.distilled import few_step_notice
from conceptkit.errors import BadPrompt, BadRecipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from conceptkit.base.pipeline import Base


@dataclass(frozen=True)
class DrawCall:
    """What a drawing asks of a pipeline beside the prompt, the seeds and the number of steps; None: its own.

    true_cfg_scale: of guidance by two predictions on bases whose guidance is an input of the model.
    """

    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None


def call_options(base: Base, asked: DrawCall) -> dict[str, Any]:
    """The keyword arguments of the pipeline's call. Raises BadRecipe or BadPrompt for what it cannot take."""
    _check_sizes(base, asked)
    _check_guidance(base, asked)
    given = {
        "negative_prompt": asked.negative_prompt,
        "width": asked.width,
        "height": asked.height,
        "true_cfg_scale": asked.true_cfg_scale,
    }
    own = base.architecture.draw_options(base.pipe)
    return own | {name: value for name, value in given.items() if value is not None}


def notices(base: Base, asked: DrawCall, steps: int) -> list[str]:
    """A sentence for each thing that was asked for and has no effect, or does not suit the base."""
    guidance = asked.guidance_scale
    found = [few_step_notice(base, steps, guidance)]
    config = base.denoiser.config
    if guidance is not None and config.get("guidance_embeds") is False:
        found.append(
            f"guidance_scale = {guidance:g} has no effect on {base.name}, whose {base.architecture.label} "
            "takes no guidance; leave it out."
        )
    return [sentence for sentence in found if sentence]


def followed(pipe: DiffusionPipeline, after_step: Callable[[int], None]) -> dict[str, Any]:
    """The arguments with which a pipeline calls `after_step` with the number of each step, from 0.

    Pipelines have one of two ways to do so.
    """
    takes = _takes(pipe)
    if "callback_on_step_end" in takes:

        def at_end(_: Any, step: int, time: Any, kept: dict[str, Any]) -> dict[str, Any]:
            after_step(step)
            return kept

        return {"callback_on_step_end": at_end}
    return {"callback": lambda step, time, latents: after_step(step)} if "callback" in takes else {}


def _takes(pipe: Any) -> set[str]:
    """Names of the arguments that the pipeline's call has."""
    return set(inspect.signature(type(pipe).__call__).parameters)


def _check_sizes(base: Base, asked: DrawCall) -> None:
    cell = base.architecture.size_multiple(base.pipe)
    most = base.architecture.largest_size(base.pipe)
    for name in ("width", "height"):
        size = getattr(asked, name)
        if size is None:
            continue
        if name not in _takes(base.pipe):
            raise BadRecipe(f"{type(base.pipe).__name__} draws in one size alone; leave {name} out")
        if size % cell:
            near = [below for below in (size // cell * cell, (size // cell + 1) * cell) if below]
            raise BadRecipe(
                f"{name} = {size} is no multiple of {cell} pixels, the cell of {base.name}; "
                f"give {' or '.join(map(str, near))}"
            )
        if most is not None and size > most:
            raise BadRecipe(f"{name} = {size} is more than {base.name} knows positions for; at most {most}")


def _check_guidance(base: Base, asked: DrawCall) -> None:
    """A negative prompt is read where there is something to guide away from it."""
    takes, kind = _takes(base.pipe), type(base.pipe).__name__
    scale = asked.true_cfg_scale
    if scale is not None and "true_cfg_scale" not in takes:
        raise BadRecipe(f"true_cfg_scale = {scale:g} is no setting of {kind}; give guidance_scale instead")
    if asked.negative_prompt is None:
        if scale is not None and scale > 1:
            raise BadRecipe(
                f"true_cfg_scale = {scale:g} guides away from a negative prompt, and there is none; "
                "give one, or leave it out"
            )
        return
    if "negative_prompt" not in takes:
        raise BadPrompt(f"{kind} reads no negative prompt; leave it out")
    if "true_cfg_scale" in takes:
        if scale is None or scale <= 1:
            raise BadPrompt(
                f"{base.name} reads a negative prompt only with true_cfg_scale above 1, for example 4, "
                "which takes twice the time; give both, or leave the negative prompt out"
            )
        return
    guidance = base.family.guidance_scale if asked.guidance_scale is None else asked.guidance_scale
    if guidance <= 1 or base.denoiser.config.get("time_cond_proj_dim") is not None:
        raise BadPrompt(
            f"{base.name} does not read a negative prompt with guidance_scale = {guidance:g}; give more than "
            "1 on a base that is not distilled, or leave the negative prompt out"
        )
