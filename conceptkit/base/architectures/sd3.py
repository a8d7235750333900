"""Stable Diffusion 3 and 3.5: two CLIP encoders beside one another, then T5; a flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from conceptkit.base.architectures.architecture import Condition, Segment
from conceptkit.base.architectures.joint import JointTransformer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

T5_LENGTH = 256
"""What `encode_prompt` of diffusers' pipeline reads unless told otherwise."""


class StableDiffusion3(JointTransformer):
    """Features are CLIP's positions, filled up with zeros to T5's width, then T5's; CLIP's are pooled too."""

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """CLIP's, whose two tokenizers agree, and T5's; without T5 the pipeline puts zeros there."""
        without = pipe.text_encoder_3 is None
        return (
            Segment(pipe.tokenizer, pipe.tokenizer_max_length),
            Segment(None if without else pipe.tokenizer_3, T5_LENGTH),
        )

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """The same prompt for all encoders."""
        hidden, _, pooled, _ = pipe.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=device or pipe._execution_device,
            do_classifier_free_guidance=False,
        )
        return Condition(hidden, pooled)

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity; times are 0 to 1000."""
        prediction: Tensor = pipe.transformer(
            hidden_states=noisy,
            timestep=t,
            encoder_hidden_states=condition.hidden,
            pooled_projections=condition.pooled,
            return_dict=False,
        )[0]
        return prediction


ARCHITECTURE = StableDiffusion3()
