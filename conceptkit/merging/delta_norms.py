"""How much deltas do to text features, from small Gram matrices: nothing of (O, n) or (O, d) is built."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from conceptkit.concepts.delta import Delta


@dataclass(frozen=True, eq=False)
class Pairing:
    """<D X^T, D' X^T> for any features X (k, d), of maps that share both their down factors.

    inner: U^T U' (r, r') over all outputs of these maps; down, other: A (r, d) and A' (r', d), None for
    matrices that have no factors.
    """

    inner: Tensor
    down: Tensor | None
    other: Tensor | None

    def products(self, rows: Tensor) -> Tensor:
        """The inner product at each feature: (k, d) -> (k,)."""
        left, right = (rows if factor is None else rows @ factor.T for factor in (self.down, self.other))
        return ((left @ self.inner) * right).sum(dim=1)

    def moment(self, rows: Tensor) -> Tensor:
        """The inner products of every two features, X D^T D' X^T: (k, d) -> (k, k)."""
        left, right = (rows if factor is None else rows @ factor.T for factor in (self.down, self.other))
        return left @ self.inner @ right.T


Pairings = list[Pairing]


def loaded(delta: Delta, dtype: torch.dtype) -> Delta:
    """The delta as a pipeline of this precision computes with it, in float64; shared factors stay shared."""
    return delta.map(lambda factor: factor.to(dtype).double())


def pair(first: Delta, second: Delta) -> Pairings:
    """All of <D, D'>, map by map, the maps that share their downs together. Both must be float64."""
    groups: dict[tuple[Hashable, Hashable], list[str]] = {}
    for name in first:
        if name in second:
            groups.setdefault((first.shared.get(name), second.shared.get(name)), []).append(name)
    result = []
    for names in groups.values():
        inner = sum(
            (first[name].first.T @ second[name].first for name in names),
            start=torch.zeros((), dtype=torch.float64),
        )
        result.append(Pairing(inner, first[names[0]].down, second[names[0]].down))
    return result


def products(pairings: Iterable[Pairing], rows: Tensor) -> Tensor:
    """<D x, D' x> at each feature x: (k, d) -> (k,)."""
    return sum((p.products(rows) for p in pairings), start=torch.zeros(len(rows), dtype=torch.float64))


def squared(pairings: Iterable[Pairing], rows: Tensor) -> float:
    """||D X||^2 of a delta paired with itself."""
    return max(0.0, float(products(pairings, rows).sum()))


def missed(whole: Pairings, across: Pairings, own: Pairings, rows: Tensor) -> float:
    """||(D - D') X||^2 from <D, D>, <D, D'> and <D', D'>."""
    total = products(whole, rows) - 2 * products(across, rows) + products(own, rows)
    return max(0.0, float(total.sum()))
