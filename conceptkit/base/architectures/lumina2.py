"""Lumina Image 2: Gemma 2 behind an instruction; a flow whose time and sign are turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from conceptkit.base.architectures.architecture import Call, Condition, Segment
from conceptkit.base.architectures.joint import JointTransformer, first_time

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LENGTH = 256
_ATTENTION = r"\battn\.to_(?:q|k|v|out\.0)"


class Lumina2(JointTransformer):
    """Text site: `caption_embedder`, a norm and a map, in front of blocks that read text alone."""

    site = r"^time_caption_embed\.caption_embedder\.1"
    lora_encoders = ()
    presets: ClassVar[Mapping[str, str]] = {
        "kv": r"caption_embedder\.1",
        "cross": r"caption_embedder\.1",
        "qkv": r"\battn\.to_[qkv]",
        "attn": _ATTENTION,
        "attn+ff": rf"(?:{_ATTENTION}|\bfeed_forward\.linear_[123])",
        "linear": r"",
    }

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """Behind the pipeline's instruction."""
        return (Segment(pipe.tokenizer, LENGTH, f"{pipe.system_prompt} <Prompt Start> ", masked=True),)

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """The last but one layer's features, with their mask."""
        hidden, mask, _, _ = pipe.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=device or pipe._execution_device
        )
        return Condition(hidden, None, mask)

    def halves(self, encoded: Sequence[Any]) -> tuple[Tensor | None, Tensor | None]:
        """Masks stand between them."""
        return encoded[0], encoded[2]

    def site_input(self, denoiser: nn.Module, hidden: Tensor) -> Tensor:
        """Behind the norm."""
        model: Any = denoiser
        norm = model.time_caption_embed.caption_embedder[0]
        normed: Tensor = norm(hidden.to(norm.weight)).to(hidden)
        return normed

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity; times are 0, all noise, to 1, and the model predicts the way back."""
        prediction: Tensor = pipe.transformer(
            hidden_states=noisy,
            timestep=1 - t / pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=condition.hidden,
            encoder_attention_mask=condition.mask,
            return_dict=False,
        )[0]
        return -prediction

    def read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Each half of guidance has a call."""
        call = super().read_call(args, kwargs)
        return Call(call.hidden, call.size, call.scale, first_time(kwargs["timestep"]))


ARCHITECTURE = Lumina2()
