"""Qwen-Image: Qwen2.5-VL's features of a templated prompt; latents packed two by two; a flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from conceptkit.base.architectures.architecture import Call, Condition, Segment
from conceptkit.base.architectures.flux import PackedLatents, pack, unpack
from conceptkit.base.architectures.joint import JointTransformer, first_time

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LENGTH = 1024
_ATTENTION = r"\battn\.to_(?:q|k|v|out\.0)"
_FEED_FORWARD = r"\b(?:img|txt)_mlp\.net\.(?:0\.proj|2)"


class QwenImage(PackedLatents):
    """Text site: `txt_in`, behind a norm. The system message is no part of the features."""

    site = r"^txt_in"
    lora_encoders = ()
    presets: ClassVar[Mapping[str, str]] = {
        **JointTransformer.presets,
        "kv": r"txt_in",
        "cross": r"txt_in",
        "qkv": r"\battn\.to_[qkv]",
        "attn": _ATTENTION,
        "attn+ff": rf"(?:{_ATTENTION}|{_FEED_FORWARD})",
    }

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """Between the halves of the pipeline's template."""
        before, after = pipe.prompt_template_encode.split("{}")
        skipped = pipe.prompt_template_encode_start_idx
        return (Segment(pipe.tokenizer, LENGTH, before, after, skipped, trimmed=True),)

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """As many positions as the longest prompt has, with their mask."""
        hidden, mask = pipe.encode_prompt(
            prompt=list(prompts), device=device or pipe._execution_device, max_sequence_length=LENGTH
        )
        return Condition(
            hidden, None, torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask
        )

    def halves(self, encoded: Sequence[Any]) -> tuple[Tensor | None, Tensor | None]:
        """Negative prompts are encoded in a call of their own."""
        return encoded[0], None

    def site_input(self, denoiser: nn.Module, hidden: Tensor) -> Tensor:
        """Behind `txt_norm`."""
        norm: Any = denoiser.txt_norm
        normed: Tensor = norm(hidden.to(norm.weight)).to(hidden)
        return normed

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity; times are 0 to 1."""
        assert condition.mask is not None
        n, _, h, w = noisy.shape
        guided = pipe.transformer.config.guidance_embeds
        packed: Tensor = pipe.transformer(
            hidden_states=pack(noisy),
            timestep=t / 1000,
            guidance=torch.ones(n).to(noisy) if guided else None,
            encoder_hidden_states=condition.hidden,
            encoder_hidden_states_mask=None if condition.mask.all() else condition.mask,
            img_shapes=[[(1, h // 2, w // 2)]] * n,
            return_dict=False,
        )[0]
        return unpack(packed, h, w)

    def read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Shapes are given of packed squares."""
        scale = (kwargs.get("attention_kwargs") or {}).get("scale", 1.0)
        _, h, w = kwargs["img_shapes"][0][0]
        time = first_time(kwargs["timestep"])
        return Call(kwargs["encoder_hidden_states"], (2 * h, 2 * w), float(scale), time)

    def reworded(self, arguments: dict[str, Any], encoded: Sequence[Any]) -> dict[str, Any]:
        """There is no mask where all prompts of a batch have one length."""
        return {**arguments, "encoder_hidden_states_mask": encoded[1]}

    def latents(self, pipe: DiffusionPipeline, pixels: Tensor) -> Tensor:
        """One frame of a video autoencoder, each channel normalised."""
        mean = self._frames(pipe, pixels).mode().float()[:, :, 0]
        return (mean - self._channels(pipe, "latents_mean", mean)) / self._channels(pipe, "latents_std", mean)

    def latent_deviations(self, pipe: DiffusionPipeline, pixels: Tensor) -> Tensor:
        """Of the same frame, each channel normalised."""
        deviations = self._frames(pipe, pixels).std.float()[:, :, 0]
        return deviations / self._channels(pipe, "latents_std", deviations)

    @staticmethod
    def _frames(pipe: DiffusionPipeline, pixels: Tensor) -> Any:
        return pipe.vae.encode(pixels.to(pipe.vae.device, pipe.vae.dtype).unsqueeze(2)).latent_dist

    @staticmethod
    def _channels(pipe: DiffusionPipeline, field: str, like: Tensor) -> Tensor:
        return torch.tensor(pipe.vae.config[field], device=like.device).view(1, -1, 1, 1)

    def drawn_latents(self, pipe: DiffusionPipeline, drawn: Tensor) -> Tensor:
        """They come packed."""
        side = int(pipe.default_sample_size)
        return unpack(drawn, side, side)

    def guided(self, scales: Mapping[str, float], count: int) -> dict[str, Any]:
        """By a second call, of an empty prompt; the pipeline takes none for no guidance."""
        scale = scales.get("guidance_scale", 1.0)
        empty = {"negative_prompt": [" "] * count} if scale > 1 else {}
        return {"true_cfg_scale": scale, **empty}

    def picture_size(self, pipe: DiffusionPipeline) -> int:
        """What the pipeline draws when it is not told a size."""
        return int(pipe.default_sample_size) * int(pipe.vae_scale_factor)


ARCHITECTURE = QwenImage()
