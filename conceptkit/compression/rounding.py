"""Rounding vectors in a metric: what rounding one entry did wrong, the entries after it make good.

For e^T H e to be small, entries are rounded in turn, the most sensitive first, and each rounding's error is
fed into those that are still free (GPTQ, 2210.17323; the same as Babai's nearest plane). Metrics of more than
BLOCK entries are taken in blocks along the diagonal: gradients of few pictures know no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 192
CHUNK = 512
"""Blocks that are rounded side by side."""
SHRINKAGE = 0.1
"""Of a second moment, towards its diagonal (Ledoit and Wolf, 2004)."""
ROUNDING_SHRINKAGE = 0.6
"""Of a metric in which errors are fed on: with less they go where few gradients see nothing, and count there
too."""
DEAD_ZONE = 0.15
"""Entries are rounded up from 1/2 + this on: a zero is cheaper than a one by more than the error it costs."""


@dataclass(frozen=True, eq=False)
class Metric:
    """H (n, n) in blocks, each ready for rounding.

    blocks: the entries of each, the most sensitive first, and R (b, b) with H^-1 = R^T R in that order.
    scale: the mean of H's diagonal, by which a step is chosen.
    """

    blocks: tuple[tuple[Tensor, Tensor], ...]
    scale: float

    @classmethod
    def of(cls, gradients: Tensor, shrinkage: float = ROUNDING_SHRINKAGE) -> Metric:
        """From gradients (m, n)."""
        blocks = []
        mean = float(gradients.double().square().mean())
        for start in range(0, gradients.shape[1], BLOCK):
            rows = gradients[:, start : start + BLOCK].double()
            moment = second_moment(rows, shrinkage, mean)
            order = moment.diag().argsort(descending=True, stable=True)
            inverse = torch.linalg.inv(moment[order][:, order])
            root = torch.linalg.cholesky((inverse + inverse.T) / 2).T.float()
            blocks.append((order + start, root))
        return cls(tuple(blocks), mean)


def second_moment(rows: Tensor, shrinkage: float = SHRINKAGE, mean: float | None = None) -> Tensor:
    """The mean of g g^T over rows (m, n), drawn towards its diagonal, and that towards the mean: (n, n)."""
    rows = rows.double()
    moment = rows.T @ rows / len(rows)
    mean = float(moment.diag().mean()) if mean is None else mean
    mean = mean if mean > 0 else 1.0
    diagonal = 0.5 * moment.diag() + 0.5 * mean
    return (1 - shrinkage) * moment + torch.diag(shrinkage * diagonal + 1e-6 * mean)


def rounded(vectors: Sequence[Tensor], metrics: Sequence[Metric], steps: Sequence[float]) -> list[Tensor]:
    """Each vector (n,) in whole numbers of its step, rounded in its metric."""
    results = [torch.zeros_like(vector, dtype=torch.float32) for vector in vectors]
    alike: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
    for i, metric in enumerate(metrics):
        for entries, root in metric.blocks:
            alike.setdefault(len(entries), []).append((i, entries, root))
    chunks = [found[k : k + CHUNK] for found in alike.values() for k in range(0, len(found), CHUNK)]
    for blocks in chunks:
        values = torch.stack([vectors[i].float()[entries] / steps[i] for i, entries, _ in blocks])
        roots = torch.stack([root for _, _, root in blocks])
        for (i, entries, _), whole in zip(blocks, _feedback(values, roots), strict=True):
            results[i][entries] = whole
    return results


def _feedback(values: Tensor, roots: Tensor) -> Tensor:
    """values (k, b) in units of the step, roots (k, b, b): the whole numbers (k, b)."""
    values, whole = values.clone(), torch.zeros_like(values)
    for j in range(values.shape[1]):
        entry = values[:, j]
        whole[:, j] = entry.sign() * (entry.abs() + 0.5 - DEAD_ZONE).floor().clamp(min=0)
        error = (entry - whole[:, j]) / roots[:, j, j]
        values[:, j + 1 :] -= error.unsqueeze(1) * roots[:, j, j + 1 :]
    return whole
