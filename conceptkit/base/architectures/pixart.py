"""PixArt alpha and Sigma: T5 behind an MLP; they predict noise and, in other channels, its variance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from conceptkit.base.architectures.architecture import Condition
from conceptkit.base.architectures.static import StaticCrossAttention

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class PixArt(StaticCrossAttention):
    """The variance learns nothing here."""

    def site_input(self, denoiser: nn.Module, hidden: Tensor) -> Tensor:
        """Behind `caption_projection`."""
        project: Any = denoiser.caption_projection
        weight = next(project.parameters())
        projected: Tensor = project(hidden.to(weight)).to(hidden)
        return projected

    def predict(self, pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noise; the small micro-conditions of the first model are left empty, as its pipeline leaves them
        at sizes below 1024."""
        prediction: Tensor = pipe.transformer(
            noisy,
            encoder_hidden_states=condition.hidden,
            encoder_attention_mask=condition.mask,
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return prediction[:, : noisy.shape[1]]


ARCHITECTURE = PixArt()
