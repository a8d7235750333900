"""Ways of merging that look at the deltas alone: a table, one row each, to compare the closed form with.

Each takes the deltas of the concepts, at their strengths, and gives one. Products are merged, never the up
and down factors apart, which would mix every concept's up with every other's down (peft issue 1155).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from conceptkit.concepts.delta import Delta, Factors
from conceptkit.merging.methods.base import MergeContext, MergeResult


def merge_baseline(how: str) -> Callable[[MergeContext], MergeResult]:
    def join(kitchen: MergeContext) -> MergeResult:
        """What is not keys and values is added up exactly, whatever is done to those."""
        narrow = [part.delta.only(kitchen.base.sizes) for part in kitchen.parts]
        beside = kitchen.wide
        share = 1 / len(narrow) if how == "average" else 1.0
        shares = [delta * share for delta in narrow]
        return MergeResult(BASELINES[how](narrow) | beside.delta, shares, recipe=beside.recipe)

    return join


DENSITY = 0.2
"""Share of its entries that TIES keeps of each delta, as in the paper."""

Baseline = Callable[[Sequence[Delta]], Delta]


def average(deltas: Sequence[Delta]) -> Delta:
    """(D_1 + ... + D_n) / n; a concept that leaves a map alone counts as 0 there."""
    return Delta.sum(deltas) * (1 / len(deltas))


def svd(deltas: Sequence[Delta]) -> Delta:
    """The sum, map by map cut to the largest rank that a concept has there."""
    ranks = {name: max(d[name].rank for d in deltas if name in d) for name in names(deltas)}
    return Delta({name: factors.truncated(ranks[name]) for name, factors in Delta.sum(deltas).items()})


def ties(deltas: Sequence[Delta]) -> Delta:
    """Trim, elect signs, and average what agrees (TIES-Merging, 2306.01708), map by map, as full matrices."""
    result: dict[str, Factors] = {}
    for name in names(deltas):
        trimmed = torch.stack([_strongest(delta[name].dense()) for delta in deltas if name in delta])
        agreeing = trimmed * (trimmed.sign() == trimmed.sum(dim=0).sign())
        mean = agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1)
        result[name] = Factors(weight=mean)
    return Delta(result)


def names(deltas: Sequence[Delta]) -> list[str]:
    """The maps that any of the deltas has, in their order."""
    return list(dict.fromkeys(name for delta in deltas for name in delta))


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {"sum": Delta.sum, "average": average, "svd": svd, "ties": ties}
)


def _strongest(matrix: Tensor) -> Tensor:
    kept = max(1, round(DENSITY * matrix.numel()))
    least = matrix.abs().flatten().kthvalue(matrix.numel() - kept + 1).values
    return torch.where(matrix.abs() >= least, matrix, 0.0)
