"""AuraFlow: Pile-T5's features, zeros behind the text, and tokens of its own before them; a flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from conceptkit.base.architectures.architecture import Condition, Segment
from conceptkit.base.architectures.joint import JointTransformer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LENGTH = 256
_FEED_FORWARD = r"\bff(?:_context)?\.(?:linear_[12]|out_projection)"


class AuraFlow(JointTransformer):
    """Positions behind the text are zeros, which the entry map, without a bias, leaves as they are."""

    lora_encoders = ()
    presets: ClassVar[Mapping[str, str]] = {
        **JointTransformer.presets,
        "attn+ff": rf"(?:{JointTransformer.presets['attn']}|{_FEED_FORWARD})",
    }

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """The only tokenizer's."""
        return (Segment(pipe.tokenizer, LENGTH, masked=True),)

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """The mask is in the features."""
        hidden = pipe.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=device or pipe._execution_device
        )[0]
        return Condition(hidden)

    def halves(self, encoded: Sequence[Any]) -> tuple[Tensor | None, Tensor | None]:
        """Masks stand between them."""
        return encoded[0], encoded[2]

    def in_calls(self, encoded: Sequence[Any]) -> Sequence[Any]:
        """The features alone."""
        return encoded[::2]

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity; times are 0 to 1."""
        prediction: Tensor = pipe.transformer(
            noisy, encoder_hidden_states=condition.hidden, timestep=t / 1000, return_dict=False
        )[0]
        return prediction

    def draw_options(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """The size, which the pipeline takes for 1024 whatever its model was made for."""
        side = self.picture_size(pipe)
        return {"height": side, "width": side}


ARCHITECTURE = AuraFlow()
