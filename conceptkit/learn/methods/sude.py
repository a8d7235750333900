"""SuDe (2403.06775): a subject inherits what its class can do, as pure functions of tensors.

With x_t and t shared, eps_s is what the model predicts for "photo of a <my_dog> dog", eps_c for "photo of a
dog" and eps_u for the empty prompt. The loss draws eps_s to eps_c and away from eps_u,

    L = w_t (|eps_s - eps_c|^2 - |eps_s - eps_u|^2),

for as long as it exceeds what it is at eps_s = eps_c; its gradient is then that of the hinge
w_t max(0, 2 <eps_s - eps_c, eps_u - eps_c>). Without that truncation it has no lower bound.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights(bars: Tensor, t: Tensor, variant: str = "code") -> Tensor:
    """w_t (n,) float32 at the steps t (n,) of abar (T,); 0 at t = 0, where the posterior is a point.

    "paper": equation 7, beta_t / (2 alpha_t (1 - abar_{t-1})). "code": that of the authors' program, which
    divides by the posterior mean's coefficient of x0 besides; the published w_s belong to it.
    """
    before = bars.double()[(t - 1).clamp(min=0)]
    bar = bars.double()[t]
    alpha = bar / before
    if variant == "paper":
        weight = (1 - alpha) / (2 * alpha * (1 - before))
    else:
        weight = (1 - bar) / (2 * alpha * (1 - before) * before.sqrt())
    return torch.where((t > 0) & weight.isfinite(), weight, 0.0).float()


def sude(subject: Tensor, kind: Tensor, nothing: Tensor, weight: Tensor, count: int | None = None) -> Tensor:
    """The truncated loss, summed over samples and divided by `count` (by default their number); a scalar.

    subject, kind, nothing: eps_s, eps_c, eps_u (n, c, h, w); weight (n,). Only eps_s gets a gradient. Squares
    are means over elements; each sample is truncated by itself.
    """
    subject, kind, nothing = subject.float(), kind.detach().float(), nothing.detach().float()
    pull = weight.to(subject) * (_apart(subject, kind) - _apart(subject, nothing))
    least = -weight.to(subject) * _apart(kind, nothing)
    active = (pull.detach() > least).float()
    return (pull * active).sum() / (len(subject) if count is None else count)


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of each sample: (n,)."""
    return (one - other).square().flatten(1).mean(1)
