"""Chroma: FLUX.1 without CLIP and without guidance as an input; T5's features with a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conceptkit.base.architectures.architecture import Call, Condition, Segment
from conceptkit.base.architectures.flux import T5_LENGTH, Flux, pack, places, unpack
from conceptkit.base.architectures.joint import first_time

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Chroma(Flux):
    """The first position behind the text is read, the rest of the padding is not."""

    lora_encoders = ()

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """T5's."""
        return (Segment(pipe.tokenizer, T5_LENGTH, masked=True),)

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """Features with their mask."""
        hidden, _, mask, *_ = pipe.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=device or pipe._execution_device
        )
        return Condition(hidden, None, mask)

    def halves(self, encoded: Sequence[Any]) -> tuple[Tensor | None, Tensor | None]:
        """Ids and masks stand between them."""
        return encoded[0], encoded[3]

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity; times are 0 to 1."""
        assert condition.mask is not None
        n, _, h, w = noisy.shape
        cells = torch.ones(n, h * w // 4).to(condition.mask)
        packed: Tensor = pipe.transformer(
            hidden_states=pack(noisy),
            timestep=t / 1000,
            encoder_hidden_states=condition.hidden,
            txt_ids=torch.zeros(condition.hidden.shape[1], 3).to(noisy),
            img_ids=places(h // 2, w // 2).to(noisy),
            attention_mask=torch.cat([condition.mask, cells], dim=1),
            return_dict=False,
        )[0]
        return unpack(packed, h, w)

    def read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Each half of guidance has a call."""
        call = super().read_call(args, kwargs)
        return Call(call.hidden, call.size, call.scale, first_time(kwargs["timestep"]))


ARCHITECTURE = Chroma()
