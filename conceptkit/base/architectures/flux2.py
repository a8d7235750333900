"""FLUX.2: three layers of Mistral 3, or of Qwen 3 (klein), beside one another; latents of patches; a flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from conceptkit.base.architectures.architecture import Call, Condition, Segment
from conceptkit.base.architectures.joint import JointTransformer, first_time
from conceptkit.base.architectures.language_model import chat_template

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LENGTH = 512
GUIDANCE = 1.0
"""What a base that takes guidance as an input is told while it learns (README_flux2.md of diffusers)."""
_SINGLE = r"\bsingle_transformer_blocks\.\d+\.attn\.to_(?:qkv_mlp_proj|out)"


class Flux2(JointTransformer):
    """Nothing is masked: padding is read as it is. The entry map has no bias."""

    lora_encoders = ()
    presets: ClassVar[Mapping[str, str]] = {
        **JointTransformer.presets,
        "attn": rf"(?:{JointTransformer.presets['attn']}|{_SINGLE})",
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

    def encode(self, pipe: DiffusionPipeline, prompts: Sequence[str], device: Any = None) -> Condition:
        """All positions, padding too."""
        hidden, _ = pipe.encode_prompt(prompt=list(prompts), device=device or pipe._execution_device)
        return Condition(hidden)

    def halves(self, encoded: Sequence[Any]) -> tuple[Tensor | None, Tensor | None]:
        """Negative prompts are encoded in a call of their own."""
        return encoded[0], None

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity; times are 0 to 1."""
        n, c, h, w = noisy.shape
        guided = pipe.transformer.config.guidance_embeds
        found: Tensor = pipe.transformer(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            timestep=t / 1000,
            guidance=torch.full((n,), GUIDANCE).to(noisy) if guided else None,
            encoder_hidden_states=condition.hidden,
            txt_ids=pipe._prepare_text_ids(condition.hidden).to(noisy.device),
            img_ids=pipe._prepare_latent_ids(noisy).to(noisy.device),
            return_dict=False,
        )[0]
        return found.transpose(1, 2).reshape(n, c, h, w)

    def read_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """The size is the last place of the picture; each half of guidance has a call."""
        scale = (kwargs.get("joint_attention_kwargs") or {}).get("scale", 1.0)
        h, w = (int(last) + 1 for last in kwargs["img_ids"][0, -1, 1:3].tolist())
        return Call(kwargs["encoder_hidden_states"], (h, w), float(scale), first_time(kwargs["timestep"]))

    def latents(self, pipe: DiffusionPipeline, pixels: Tensor) -> Tensor:
        """Patches of 2 x 2 cells as channels, normalised by what the autoencoder has seen."""
        vae = pipe.vae
        mean = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        patches = pipe._patchify_latents(mean).float()
        centre, spread = (
            values.float().view(1, -1, 1, 1)
            for values in (vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt())
        )
        return (patches - centre) / spread

    def drawn_latents(self, pipe: DiffusionPipeline, drawn: Tensor) -> Tensor:
        """FLUX.2's come packed, klein's as the autoencoder reads them."""
        if drawn.ndim == 3:
            side = round(drawn.shape[1] ** 0.5)
            return drawn.transpose(1, 2).reshape(len(drawn), drawn.shape[2], side, side)
        bn = pipe.vae.bn
        patches = pipe._patchify_latents(drawn).float()
        spread = (bn.running_var + pipe.vae.config.batch_norm_eps).sqrt()
        centred: Tensor = (patches - bn.running_mean.view(1, -1, 1, 1)) / spread.view(1, -1, 1, 1)
        return centred

    def picture_size(self, pipe: DiffusionPipeline) -> int:
        """What the pipeline draws when it is not told a size."""
        return int(pipe.default_sample_size) * int(pipe.vae_scale_factor)


ARCHITECTURE = Flux2()
