"""FLUX.1: features of T5, pooled ones of CLIP; latents packed two by two; a flow told its guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conceptkit.base.architectures.architecture import Batch, Call, Condition, Segment
from conceptkit.base.architectures.joint import JointTransformer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

T5_LENGTH = 512
GUIDANCE = 1.0
"""What a base that takes guidance as an input is told while it learns (README_flux.md of diffusers)."""


class PackedLatents(JointTransformer):
    """Squares of 2 x 2 cells are one position of what the denoiser reads."""

    def unpacked(self, latents: Batch, size: tuple[int, int]) -> Tensor:
        """By the size of the picture."""
        assert isinstance(latents, Tensor)
        return unpack(latents, *size)

    def packed(self, cells: Tensor) -> Tensor:
        """Square by square."""
        return pack(cells)

    def given_noise(self, noise: Tensor) -> Tensor:
        """It is given packed."""
        return pack(noise)


class Flux(PackedLatents):
    """A LoRA learns on attention of both kinds of blocks, with `attn+ff` on feed-forward maps too.

    Single blocks have none beside their attention: `proj_mlp` and `proj_out` stay, as in diffusers' scripts.
    """

    sets_sigmas = True

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """T5's alone."""
        return (Segment(pipe.tokenizer_2, T5_LENGTH),)

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """The same prompt for both encoders."""
        hidden, pooled, _ = pipe.encode_prompt(
            prompt=list(prompts), prompt_2=None, device=device or pipe._execution_device
        )
        return Condition(hidden, pooled)

    def halves(self, encoded: Sequence[Any]) -> tuple[Tensor | None, Tensor | None]:
        """Negative prompts are encoded in a call of their own."""
        return encoded[0], None

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity; times are 0 to 1."""
        n, _, h, w = noisy.shape
        guided = pipe.transformer.config.guidance_embeds
        packed: Tensor = pipe.transformer(
            hidden_states=pack(noisy),
            timestep=t / 1000,
            guidance=torch.full((n,), GUIDANCE).to(noisy) if guided else None,
            pooled_projections=condition.pooled,
            encoder_hidden_states=condition.hidden,
            txt_ids=torch.zeros(condition.hidden.shape[1], 3).to(noisy),
            img_ids=places(h // 2, w // 2).to(noisy),
            return_dict=False,
        )[0]
        return unpack(packed, h, w)

    def read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """The size is the last place of the picture."""
        scale = (kwargs.get("joint_attention_kwargs") or {}).get("scale", 1.0)
        h, w = (int(last) + 1 for last in kwargs["img_ids"][-1, 1:].tolist())
        return Call(kwargs["encoder_hidden_states"], (2 * h, 2 * w), float(scale))

    def drawn_latents(self, pipe: DiffusionPipeline, drawn: Tensor) -> Tensor:
        """They come packed."""
        side = int(pipe.default_sample_size)
        return unpack(drawn, side, side)

    def picture_size(self, pipe: DiffusionPipeline) -> int:
        """What the pipeline draws when it is not told a size."""
        return int(pipe.default_sample_size) * int(pipe.vae_scale_factor)

    def size_multiple(self, pipe: DiffusionPipeline) -> int:
        """Two cells, which are packed into one."""
        return 2 * int(pipe.vae_scale_factor)


def pack(latents: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h w / 4, 4 c): squares of 2 x 2 cells, row by row."""
    n, c, h, w = latents.shape
    squares = latents.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(n, h * w // 4, 4 * c)


def unpack(packed: Tensor, h: int, w: int) -> Tensor:
    """The way back: (n, h w / 4, 4 c) -> (n, c, h, w)."""
    n, _, depth = packed.shape
    squares = packed.reshape(n, h // 2, w // 2, depth // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(n, depth // 4, h, w)


def places(h: int, w: int) -> Tensor:
    """(h w, 3): 0, row and column of each packed square."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=2).reshape(h * w, 3)


ARCHITECTURE = Flux()
