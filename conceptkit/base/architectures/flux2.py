"""FLUX.2: three layers of Mistral 3, or of Qwen 3 (klein), beside one another; latents of patches; a flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from conceptkit.base.architectures.architecture import Call, Condition, Segment
from conceptkit.base.architectures.flux import PackedLatents
from conceptkit.base.architectures.joint import JointTransformer, first_time
from conceptkit.base.architectures.language_model import chat_template

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LENGTH = 512
GUIDANCE = 1.0
"""What a base that takes guidance as an input is told while it learns (README_flux2.md of diffusers)."""
_SINGLE = r"\bsingle_transformer_blocks\.\d+\.attn\.to_(?:qkv_mlp_proj|out)"


class Flux2(PackedLatents):
    """Nothing is masked: padding is read as it is. The entry map has no bias.

    `attn` are the maps of diffusers' script: those of text in the first blocks, `add_*`, stay.
    """

    lora_encoders = ()
    presets: ClassVar[Mapping[str, str]] = {
        **JointTransformer.presets,
        "attn": rf"(?:\battn\.to_(?:q|k|v|out\.0)|{_SINGLE})",
        "attn+ff": rf"(?:{JointTransformer.presets['attn']}|{_SINGLE}|\bff(?:_context)?\.linear_(?:in|out))",
    }

    def segments(self, pipe: DiffusionPipeline) -> tuple[Segment, ...]:
        """Between the halves of the chat template; Mistral's begins with a system message."""
        if hasattr(pipe, "system_message"):
            from diffusers.pipelines.flux2.pipeline_flux2 import format_input

            before, after = chat_template(
                pipe.tokenizer,
                lambda prompt: format_input([prompt], pipe.system_message)[0],
                add_generation_prompt=False,
            )
        else:
            before, after = chat_template(pipe.tokenizer, enable_thinking=False)
        return (Segment(pipe.tokenizer, LENGTH, before, after),)

    def encode(
        self, pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | str | None = None
    ) -> Condition:
        """All positions, padding too."""
        hidden, _ = pipe.encode_prompt(prompt=list(prompts), device=device or pipe._execution_device)
        return Condition(hidden)

    def halves(self, encoded: Sequence[Any]) -> tuple[Tensor | None, Tensor | None]:
        """Negative prompts are encoded in a call of their own."""
        return encoded[0], None

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity; times are 0 to 1."""
        patches = pipe._patchify_latents(noisy)
        n, c, h, w = patches.shape
        guided = pipe.transformer.config.guidance_embeds
        found: Tensor = pipe.transformer(
            hidden_states=patches.flatten(2).transpose(1, 2),
            timestep=t / 1000,
            guidance=torch.full((n,), GUIDANCE).to(noisy) if guided else None,
            encoder_hidden_states=condition.hidden,
            txt_ids=pipe._prepare_text_ids(condition.hidden).to(noisy.device),
            img_ids=pipe._prepare_latent_ids(patches).to(noisy.device),
            return_dict=False,
        )[0]
        cells: Tensor = pipe._unpatchify_latents(found.transpose(1, 2).reshape(n, c, h, w))
        return cells

    def read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """The size is the last place of the picture; each half of guidance has a call."""
        scale = (kwargs.get("joint_attention_kwargs") or {}).get("scale", 1.0)
        h, w = (int(last) + 1 for last in kwargs["img_ids"][0, -1, 1:3].tolist())
        time = first_time(kwargs["timestep"])
        return Call(kwargs["encoder_hidden_states"], (2 * h, 2 * w), float(scale), time)

    def noise_shape(self, cells: Sequence[int]) -> tuple[int, ...]:
        """Of patches."""
        n, c, h, w = cells
        return (n, 4 * c, h // 2, w // 2)

    def given_noise(self, noise: Tensor) -> Tensor:
        """As patches, which the pipeline packs."""
        return noise

    def latents(self, pipe: DiffusionPipeline, pixels: Tensor) -> Tensor:
        """Normalised as channels of 2 x 2 patches, by what the autoencoder has seen; as single cells."""
        vae = pipe.vae
        return self._normalised(pipe, vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode())

    def latent_deviations(self, pipe: DiffusionPipeline, pixels: Tensor) -> Tensor:
        """Scaled in the same patches."""
        vae = pipe.vae
        spread = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.std
        scaled: Tensor = pipe._unpatchify_latents(pipe._patchify_latents(spread).float() / _spread(vae))
        return scaled

    def drawn_latents(self, pipe: DiffusionPipeline, drawn: Tensor) -> Tensor:
        """FLUX.2's come packed, klein's as the autoencoder reads them."""
        if drawn.ndim == 4:
            return self._normalised(pipe, drawn)
        side = round(drawn.shape[1] ** 0.5)
        patches = drawn.transpose(1, 2).reshape(len(drawn), drawn.shape[2], side, side)
        cells: Tensor = pipe._unpatchify_latents(patches)
        return cells

    @staticmethod
    def _normalised(pipe: DiffusionPipeline, cells: Tensor) -> Tensor:
        centred = pipe._patchify_latents(cells).float() - pipe.vae.bn.running_mean.float().view(1, -1, 1, 1)
        normed: Tensor = pipe._unpatchify_latents(centred / _spread(pipe.vae))
        return normed

    def picture_size(self, pipe: DiffusionPipeline) -> int:
        """What the pipeline draws when it is not told a size."""
        return int(pipe.default_sample_size) * int(pipe.vae_scale_factor)


def _spread(vae: Any) -> Tensor:
    """The deviation of each channel of patches, (1, c, 1, 1), over what the autoencoder has seen."""
    spread: Tensor = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().float().view(1, -1, 1, 1)
    return spread


ARCHITECTURE = Flux2()
