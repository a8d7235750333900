"""What transformers with joint attention share: text enters by one map, and is rewritten in every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from conceptkit.base.architectures.architecture import Architecture, Call

_ATTENTION = r"\battn\.(?:to_(?:q|k|v|out\.0)|add_[qkv]_proj|to_add_out)"
_FEED_FORWARD = r"\bff(?:_context)?\.net\.(?:0\.proj|2)"


class JointTransformer(Architecture):
    """Text site: the entry map. A LoRA learns on attention, which reads picture and text together."""

    denoiser = "transformer"
    label = "transformer"
    site = r"^context_embedder"
    presets: ClassVar[Mapping[str, str]] = {
        "kv": r"context_embedder",
        "cross": r"context_embedder",
        "qkv": r"\battn\.(?:to_[qkv]|add_[qkv]_proj)",
        "attn": _ATTENTION,
        "attn+ff": rf"(?:{_ATTENTION}|{_FEED_FORWARD})",
        "linear": r"",
    }
    has_cross_attention = False
    key_ending = ""

    def read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Pipelines name all arguments; latents are (B, c, h, w)."""
        sample = args[0] if args else kwargs["hidden_states"]
        beside = kwargs.get("joint_attention_kwargs") or kwargs.get("attention_kwargs") or {}
        return Call(
            kwargs["encoder_hidden_states"], tuple(sample.shape[-2:]), float(beside.get("scale", 1.0))
        )


def first_time(time: Tensor) -> float:
    """Of a batch of equal times (B,)."""
    return float(time.flatten()[0])
