"""Deltas side by side in one, where it stays known which of its ranks are whose."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from conceptkit.concept import Delta, Factors


def stacked(deltas: Sequence[Delta], sizes: Mapping[str, int]) -> tuple[Delta, list[int]]:
    """All deltas in one, the ranks of one after those of the other, and how many belong to each.

    sizes: map -> o, of the maps to stack, of any widths; others stay out. The product of a map's factors is
    the sum of the deltas. A concept has the same number of ranks in all maps, zeros where it needs fewer, so
    that whoever draws can tell them from the others'.
    """
    kept: dict[tuple[int, int, int], Tensor] = {}
    ranks = [
        max((_low_rank(f)[1].shape[0] for name, f in delta.items() if name in sizes), default=0)
        for delta in deltas
    ]
    merged: dict[str, Factors] = {}
    shared: dict[tuple[int, ...], Tensor] = {}
    for name, o in sizes.items():
        present = [delta.get(name) for delta in deltas]
        if not any(present):
            continue
        width = next(factors[-1].shape[1] for factors in present if factors)
        ups, downs = [], []
        for factors, rank in zip(present, ranks, strict=True):
            up, down = _low_rank(factors) if factors else (torch.zeros(o, 0), torch.zeros(0, width))
            ups.append(F.pad(up, (0, rank - up.shape[1])))
            whose = id(factors[1]) if factors and len(factors) == 2 else -len(down) - 1
            key = (whose, rank, down.shape[1])
            if key not in kept:
                kept[key] = F.pad(down, (0, 0, 0, rank - len(down)))
            downs.append(kept[key])
        key_all = tuple(map(id, downs))
        if key_all not in shared:
            shared[key_all] = torch.cat(downs)
        merged[name] = (torch.cat(ups, dim=1), shared[key_all])
    return merged, ranks


def _low_rank(factors: Factors) -> Factors:
    """(up, down) with the same product; a full matrix (o, d) has the identity (d, d) beside it."""
    return factors if len(factors) == 2 else (factors[0], torch.eye(factors[0].shape[1]))
