"""What a denoiser is given of prompts, with gradients where tokens learn; one road for all architectures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from conceptkit.base.architectures import Condition, architecture_of
from conceptkit.base.text_features import encoders, spelt_out

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


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
    if not hasattr(pipe, "maybe_convert_prompt"):
        prompts = spelt_out(pipe, encoders(pipe)[0][0], prompts)
    return architecture_of(pipe).encode(pipe, prompts, device)


def concatenate(first: Condition, second: Condition) -> Condition:
    """Two conditions as one batch, `first` before `second`."""
    return first.joined(second)


def predict(pipe: DiffusionPipeline, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """The denoiser's prediction for latents (n, c, h, w) at timesteps t (n,), in the precision of these.

    Text encoders may be in another one, as Sana's pipeline has them.
    """
    return architecture_of(pipe).predict(pipe, noisy, t, condition.to(noisy.dtype))
