"""The losses of learning, as pure functions of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from conceptkit.learn.train_config import TrainConfig


def masked_mse(predicted: Tensor, wanted: Tensor, mask: Tensor, cells: Tensor | None = None) -> Tensor:
    """Squared error averaged over all cells where mask (n, h, w) is 1 and over all channels; a scalar.

    Each cell counts the same, so that a small and noisy view does not outweigh a large one. (The reference
    sums channels and divides by a one-channel mask: the subject weighs 4 to 1; here the recipe says it.)
    `cells`: how many there are in the whole batch, where this is a part of it; the parts' losses add up.
    """
    error = (predicted.float() - wanted.float()).square().mean(dim=1)
    return (error * mask).sum() / (mask.sum() if cells is None else cells).clamp_min(1)


def weighted_mse(
    predicted: Tensor, wanted: Tensor, mask: Tensor, weights: Tensor, whole: int, channel_sum: bool = False
) -> Tensor:
    """Squared error of each view, over its cells where mask (n, h, w) is 1, times weights (n,); a scalar.

    The mean over `whole` views, of which these are a part; of a view that counts nowhere the error is 0.
    channel_sum: the sum over channels, not their mean, as Custom Diffusion's programs have it.
    """
    error = (predicted.float() - wanted.float()).square()
    each = error.sum(dim=1) if channel_sum else error.mean(dim=1)
    of_view = (each * mask).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp_min(1)
    return (of_view * weights.to(of_view)).sum() / whole


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


def sample_levels(recipe: TrainConfig, count: int, levels: int, dice: torch.Generator) -> Tensor:
    """`count` noise levels in 0 .. levels - 1, as a weighting scheme of SD3 (2403.03206, 3.1) draws them.

    (count,) int64. The schemes speak of shares of the way from noise to picture, and level 0 is a picture.
    """
    scheme = recipe.weighting_scheme
    if scheme == "logit_normal":
        share = torch.sigmoid(recipe.logit_mean + recipe.logit_std * torch.randn(count, generator=dice))
    else:
        share = torch.rand(count, generator=dice)
        if scheme == "mode":
            share = 1 - share - recipe.mode_scale * (torch.cos(math.pi * share / 2) ** 2 - 1 + share)
    return levels - 1 - (share * levels).long().clamp(0, levels - 1)


def flow_weights(scheme: str, sigmas: Tensor, preconditioned: bool = False) -> Tensor:
    """Weights (n,) of the loss at the noise levels sigma (n,) of a flow (2403.03206, 3.1).

    preconditioned: x_t - sigma v and x0 are compared instead of v and eps - x0 (2206.00364, section 5), whose
    squared distance is sigma^2 times as large.
    """
    weights = torch.ones_like(sigmas, dtype=torch.float32)
    if scheme == "sigma_sqrt":
        weights = sigmas.float() ** -2
    if scheme == "cosmap":
        weights = 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas.square()).float())
    return weights * sigmas.float().square() if preconditioned else weights


def min_snr(prediction: str, bars: Tensor, gamma: float) -> Tensor:
    """Weights (n,) of min-SNR (2303.09556, section 3.4) at abar (n,), for what a base predicts."""
    snr = bars.double() / (1 - bars.double())
    least = snr.clamp(max=gamma)
    if prediction == "epsilon":
        least = least / snr
    elif prediction == "v_prediction":
        least = least / (snr + 1)
    return least.float()


def prior_weighted(subject: Tensor, prior: Tensor | None, weight: float) -> Tensor:
    """Loss of the subject plus `weight` times that of its class (DreamBooth, 2208.12242, eq. 2)."""
    return subject if prior is None else subject + weight * prior


def finite(value: Tensor) -> bool:
    """Whether a loss is a number."""
    return bool(torch.isfinite(value.detach()))
