"""How a base mixes pictures with noise, and what it predicts: one road for diffusion and for flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conceptkit.errors import BadBase


def target(prediction_type: str, clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """What the UNet should predict: noise, picture, or v = sqrt(abar) eps - sqrt(1 - abar) x0 (2202.00512).

    clean, noise (n, c, h, w); alpha_bar (n,). Raises BadBase on a prediction type that is none of these.
    """
    a = alpha_bar.view(-1, 1, 1, 1).to(clean)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
    if prediction_type == "v_prediction":
        return a.sqrt() * noise - (1 - a).sqrt() * clean
    raise BadBase(
        f"A base that predicts {prediction_type!r} cannot learn; use a Stable Diffusion or SDXL pipeline"
    )


def add_noise(clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = sqrt(abar) x0 + sqrt(1 - abar) eps (DDPM, 2006.11239, eq. 4)."""
    a = alpha_bar.view(-1, 1, 1, 1).to(clean)
    return a.sqrt() * clean + (1 - a).sqrt() * noise


FLOW = "flow"
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels of a base, from the least (t = 0) to the most.

    prediction: "epsilon", "v_prediction", "sample" or "flow".
    bars: abar_t (T,), for a flow the one of the same signal-to-noise ratio.
    sigmas: (T,) of a flow, x_t = (1 - sigma) x0 + sigma eps (2210.02747), else None.
    times: what the UNet is told, (T,), or None where that is t itself.
    """

    prediction: str
    bars: Tensor
    sigmas: Tensor | None = None
    times: Tensor | None = None

    def __len__(self) -> int:
        return len(self.bars)

    def told(self, t: Tensor) -> Tensor:
        """What the UNet is told for the steps t (n,)."""
        return t if self.times is None else self.times[t]

    def step_of(self, told: Tensor) -> Tensor:
        """The steps (n,) whose times are nearest to what a UNet is told (n,)."""
        if self.times is None:
            return told.round().long().clamp(0, len(self) - 1)
        return (told.float().unsqueeze(1) - self.times.float()).abs().argmin(dim=1)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t (n, c, h, w) at the steps t (n,)."""
        if self.sigmas is None:
            return add_noise(clean, noise, self.bars[t].to(clean))
        sigma = self._column(self.sigmas, t, clean)
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect UNet predicts."""
        if self.sigmas is None:
            return target(self.prediction, clean, noise, self.bars[t].to(clean))
        return noise - clean

    def noise_in(self, noisy: Tensor, clean: Tensor, t: Tensor) -> Tensor:
        """The noise that is in x_t (n, c, h, w) beside a picture."""
        if self.sigmas is not None:
            sigma = self._column(self.sigmas, t, clean)
            return (noisy - (1 - sigma) * clean) / sigma
        bar = self._column(self.bars, t, clean)
        return (noisy - bar.sqrt() * clean) / (1 - bar).sqrt()

    def as_noise(self, predicted: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction at x_t speaks of, whatever the base predicts."""
        if self.sigmas is not None:
            return noisy + (1 - self._column(self.sigmas, t, noisy)) * predicted
        bar = self._column(self.bars, t, noisy)
        if self.prediction == "epsilon":
            return predicted
        if self.prediction == "v_prediction":
            return bar.sqrt() * predicted + (1 - bar).sqrt() * noisy
        return self.noise_in(noisy, predicted, t)

    @staticmethod
    def _column(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return values[t].view(-1, 1, 1, 1).to(like)


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """The schedule that a base was trained with. Raises BadBase when it is neither diffusion nor flow."""
    bars = getattr(scheduler, "alphas_cumprod", None)
    if scheduler.config.get("use_flow_sigmas"):  # Sana's, which is for drawing: it learns without a shift
        count = int(scheduler.config.num_train_timesteps)
        levels = torch.arange(1, count + 1) / count
        return _flow(levels, levels * count)
    if bars is not None:
        prediction = str(scheduler.config.get("prediction_type", "epsilon"))
        if prediction not in PREDICTIONS:
            known = ", ".join(PREDICTIONS)
            raise BadBase(
                f"A base that predicts {prediction!r} cannot learn; use one that predicts one of {known}"
            )
        return NoiseSchedule(prediction, bars)
    kind = type(scheduler)
    if not kind.__name__.startswith("FlowMatch"):
        raise BadBase(
            f"The scheduler {kind.__name__} has no alphas_cumprod and no flow, so noise cannot be added; "
            "use DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    fresh = kind.from_config(scheduler.config)  # drawing leaves a scheduler at the few levels it has drawn
    count = int(fresh.config.num_train_timesteps)
    return _flow(fresh.sigmas[:count].flip(0).float(), fresh.timesteps[:count].flip(0).float())


def _flow(sigmas: Tensor, times: Tensor) -> NoiseSchedule:
    """The schedule of a flow with these levels (T,), and the times that the denoiser is told."""
    signal = (1 - sigmas).double().square()
    bars = signal / (signal + sigmas.double().square())
    return NoiseSchedule(FLOW, bars.float(), sigmas, times)
