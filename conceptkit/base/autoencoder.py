"""Pictures to latents and back, in the precision and on the device that a pipeline's autoencoder needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from conceptkit.base.architectures import architecture_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin


@torch.no_grad()
def latents_of(pipe: DiffusionPipeline, pixels: Tensor) -> Tensor:
    """Latents (n, c, h, w) float32 of pictures (n, 3, H, W) in [0, 1], as the denoiser reads them."""
    with upcast(pipe.vae):
        return architecture_of(pipe).latents(pipe, pixels * 2 - 1)


@torch.no_grad()
def pixels_of(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Pictures (n, 3, H, W) float32 in [0, 1] of such latents."""
    with upcast(pipe.vae):
        return architecture_of(pipe).pixels(pipe, latents)


@contextmanager
def upcast(vae: ModelMixin | None) -> Iterator[None]:
    """An autoencoder whose numbers are too large for float16, as SDXL's, is in float32 meanwhile."""
    if vae is None or vae.dtype != torch.float16 or not vae.config.get("force_upcast", False):
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(torch.float16)
