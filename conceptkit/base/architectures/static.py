"""Transformers whose cross-attention reads a static projection of text features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from conceptkit.base.architectures.architecture import Architecture, Call, Condition, Segment

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_ATTENTION = r"\btransformer_blocks\.\d+\.attn[12]\.to_(?:q|k|v|out\.0)"
LENGTH = 300
"""Positions that `encode_prompt` reads unless told otherwise."""


class StaticCrossAttention(Architecture):
    """Text site: keys and values of `attn2`, behind the projection; a mask says which positions are read."""

    denoiser = "transformer"
    lower_case = True
    lora_encoders = ()
    label = "transformer"
    presets: ClassVar[Mapping[str, str]] = {
        **Architecture.presets,
        "qkv": r"\btransformer_blocks\.\d+\.attn[12]\.to_[qkv]",
        "attn": _ATTENTION,
        "attn+ff": rf"(?:{_ATTENTION}|\bff\.(?:net\.(?:0\.proj|2)|conv_(?:inverted|point)))",
    }

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """The only tokenizer's."""
        return (Segment(pipe.tokenizer, LENGTH, masked=True),)

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """Features of T5 or Gemma before the projection, with their mask."""
        hidden, mask, _, _ = pipe.encode_prompt(
            prompt=list(prompts),
            do_classifier_free_guidance=False,
            device=device or pipe._execution_device,
            max_sequence_length=LENGTH,
        )
        return Condition(hidden, None, mask)

    def halves(self, encoded: Sequence[Any]) -> tuple[Tensor | None, Tensor | None]:
        """Masks stand between them."""
        return encoded[0], encoded[2]

    def read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Pipelines give latents (B, c, h, w) first, and name the rest."""
        sample = args[0] if args else kwargs["hidden_states"]
        scale = (kwargs.get("attention_kwargs") or {}).get("scale", 1.0)
        return Call(kwargs["encoder_hidden_states"], tuple(sample.shape[-2:]), float(scale))

    def draw_options(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """Sizes and captions as they are given: no bins of known sizes, no cleaning, which eats tokens."""
        return {"use_resolution_binning": False, "clean_caption": False}
