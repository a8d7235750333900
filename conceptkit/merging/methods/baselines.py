"""Ways of merging that look at the deltas alone: a table, one row each, to compare the closed form with.

Each takes the deltas of the concepts, at their strengths, and gives one. Products are merged, never the up
and down factors apart, which would mix every concept's up with every other's down (peft issue 1155).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from conceptkit.concepts.delta import Delta, Factors, add, delta_dense, names, only, scaled, truncated
from conceptkit.merging.methods.base import MergeContext, MergeResult


def merge_baseline(how: str) -> Callable[[MergeContext], MergeResult]:
    def join(kitchen: MergeContext) -> MergeResult:
        """What is not keys and values is added up exactly, whatever is done to those."""
        narrow = [only(part.delta, kitchen.base.sizes) for part in kitchen.parts]
        beside = kitchen.wide
        share = 1 / len(narrow) if how == "average" else 1.0
        shares = [scaled(delta, share) for delta in narrow]
        return MergeResult({**BASELINES[how](narrow), **beside.delta}, shares, recipe=beside.recipe)

    return join


DENSITY = 0.2
"""Share of its entries that TIES keeps of each delta, as in the paper."""

Baseline = Callable[[Sequence[Delta]], Delta]


def average(deltas: Sequence[Delta]) -> Delta:
    """(D_1 + ... + D_n) / n; a concept that leaves a map alone counts as 0 there."""
    return scaled(add(deltas), 1 / len(deltas))


def svd(deltas: Sequence[Delta]) -> Delta:
    """The sum, map by map cut to the largest rank that a concept has there."""
    ranks = {
        name: max(min(map(min, (f.shape for f in d[name]))) for d in deltas if name in d)
        for name in names(deltas)
    }
    return {name: truncated(factors, ranks[name]) for name, factors in add(deltas).items()}


def ties(deltas: Sequence[Delta]) -> Delta:
    """Trim, elect signs, and average what agrees (TIES-Merging, 2306.01708), map by map, as full matrices."""
    result: dict[str, Factors] = {}
    for name in names(deltas):
        trimmed = torch.stack([_strongest(delta_dense(delta[name])) for delta in deltas if name in delta])
        agreeing = trimmed * (trimmed.sign() == trimmed.sum(dim=0).sign())
        result[name] = (agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1),)
    return result


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {"sum": add, "average": average, "svd": svd, "ties": ties}
)


def _strongest(matrix: Tensor) -> Tensor:
    kept = max(1, round(DENSITY * matrix.numel()))
    least = matrix.abs().flatten().kthvalue(matrix.numel() - kept + 1).values
    return torch.where(matrix.abs() >= least, matrix, 0.0)
