"""What the modules of adapters of all kinds add to a weight: LoRA, LoCon, LoHa, LoKr, DoRA, whole matrices.

Every function gives the addition to a weight (o, i, ...) as factors of the matrix (o, i ...).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from conceptkit.concepts.delta import Factors
from conceptkit.errors import BadBlob

Roles = Mapping[str, Tensor]
EXACT = 1e-6
"""Share of a matrix's norm below which what a lower rank leaves out is rounding."""


def lora(roles: Roles) -> Factors:
    """(alpha / r) up down, Hu et al. 2106.09685; with `mid`, the core of a convolution, in Tucker form."""
    up, down = roles["up"], roles["down"]
    rank = down.shape[0]
    if "mid" in roles:
        whole = torch.einsum("mnwh,im,nj->ijwh", roles["mid"], up.flatten(1), down.flatten(1))
        return Factors(weight=whole.flatten(1) * _scale(roles, rank))
    return Factors(up.flatten(1) * _scale(roles, rank), down.flatten(1))


def loha(roles: Roles) -> Factors:
    """(alpha / r) (a1 b1) * (a2 b2), Hyeon-Woo et al. 2108.06098; by factors where their rank r^2 is low."""
    a1, b1, a2, b2 = (roles[name] for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
    scale = _scale(roles, b1.shape[0])
    if "hada_t1" in roles:
        first, second = (_tucker(roles[t], a, b) for t, a, b in (("hada_t1", a1, b1), ("hada_t2", a2, b2)))
        return Factors(weight=(first * second).flatten(1) * scale)
    up = torch.einsum("oi,oj->oij", a1, a2).flatten(1)
    down = torch.einsum("id,jd->ijd", b1, b2).flatten(0, 1)
    if up.shape[1] < min(up.shape[0], down.shape[1]):
        return Factors(up * scale, down)
    return Factors(weight=(a1 @ b1) * (a2 @ b2) * scale)


def lokr(roles: Roles) -> Factors:
    """The Kronecker product of two small matrices, each whole or of low rank (LyCORIS, 2309.14859)."""
    sides, rank = [], 0
    for side in ("lokr_w1", "lokr_w2"):
        if side in roles:
            sides.append(roles[side])
            continue
        a, b = roles[f"{side}_a"], roles[f"{side}_b"]
        core = roles.get("lokr_t2") if side == "lokr_w2" else None
        rank = b.shape[0]
        flat = (a.flatten(1) @ b.flatten(1)).reshape(len(a), *b.shape[1:])
        sides.append(flat if core is None else _tucker(core, a, b))
    first, second = sides
    if second.ndim == 4 and first.ndim == 2:
        first = first[:, :, None, None]
    return Factors(weight=torch.kron(first, second).flatten(1) * (_scale(roles, rank) if rank else 1.0))


def difference(roles: Roles) -> Factors:
    """A whole difference of weights."""
    return low_rank_where_exact(roles["diff"].flatten(1))


def decomposed(factors: Factors, weight: Tensor, magnitude: Tensor) -> Factors:
    """m (W + D) / |W + D| - W of a weight W (o, d): DoRA, Liu et al. 2402.09353.

    magnitude: (o, 1, ...) for rows, or (1, i, ...) for the columns that belong to each input.
    Raises BadBlob when it has another size.
    """
    flat = weight.flatten(1)
    moved = flat + factors.dense()
    if magnitude.ndim == 1 or magnitude.shape[0] == len(flat):
        norms, sizes = moved.norm(dim=1, keepdim=True), magnitude.reshape(-1, 1)
        scaled = moved * (sizes / norms.clamp(min=1e-12)) if len(sizes) == len(moved) else None
    else:
        blocks = moved.unflatten(1, (weight.shape[1], -1))
        norms, sizes = blocks.transpose(0, 1).flatten(1).norm(dim=1), magnitude.flatten()
        fits = len(sizes) == len(norms)
        scaled = (blocks * (sizes / norms.clamp(min=1e-12))[:, None]).flatten(1) if fits else None
    if scaled is None:
        raise BadBlob(f"its magnitudes {tuple(magnitude.shape)} do not fit a weight {tuple(weight.shape)}")
    return Factors(weight=scaled - flat)


def low_rank_where_exact(delta: Tensor) -> Factors:
    """(o, d) as factors of the rank that it has, where they are the smaller ones, else as it is."""
    left, sizes, right = torch.linalg.svd(delta.double(), full_matrices=False)
    left_out = sizes.square().flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, int((left_out > EXACT * left_out[0]).sum()))
    if rank * sum(delta.shape) >= delta.numel():
        return Factors(weight=delta)
    return Factors((left[:, :rank] * sizes[:rank]).float(), right[:rank].float())


def _scale(roles: Roles, rank: int) -> float:
    return float(roles["alpha"]) / rank if "alpha" in roles else 1.0


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """core (r, r, h, w), a (r, o), b (r, i): (o, i, h, w)."""
    return torch.einsum("ijkl,jr,ip->prkl", core, b, a)


KINDS: dict[str, tuple[tuple[frozenset[str], ...], Callable[[Roles], Factors]]] = {
    "LoRA": ((frozenset({"up", "down"}),), lora),
    "LoHa": ((frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),), loha),
    "LoKr": (
        tuple(
            frozenset(first + second)
            for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
            for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
        ),
        lokr,
    ),
    "difference": ((frozenset({"diff"}),), difference),
    "compressed difference": ((frozenset({"u", "v"}),), lambda roles: Factors(roles["u"], roles["v"])),
    "whole matrix": ((frozenset({"whole"}),), lambda roles: Factors(weight=roles["whole"].flatten(1))),
}
"""Kind -> what its modules hold, in any of these ways, and what they add."""
EXTRA = {"LoRA": {"mid"}, "LoHa": {"hada_t1", "hada_t2"}, "LoKr": {"lokr_t2"}}
BESIDE = {"alpha", "magnitude"}


def kind_of(roles: Collection[str]) -> str | None:
    """The kind of a module that holds tensors in these roles, None where none fits."""
    given = set(roles) - BESIDE
    for kind, (ways, _) in KINDS.items():
        extra = EXTRA.get(kind, set())
        whole = not given & extra or given >= extra  # a core that is there in part has no meaning
        if whole and frozenset(given - extra) in ways and not given >= {"lokr_w2", "lokr_t2"}:
            return kind
    return None
