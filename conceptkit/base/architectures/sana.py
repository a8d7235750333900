"""Sana: Gemma behind an MLP and a norm; a flow on the latents of a deep-compression autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from conceptkit.base.architectures.architecture import Condition
from conceptkit.base.architectures.static import StaticCrossAttention

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Sana(StaticCrossAttention):
    """Prompts are read as they are, without the instruction that the pipeline may put before them."""

    def site_input(self, denoiser: nn.Module, hidden: Tensor) -> Tensor:
        """Behind `caption_projection` and `caption_norm`."""
        model: Any = denoiser
        weight = next(model.caption_projection.parameters())
        projected: Tensor = model.caption_norm(model.caption_projection(hidden.to(weight))).to(hidden)
        return projected

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Velocity; times are 0 to 1000 by the model's own scale."""
        prediction: Tensor = pipe.transformer(
            noisy,
            encoder_hidden_states=condition.hidden,
            encoder_attention_mask=condition.mask,
            timestep=t * pipe.transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return prediction

    def latents(self, pipe: DiffusionPipeline, pixels: Tensor) -> Tensor:
        """The autoencoder is deterministic."""
        vae = pipe.vae
        encoded: Tensor = vae.encode(pixels.to(vae.device, vae.dtype)).latent
        return encoded.float() * vae.config.scaling_factor

    def draw_options(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        """No instruction before the prompt: names stand where they are looked for. The size, which the pipeline
        takes for 1024 whatever its model was made for."""
        side = self.picture_size(pipe)
        return {
            **super().draw_options(pipe),
            "complex_human_instruction": None,
            "height": side,
            "width": side,
        }


ARCHITECTURE = Sana()
