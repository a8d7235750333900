"""Deltas: what a concept adds to the linear maps of a base, and their algebra.

A delta maps the name of a linear map of the UNet to the factors whose product (o, d) is added to that map:
`(weight,)` is the full matrix, `(up, down)` are (o, r) and (r, d). Maps that share one `down` store it once.
Deltas lie on keys and values of cross-attention, and some on other maps too; those of a text encoder have its
name in front, "text_encoder.encoder.layers.0.self_attn.q_proj".
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Factors = tuple[Tensor, ...]
Delta = Mapping[str, Factors]
READS_TEXT = ("attn2.to_k", "attn2.to_v")
"""Endings of the maps that read text features; the others of a wide delta read what the layer before made."""


def apply(factors: Factors, rows: Tensor) -> Tensor:
    """What one map's factors add at the features `rows` (s, d): (s, o), in the precision of the rows."""
    for factor in reversed(factors):
        rows = rows @ factor.to(rows).T
    return rows


def delta_rows(delta: Delta, sizes: Mapping[str, int], rows: Tensor) -> Tensor:
    """C D^T (s, O) for features `rows` C (s, d), stacked as `sizes` (map -> o) says; absent maps add 0."""
    absent = {name: rows.new_zeros(len(rows), o) for name, o in sizes.items() if name not in delta}
    return torch.cat([absent[name] if name in absent else apply(delta[name], rows) for name in sizes], dim=1)


def delta_rank(delta: Delta) -> int:
    """The largest rank among the maps; 0 when nothing is added."""
    return max((min(min(factor.shape) for factor in factors) for factors in delta.values()), default=0)


def delta_dense(factors: Factors) -> Tensor:
    """The (o, d) matrix itself, for one map: tests and full-matrix formats need it, composing does not."""
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1]


ENCODERS = ("text_encoder", "text_encoder_2")
"""Maps of these parts of a pipeline have the part's name in front; the others are the UNet's."""


def by_component(delta: Delta) -> dict[str, dict[str, Factors]]:
    """The delta of each part of a pipeline, "unet" or a text encoder, by the names the maps have there."""
    found: dict[str, dict[str, Factors]] = {}
    for name, factors in delta.items():
        place, _, rest = name.partition(".")
        inside = place in ENCODERS
        found.setdefault(place if inside else "unet", {})[rest if inside else name] = factors
    return found


def add(deltas: Sequence[Delta]) -> Delta:
    """D_1 + D_2 + ...: low ranks side by side, full matrices added where a concept has one."""
    shared: dict[tuple[int, ...], Tensor] = {}
    return {name: _add([delta[name] for delta in deltas if name in delta], shared) for name in names(deltas)}


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


def names(deltas: Sequence[Delta]) -> list[str]:
    return list(dict.fromkeys(name for delta in deltas for name in delta))


def only(delta: Delta, names: Mapping[str, object]) -> Delta:
    """The part of a delta on these maps."""
    return {name: factors for name, factors in delta.items() if name in names}


def scaled(delta: Delta, weight: float) -> Delta:
    """The delta times a weight; what maps share stays shared."""
    return {name: (weight * factors[0], *factors[1:]) for name, factors in delta.items()}


def beside(delta: Delta, sizes: Mapping[str, int]) -> Delta:
    return {name: factors for name, factors in delta.items() if name not in sizes}


def same(some: Delta, others: Delta) -> bool:
    return some.keys() == others.keys() and all(
        len(factors) == len(others[name]) and all(map(torch.equal, factors, others[name]))
        for name, factors in some.items()
    )


def stacked(deltas: Sequence[Delta], sizes: Mapping[str, int]) -> tuple[Delta, list[int]]:
    """All deltas in one, the ranks of one after those of the other, and how many belong to each.

    sizes: map -> o, of the maps to stack, of any widths; others stay out. The product of a map's factors is
    the sum of the deltas. A concept has the same number of ranks in all maps, zeros where it needs fewer, so
    that whoever draws can tell them from the others'.
    """
    kept: dict[tuple[int, int, int], Tensor] = {}
    ranks = [
        max((low_rank(f)[1].shape[0] for name, f in delta.items() if name in sizes), default=0)
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
            up, down = low_rank(factors) if factors else (torch.zeros(o, 0), torch.zeros(0, width))
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


def low_rank(factors: Factors) -> Factors:
    """(up, down) with the same product; a full matrix (o, d) has the identity (d, d) beside it."""
    return factors if len(factors) == 2 else (factors[0], torch.eye(factors[0].shape[1]))
