"""UNets with cross-attention: Stable Diffusion 1 and 2, SDXL; Kolors and DeepFloyd IF behind a projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from conceptkit.base.architectures.architecture import Architecture, Condition, Segment
from conceptkit.errors import BadBase

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

KOLORS_LENGTH, IF_LENGTH = 256, 77
"""Positions that `encode_prompt` of either pipeline reads."""
_ADDED = r"\battentions\.\d+\."


class UNet(Architecture):
    """The class of denoiser that several families have in common."""

    def of(self, denoiser: nn.Module) -> Architecture:
        """By where text enters. Raises BadBase for a UNet that enlarges pictures."""
        config: Any = getattr(getattr(denoiser, "_orig_mod", denoiser), "config", {})
        if config.get("encoder_hid_dim_type") != "text_proj":
            return self
        if config.get("addition_embed_type") != "text":
            return KOLORS
        if config.get("class_embed_type") is not None:
            raise BadBase(
                "This UNet of DeepFloyd IF enlarges pictures; use the pipeline of stage I, IFPipeline"
            )
        return IF


class Projected(UNet):
    """Text features of a language model behind `encoder_hid_proj`, which is linear."""

    lora_encoders = ()

    def site_input(self, denoiser: nn.Module, hidden: Tensor) -> Tensor:
        """Behind the projection."""
        project: Any = denoiser.encoder_hid_proj
        projected: Tensor = project(hidden.to(project.weight)).to(hidden)
        return projected


class Kolors(Projected):
    """SDXL's UNet; ChatGLM fills prompts up at their beginning, and what fills up reads all of them."""

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """The only tokenizer's."""
        return (Segment(pipe.tokenizer, KOLORS_LENGTH, left=True),)


class DeepFloydIF(Projected):
    """Stage I: pixels are its latents; text has key and value maps beside those of self-attention."""

    site = r"\battentions\.\d+\.add_[kv]_proj"
    has_cross_attention = False
    key_ending = "add_k_proj"
    lower_case = True
    latent_output = "pt"
    presets: ClassVar[Mapping[str, str]] = {
        "kv": rf"{_ADDED}add_[kv]_proj",
        "cross": rf"{_ADDED}(?:to_q|to_out\.0|add_[kv]_proj)",
        "qkv": rf"{_ADDED}(?:to_[qkv]|add_[kv]_proj)",
        "attn": rf"{_ADDED}(?:to_[qkv]|to_out\.0|add_[kv]_proj)",
        "attn+ff": rf"{_ADDED}(?:to_[qkv]|to_out\.0|add_[kv]_proj)",
        "linear": r"",
    }

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """T5's; its padding is read."""
        return (Segment(pipe.tokenizer, IF_LENGTH),)

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """T5's features; the pipeline's own `encode_prompt` forbids gradients, by which words learn."""
        read: Any = pipe.encode_prompt
        if torch.is_grad_enabled():
            read = partial(type(pipe).encode_prompt.__wrapped__, pipe)
        hidden, _ = read(
            list(prompts), do_classifier_free_guidance=False, device=device or pipe._execution_device
        )
        return Condition(hidden)

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noise; the variance in the other channels learns nothing here."""
        prediction: Tensor = pipe.unet(noisy, t, condition.hidden).sample
        return prediction[:, : noisy.shape[1]]

    def cell(self, pipe: DiffusionPipeline) -> int:
        """A pixel."""
        return 1

    def latents(self, pipe: DiffusionPipeline, pixels: Tensor) -> Tensor:
        """The pictures themselves."""
        return pixels.float().to(pipe.unet.device)

    def latent_deviations(self, pipe: DiffusionPipeline, pixels: Tensor) -> Tensor:
        """None."""
        return torch.zeros_like(self.latents(pipe, pixels))

    def draw_options(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """Captions as they are given: cleaning eats tokens."""
        return {"clean_caption": False}


ARCHITECTURE, KOLORS, IF = UNet(), Kolors(), DeepFloydIF()
