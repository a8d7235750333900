"""Where things are by what a denoiser predicts without them, which needs no look into it.

Where a prediction changes when a noun is left out of the prompt, there is its thing (DiffEdit, 2210.11427,
section 3.2, with the noun left out in place of another one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from conceptkit.inference.layout_attention import FINEST

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

LEAST_NOISE, MOST_NOISE = 0.3, 0.95
"""Shares of noise between which predictions tell things: with more noise there are none yet, with less they
are there whatever the prompt says."""
MOST_STEPS = 6
"""Steps that are watched at most; each costs a call for each thing."""
SMOOTH = 0.8
"""Standard deviation in cells by which differences are smoothed, which are spotty within a thing."""
FLOOR = 0.7
"""Share of a map's median that is taken off: predictions change a little everywhere, attention does not."""


class DifferenceWatch:
    """The differences of predictions at a few steps.

    nouns: of the things of each picture, (P, N) at most. shares: of noise at each step of the drawing.
    """

    def __init__(self, nouns: Sequence[Sequence[str]], shares: Sequence[float]) -> None:
        self._nouns, self.steps = nouns, watched_steps(shares)
        self._seen: list[Tensor] = []

    @property
    def ready(self) -> bool:
        """Whether anything has been seen."""
        return bool(self._seen)

    def note(self, whole: Tensor, without: Sequence[Tensor]) -> None:
        """A prediction (P, c, H, W), and without each of the N things."""
        off = torch.stack([(whole - one).float().square().mean(dim=1).sqrt() for one in without], dim=1)
        self._seen.append(off / off.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12))

    def maps(self, calls: int) -> Tensor:
        """Where each noun is by what was seen so far: (P, N, h, w), at most `FINEST` cells on a side."""
        seen = torch.stack(self._seen).mean(dim=0)
        size = tuple(seen.shape[-2:])
        coarse = tuple(round(side * min(1, FINEST / max(size))) for side in size)
        seen = F.interpolate(seen, coarse, mode="area") if coarse != size else seen
        return torch.stack([_of_classes(one, own) for one, own in zip(seen, self._nouns, strict=True)])


def _of_classes(seen: Tensor, nouns: Sequence[str]) -> Tensor:
    """Maps (N, h, w) smoothed, with those of one class added up: each of its nouns may change any of them."""
    smooth = ndimage.gaussian_filter(seen.cpu().numpy(), (0, SMOOTH, SMOOTH))
    whole = np.stack([sum(smooth[j] for j, n in enumerate(nouns) if n == noun) for noun in nouns])
    whole = np.clip(whole - FLOOR * np.median(whole, axis=(1, 2), keepdims=True), 0, None)
    rest = smooth[len(nouns) :]  # of pictures with more things
    return torch.from_numpy(np.concatenate([whole, rest]))


def watched_steps(shares: Sequence[float]) -> frozenset[int]:
    """The steps that are watched of a drawing with these shares of noise."""
    able = [k for k, share in enumerate(shares) if LEAST_NOISE <= share <= MOST_NOISE]
    if not able:
        middle = (LEAST_NOISE + MOST_NOISE) / 2
        able = [int(np.argmin([abs(share - middle) for share in shares]))]
    picks = np.linspace(0, len(able) - 1, min(MOST_STEPS, len(able))).round().astype(int)
    return frozenset(able[pick] for pick in picks)


def noise_shares(scheduler: SchedulerMixin) -> list[float]:
    """The standard deviation of the noise at each step of a drawing, beside which that of the picture is less
    the more there is."""
    times = torch.as_tensor(scheduler.timesteps).float().cpu()
    bars = getattr(scheduler, "alphas_cumprod", None)
    if bars is None or scheduler.config.get("use_flow_sigmas"):
        shares = times / scheduler.config.num_train_timesteps
    else:
        shares = (1 - bars.cpu()[times.round().long().clamp(0, len(bars) - 1)]).sqrt()
    found: list[float] = shares.tolist()
    return found
