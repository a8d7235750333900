"""Routed composition: keys and values are maps of single tokens, so each can read its own concept's delta."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from conceptkit.baselines import add
from conceptkit.concept import Delta, Factors


def side_by_side(deltas: Sequence[Delta], sizes: Mapping[str, int]) -> tuple[Delta, list[int]]:
    """All deltas in one, the ranks of one after those of the other, and how many belong to each.

    The product of a map's factors is the sum of the deltas; a route reads its own ranks alone. A concept has
    the same number of ranks in all key and value maps, zeros where it needs fewer; other maps are added up.
    """
    kept: dict[tuple[int, int], Tensor] = {}
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
            ups.append(torch.nn.functional.pad(up, (0, rank - up.shape[1])))
            key = (id(factors[1]) if factors and len(factors) == 2 else -len(down) - 1, rank)
            if key not in kept:
                kept[key] = torch.nn.functional.pad(down, (0, 0, 0, rank - len(down)))
            downs.append(kept[key])
        key_all = tuple(map(id, downs))
        if key_all not in shared:
            shared[key_all] = torch.cat(downs)
        merged[name] = (torch.cat(ups, dim=1), shared[key_all])
    wide = [{name: f for name, f in delta.items() if name not in sizes} for delta in deltas]
    return {**merged, **add(wide)}, ranks


def _low_rank(factors: Factors) -> Factors:
    """(up, down) with the same product; a full matrix (o, d) has the identity (d, d) beside it."""
    return factors if len(factors) == 2 else (factors[0], torch.eye(factors[0].shape[1]))
