"""Schedulers that a picture can be drawn with, by the names that people call them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conceptkit.errors import BadRecipe
from conceptkit.registry.names import choose

if TYPE_CHECKING:
    from conceptkit.base.pipeline import Base


@dataclass(frozen=True)
class SchedulerRow:
    """A class of diffusers, and what it is configured with beside what the base's own scheduler says.

    flow: whether it is for bases that predict a flow; others are for those that predict noise or velocity.
    """

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    flow: bool = False


# The latents of a base have no bounds; a class whose default is to clip them is told not to.
_UNCLIPPED = {"clip_sample": False, "thresholding": False}
SCHEDULERS: dict[str, SchedulerRow] = {
    "ddim": SchedulerRow("DDIMScheduler", _UNCLIPPED),
    "ddpm": SchedulerRow("DDPMScheduler", _UNCLIPPED),
    "pndm": SchedulerRow("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": SchedulerRow("EulerDiscreteScheduler"),
    "euler_a": SchedulerRow("EulerAncestralDiscreteScheduler"),
    "heun": SchedulerRow("HeunDiscreteScheduler"),
    "dpmsolver++": SchedulerRow("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsolver++karras": SchedulerRow(
        "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}
    ),
    "unipc": SchedulerRow("UniPCMultistepScheduler"),
    "lcm": SchedulerRow("LCMScheduler", _UNCLIPPED),
    "tcd": SchedulerRow("TCDScheduler", _UNCLIPPED),
    "flow_euler": SchedulerRow("FlowMatchEulerDiscreteScheduler", flow=True),
    "flow_heun": SchedulerRow("FlowMatchHeunDiscreteScheduler", flow=True),
    "flow_dpmsolver++": SchedulerRow(
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
        flow=True,
    ),
}


def check_scheduler(name: str) -> None:
    """Raises BadRecipe for a name that is not in the table."""
    if name not in SCHEDULERS:
        raise BadRecipe(f"There is no scheduler {name!r}; {choose(name, SCHEDULERS)}")


@contextmanager
def scheduled(base: Base, name: str | None, steps: int) -> Iterator[None]:
    """The base draws with the scheduler of that name meanwhile, and with its own afterwards; None: its own.

    steps: how many will be drawn. Raises BadRecipe where the base cannot be drawn with it.
    """
    before = base.pipe.scheduler
    chosen = before if name is None else _made(base, name)
    _check_steps(base.name, chosen, steps)
    base.pipe.scheduler = chosen
    try:
        yield
    finally:
        base.pipe.scheduler = before


def is_flow(scheduler: object) -> bool:
    """Whether a scheduler is of a base that predicts a flow."""
    config = getattr(scheduler, "config", {})
    return type(scheduler).__name__.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))


def _made(base: Base, name: str) -> Any:
    """The scheduler of that name with the noise levels of the base. Raises BadRecipe."""
    import diffusers

    check_scheduler(name)
    row, own = SCHEDULERS[name], base.pipe.scheduler
    if row.flow != is_flow(own):
        what = "a flow" if is_flow(own) else "no flow"
        suited = ", ".join(other for other, one in SCHEDULERS.items() if one.flow != row.flow)
        raise BadRecipe(f"{base.name} predicts {what}, which {name} is not for; choose one of {suited}")
    kind = getattr(diffusers, row.class_name)
    made = kind.from_config(own.config, **{**row.config, **_shift(own, kind)})
    if not _takes(made, *_told(base)):
        same = [other for other in SCHEDULERS if SCHEDULERS[other].class_name == type(own).__name__]
        raise BadRecipe(
            f"{type(base.pipe).__name__} says its noise levels itself, which {name} does not take; "
            f"choose {' or '.join(same) or 'another'}, or leave it out"
        )
    return made


def _shift(own: Any, kind: type) -> dict[str, Any]:
    """How far a flow shifts its noise levels, under the name that another class has for it."""
    shift = own.config.get("shift", own.config.get("flow_shift"))
    names = set(inspect.signature(kind).parameters) & {"shift", "flow_shift"}
    return dict.fromkeys(names, shift) if shift is not None else {}


def _told(base: Base) -> list[str]:
    """What the pipeline tells its scheduler beside the number of steps."""
    sigmas = ["sigmas"] if base.architecture.sets_sigmas else []
    return sigmas + (["mu"] if base.pipe.scheduler.config.get("use_dynamic_shifting") else [])


def _takes(scheduler: Any, *names: str) -> bool:
    return set(names) <= set(inspect.signature(scheduler.set_timesteps).parameters)


def _check_steps(base: str, scheduler: Any, steps: int) -> None:
    """Raises BadRecipe where there are fewer noise levels than steps."""
    levels = scheduler.config.get("num_train_timesteps")
    if levels and steps > levels:
        raise BadRecipe(
            f"{base} has {levels} noise levels, so {steps} steps make no sense; give at most {levels}"
        )
    distilled = scheduler.config.get("original_inference_steps")
    if distilled and steps > distilled:
        raise BadRecipe(
            f"{type(scheduler).__name__} draws in a few of {distilled} steps, so {steps} make no sense; "
            f"give 4 to 8, and at most {distilled}"
        )
