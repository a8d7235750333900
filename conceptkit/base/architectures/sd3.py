"""Stable Diffusion 3 and 3.5: two CLIP encoders beside one another, then T5; a flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conceptkit.base.architectures.architecture import Condition, Segment
from conceptkit.base.architectures.joint import JointTransformer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

T5_LENGTH = 256
"""What `encode_prompt` of diffusers' pipeline reads unless told otherwise."""
T5_WIDTH = 4096
"""Of the features of every Stable Diffusion 3; a smaller base was never trained with T5."""


def t5_positions(pipe: DiffusionPipeline) -> int:
    """Rows for T5: zeros stand in them where it is left out, and none do on a base that never had it."""
    never = pipe.text_encoder_3 is None and pipe.transformer.config.joint_attention_dim < T5_WIDTH
    return 0 if never else T5_LENGTH


class StableDiffusion3(JointTransformer):
    """Features are CLIP's positions, filled up with zeros to T5's width, then T5's; CLIP's are pooled too."""

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """CLIP's, whose two tokenizers agree, and T5's; without T5 the pipeline puts zeros there."""
        without = pipe.text_encoder_3 is None
        return (
            Segment(pipe.tokenizer, pipe.tokenizer_max_length),
            Segment(None if without else pipe.tokenizer_3, t5_positions(pipe)),
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
            max_sequence_length=t5_positions(pipe),
        )
        return Condition(hidden, pooled)

    def draw_options(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """As many rows for T5 as are learned with."""
        return {} if t5_positions(pipe) == T5_LENGTH else {"max_sequence_length": t5_positions(pipe)}

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
