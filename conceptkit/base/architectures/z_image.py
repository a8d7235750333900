"""Z-Image: Qwen 3's features of a chat, as a list of prompts of any length; a flow whose sign is turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from conceptkit.base.architectures.architecture import Batch, Call, Condition, Segment
from conceptkit.base.architectures.joint import JointTransformer
from conceptkit.base.architectures.language_model import chat_template

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LENGTH = 512
MULTIPLE = 32
"""Prompts are filled up to so many positions with their last one."""
SIZE = 1024
_ATTENTION = r"\battention\.to_(?:q|k|v|out\.0)"


class ZImage(JointTransformer):
    """Text site: `cap_embedder`, a norm and a map, in front of blocks that read text alone."""

    site = r"^cap_embedder\.1"
    lora_encoders = ()
    presets: ClassVar[Mapping[str, str]] = {
        "kv": r"cap_embedder\.1",
        "cross": r"cap_embedder\.1",
        "qkv": r"\battention\.to_[qkv]",
        "attn": _ATTENTION,
        "attn+ff": rf"(?:{_ATTENTION}|\bfeed_forward\.w[123])",
        "linear": r"",
    }

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """Between the halves of the chat template."""
        before, after = chat_template(pipe.tokenizer, enable_thinking=True)
        return (Segment(pipe.tokenizer, LENGTH, before, after, trimmed=True),)

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """Features filled up with zeros, and where they are none."""
        rows, _ = pipe.encode_prompt(
            list(prompts), device or pipe._execution_device, do_classifier_free_guidance=False
        )
        hidden = pad_sequence(rows, batch_first=True)
        ends = torch.tensor([len(row) for row in rows], device=hidden.device).unsqueeze(1)
        return Condition(hidden, None, torch.arange(hidden.shape[1], device=hidden.device) < ends)

    def site_input(self, denoiser: nn.Module, hidden: Tensor) -> Tensor:
        """Behind the norm."""
        model: Any = denoiser
        norm = model.cap_embedder[0]
        normed: Tensor = norm(hidden.to(norm.weight)).to(hidden)
        return normed

    def at_site(self, values: Tensor, present: Tensor) -> Tensor:
        """The prompts one after the other, each filled up with its last position."""
        found = []
        for row, there in zip(values, present, strict=True):
            own = row[there]
            found += [own, own[-1:].expand(-len(own) % MULTIPLE, -1)]
        return torch.cat(found)

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity; times are 0, all noise, to 1, and the model predicts the way back."""
        assert condition.mask is not None
        rows = [row[there] for row, there in zip(condition.hidden, condition.mask.bool(), strict=True)]
        found = pipe.transformer(
            list(noisy.unsqueeze(2).unbind(0)), (1000 - t) / 1000, rows, return_dict=False
        )[0]
        return -torch.stack(list(found)).squeeze(2)

    def read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Lists of pictures (c, 1, h, w) and of prompts (T, d), both halves of guidance in one."""
        scale = (kwargs.get("joint_attention_kwargs") or {}).get("scale", 1.0)
        return Call(args[2], tuple(args[0][0].shape[-2:]), float(scale))

    def unpacked(self, latents: Batch, size: tuple[int, int]) -> Tensor:
        """Pictures are a list of single frames."""
        return torch.stack(list(latents)).squeeze(2)

    def packed(self, cells: Tensor) -> list[Tensor]:
        """Picture by picture."""
        return list(cells.unsqueeze(2).unbind(0))

    def picture_size(self, pipe: DiffusionPipeline) -> int:
        """What the pipeline draws when it is not told a size."""
        return int(getattr(pipe, "default_sample_size", SIZE // 8)) * int(pipe.vae_scale_factor)

    def draw_options(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """The size."""
        side = self.picture_size(pipe)
        return {"height": side, "width": side}


ARCHITECTURE = ZImage()
