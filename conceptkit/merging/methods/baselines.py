"""Merge methods that look at the deltas alone, to compare the others with.

Each takes the deltas of the concepts, at their strengths, and gives one. Products are merged, never the up
and down factors apart, which would mix every concept's up with every other's down (peft issue 1155).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from conceptkit.concepts.delta import Delta, Factors
from conceptkit.merging.methods.base import MergeContext, MergeResult

DENSITY = 0.2
"""Share of its entries that TIES keeps of each delta, as in the paper."""


def merge_sum(context: MergeContext) -> MergeResult:
    """D_1 + ... + D_n."""
    return _merged(context, Delta.sum)


def merge_linear(context: MergeContext) -> MergeResult:
    """(D_1 + ... + D_n) / n."""
    return _merged(context, mean, 1 / len(context.parts))


def merge_svd(context: MergeContext) -> MergeResult:
    """The sum, cut."""
    return _merged(context, svd)


def merge_ties(context: MergeContext) -> MergeResult:
    """TIES-Merging (2306.01708)."""
    return _merged(context, ties)


def mean(deltas: Sequence[Delta]) -> Delta:
    """(D_1 + ... + D_n) / n; a concept that leaves a map alone counts as 0 there."""
    return Delta.sum(deltas) * (1 / len(deltas))


def svd(deltas: Sequence[Delta]) -> Delta:
    """The sum, map by map cut to the largest rank that a concept has there."""
    ranks = {name: max(d[name].rank for d in deltas if name in d) for name in _names(deltas)}
    return Delta({name: factors.truncated(ranks[name]) for name, factors in Delta.sum(deltas).items()})


def ties(deltas: Sequence[Delta]) -> Delta:
    """Trim, elect signs, and average what agrees (TIES-Merging, 2306.01708), map by map, as full matrices."""
    result: dict[str, Factors] = {}
    for name in _names(deltas):
        trimmed = torch.stack([_strongest(delta[name].dense()) for delta in deltas if name in delta])
        agreeing = trimmed * (trimmed.sign() == trimmed.sum(dim=0).sign())
        result[name] = Factors(weight=agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1))
    return Delta(result)


def _merged(
    context: MergeContext, merge: Callable[[Sequence[Delta]], Delta], share: float = 1.0
) -> MergeResult:
    """Keys and values are merged; what lies beside them is added up exactly, whatever is done to those.

    share: how much of each delta is in the result.
    """
    narrow = [part.delta.only(context.base.sizes) for part in context.parts]
    beside = context.wide
    return MergeResult(
        merge(narrow) | beside.delta, [delta * share for delta in narrow], recipe=beside.recipe
    )


def _names(deltas: Sequence[Delta]) -> list[str]:
    return list(dict.fromkeys(name for delta in deltas for name in delta))


def _strongest(matrix: Tensor) -> Tensor:
    kept = max(1, round(DENSITY * matrix.numel()))
    least = matrix.abs().flatten().kthvalue(matrix.numel() - kept + 1).values
    return torch.where(matrix.abs() >= least, matrix, 0.0)
