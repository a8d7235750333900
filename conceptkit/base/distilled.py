"""Bases that were distilled to draw in a few steps: drawn on, but learned on the base they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conceptkit.errors import BadBase

if TYPE_CHECKING:
    from conceptkit.base.pipeline import Base

DISTILLED_FROM = {
    "sdxl-turbo": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd-turbo": "stabilityai/stable-diffusion-2-1-base",
    "stable-diffusion-3.5-large-turbo": "stabilityai/stable-diffusion-3.5-large",
    "flux.1-schnell": "black-forest-labs/FLUX.1-dev",
    "lcm_dreamshaper_v7": "Lykon/dreamshaper-7",
    "pixart-lcm-xl-2-1024-ms": "PixArt-alpha/PixArt-XL-2-1024-MS",
    "sdxs-512-dreamshaper": "Lykon/dreamshaper-7",
    "z-image-turbo": "Tongyi-MAI/Z-Image",
}
"""The end of a distilled base's name, in lower case -> the base to learn on."""
FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
MANY_STEPS = 12
FEW = "--steps 4 --guidance-scale 0"
"""What few-step bases are published with, give or take a step."""


def distilled_from(base: Base) -> str | None:
    """The base to learn on instead, where this one draws in a few steps; "" where its name is not known.

    None where it is no such base, as far as its name, its scheduler and its denoiser say.
    """
    name = base.name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower().removesuffix(".safetensors")
    if name in DISTILLED_FROM:
        return DISTILLED_FROM[name]
    config = base.denoiser.config
    if config.get("time_cond_proj_dim") is not None:  # guidance as an input of a UNet: latent consistency
        return ""
    if type(base.pipe.scheduler).__name__ in FEW_STEP_SCHEDULERS:
        return ""
    return None


def check_learnable(base: Base) -> None:
    """Raises BadBase where the base is distilled, and learning needs the one that it comes from."""
    other = distilled_from(base)
    if other is None:
        return
    learn_on = f"--base {other}" if other else "the base that it was distilled from"
    raise BadBase(
        f"{base.name} is distilled to draw in a few steps, and would lose that while it learns; learn on "
        f"{learn_on}, and draw on this one"
    )


def few_step_notice(base: Base, steps: int, guidance: float | None) -> str | None:
    """One sentence where a base that draws in a few steps is asked for many, or is guided by default."""
    if distilled_from(base) is None:
        return None
    if steps <= MANY_STEPS and guidance is not None:
        return None
    return f"{base.name} is distilled to draw in a few steps: try {FEW}, or what its model card says."
