"""What a UNet is told of a prompt, with gradients where tokens learn; one road for SD and SDXL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, eq=False)
class Condition:
    """hidden (n, T, d); pooled (n, p) for SDXL, else None."""

    hidden: Tensor
    pooled: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.hidden.device

    def __getitem__(self, picks: Tensor) -> Condition:
        return Condition(self.hidden[picks], None if self.pooled is None else self.pooled[picks])

    def detach(self) -> Condition:
        """The same without a gradient."""
        return Condition(self.hidden.detach(), None if self.pooled is None else self.pooled.detach())


@dataclass(frozen=True, eq=False)
class LiveCondition:
    """Conditions of prompts that change as something learns: those that are picked are read then, each once.

    gradient: whether what is read has one.
    """

    pipe: DiffusionPipeline
    prompts: Sequence[str]
    gradient: bool = True

    @cached_property
    def device(self) -> torch.device:
        """Kept: a pipeline looks through all its modules for it, which is a tenth of a small step."""
        return torch.device(self.pipe._execution_device)

    def __getitem__(self, picks: Tensor) -> Condition:
        used, places = picks.unique(return_inverse=True)
        with torch.set_grad_enabled(self.gradient and torch.is_grad_enabled()):
            return encode(self.pipe, [self.prompts[k] for k in used.tolist()], self.device)[places]


def encode(pipe: DiffusionPipeline, prompts: Sequence[str], device: torch.device | None = None) -> Condition:
    """The conditions of prompts, through a pipeline's own `encode_prompt`; by itself, where that runs."""
    encoded = pipe.encode_prompt(
        prompt=list(prompts),
        device=device or pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    return Condition(encoded[0], encoded[2] if len(encoded) == 4 else None)


def concatenate(first: Condition, second: Condition) -> Condition:
    """Two conditions as one batch, `first` before `second`."""
    pooled = None
    if first.pooled is not None and second.pooled is not None:
        pooled = torch.cat([first.pooled, second.pooled])
    return Condition(torch.cat([first.hidden, second.hidden]), pooled)


def predict(pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """The UNet's prediction for latents (n, c, h, w) at timesteps t (n,)."""
    added = None
    if condition.pooled is not None:
        side = noisy.shape[-1] * pipe.vae_scale_factor
        sizes = torch.tensor([side, side, 0, 0, side, side]).to(condition.pooled)
        added = {"text_embeds": condition.pooled, "time_ids": sizes.repeat(len(noisy), 1)}
    prediction: Tensor = pipe.unet(noisy, t, condition.hidden, added_cond_kwargs=added).sample
    return prediction
