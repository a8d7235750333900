"""Ways of merging that look at the deltas alone: a table, one row each, to compare the closed form with.

Each takes the deltas of the concepts, at their strengths, and gives one. Products are merged, never the up
and down factors apart, which would mix every concept's up with every other's down (peft issue 1155).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from conceptkit.concept import Delta, Factors, delta_dense
from conceptkit.merging.parts import scaled

DENSITY = 0.2
"""Share of its entries that TIES keeps of each delta, as in the paper."""

Baseline = Callable[[Sequence[Delta]], Delta]


def add(deltas: Sequence[Delta]) -> Delta:
    """D_1 + D_2 + ...: low ranks side by side, full matrices added where a concept has one."""
    shared: dict[tuple[int, ...], Tensor] = {}
    return {name: _add([delta[name] for delta in deltas if name in delta], shared) for name in _names(deltas)}


def average(deltas: Sequence[Delta]) -> Delta:
    """(D_1 + ... + D_n) / n; a concept that leaves a map alone counts as 0 there."""
    return scaled(add(deltas), 1 / len(deltas))


def svd(deltas: Sequence[Delta]) -> Delta:
    """The sum, map by map cut to the largest rank that a concept has there."""
    ranks = {
        name: max(min(map(min, (f.shape for f in d[name]))) for d in deltas if name in d)
        for name in _names(deltas)
    }
    return {name: truncated(factors, ranks[name]) for name, factors in add(deltas).items()}


def ties(deltas: Sequence[Delta]) -> Delta:
    """Trim, elect signs, and average what agrees (TIES-Merging, 2306.01708), map by map, as full matrices."""
    result: dict[str, Factors] = {}
    for name in _names(deltas):
        trimmed = torch.stack([_strongest(delta_dense(delta[name])) for delta in deltas if name in delta])
        agreeing = trimmed * (trimmed.sign() == trimmed.sum(dim=0).sign())
        result[name] = (agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1),)
    return result


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {"sum": add, "average": average, "svd": svd, "ties": ties}
)


def truncated(factors: Factors, rank: int) -> Factors:
    """The best approximation of that rank, in the plain norm, of one map's (o, d) product, never built."""
    if len(factors) == 1:
        left, sizes, right = torch.linalg.svd(factors[0].double(), full_matrices=False)
    else:
        up, down = (factor.double() for factor in factors)
        basis, inner = torch.linalg.qr(up)
        around, outer = torch.linalg.qr(down.T)
        left, sizes, right = torch.linalg.svd(inner @ outer.T, full_matrices=False)
        left, right = basis @ left, right @ around.T
    return (left[:, :rank] * sizes[:rank]).float(), right[:rank].float()


def _add(summands: Sequence[Factors], shared: dict[tuple[int, ...], Tensor]) -> Factors:
    """One map's sum; `shared` holds the downs already put together, so that maps go on sharing theirs."""
    if len(summands) == 1:
        return summands[0]
    if all(len(factors) == 2 for factors in summands):
        ups, downs = zip(*summands, strict=True)
        key = tuple(id(down) for down in downs)
        if key not in shared:
            shared[key] = torch.cat(downs)
        return torch.cat(ups, dim=1), shared[key]
    return (torch.stack([delta_dense(factors) for factors in summands]).sum(dim=0),)


def _strongest(matrix: Tensor) -> Tensor:
    kept = max(1, round(DENSITY * matrix.numel()))
    least = matrix.abs().flatten().kthvalue(matrix.numel() - kept + 1).values
    return torch.where(matrix.abs() >= least, matrix, 0.0)


def _names(deltas: Sequence[Delta]) -> list[str]:
    return list(dict.fromkeys(name for delta in deltas for name in delta))
