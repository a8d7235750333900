"""The losses of learning, as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mse(predicted: Tensor, wanted: Tensor, mask: Tensor, cells: Tensor | None = None) -> Tensor:
    """Squared error averaged over all cells where mask (n, h, w) is 1 and over all channels; a scalar.

    Each cell counts the same, so that a small and noisy view does not outweigh a large one. (The reference
    sums channels and divides by a one-channel mask: the subject weighs 4 to 1; here the recipe says it.)
    `cells`: how many there are in the whole batch, where this is a part of it; the parts' losses add up.
    """
    error = (predicted.float() - wanted.float()).square().mean(dim=1)
    return (error * mask).sum() / (mask.sum() if cells is None else cells).clamp_min(1)


def leak(ups: Tensor, down: Tensor, gram: Tensor) -> Tensor:
    """||D Y||^2 of D = up down over captions Y with second moment G: tr(up^T up . down G down^T); a scalar.

    ups (O, r), down (r, d), gram (d, d). No caption is drawn and nothing of size (O, d) is built.
    """
    moment = down @ gram.to(down) @ down.T
    return ((ups.T @ ups) * moment).sum()


def spread(count: int, steps: int, dice: torch.Generator) -> Tensor:
    """`count` timesteps in 0 .. steps - 1, one in each equal part, in random order: (count,) int64."""
    parts = torch.randperm(count, generator=dice) + torch.rand(count, generator=dice)
    return (parts / count * steps).long().clamp(max=steps - 1)


def prior_weighted(subject: Tensor, prior: Tensor | None, weight: float) -> Tensor:
    """Loss of the subject plus `weight` times that of its class (DreamBooth, 2208.12242, eq. 2)."""
    return subject if prior is None else subject + weight * prior


def finite(value: Tensor) -> bool:
    """Whether a loss is a number."""
    return bool(torch.isfinite(value.detach()))
