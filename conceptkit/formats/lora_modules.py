"""A delta as the modules of a LoRA file: one rank for all, fused where its programs fuse maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta, Factors
from conceptkit.concepts.kernels import kernels_of
from conceptkit.errors import ConceptError
from conceptkit.formats.module_names import NAMES, Names, Place, family_by_maps

Pair = tuple[Tensor, Tensor]
MLP_RATIO = 4
"""Outputs of the MLP of a fused module of FLUX, by those of each of its queries, keys and values."""


def family_of(concept: Concept) -> str:
    """The family of the base that a concept is for, a key of `NAMES`."""
    told = concept.recipe.get("family")
    if isinstance(told, str) and told in NAMES:
        return told
    widths = [f.shape[1] for name, f in concept.delta.items() if name.endswith("attn2.to_k")]
    widths += [] if concept.rows is None else [concept.rows.shape[1]]
    encoders = max((len(rows) for rows in concept.tokens.values()), default=1)
    return family_by_maps(list(concept.delta), max(widths, default=0), encoders)


def kohya_modules(concept: Concept, names: Names) -> dict[str, Pair]:
    """Key -> up and down of a delta's modules, at one rank; convolutions as (o, r, 1, 1) and (r, i, h, w).

    Raises ConceptError when the files of a family have no place for a map.
    """
    placed: dict[str, dict[int, Factors]] = {}
    kernels = kernels_of(concept)
    wide: dict[str, tuple[int, int]] = {}
    parts: dict[str, int] = {}
    for name, factors in sorted(concept.delta.items()):
        place = names.place(name)
        if place is None:
            raise ConceptError(
                f"{concept.name} changes {name}, for which kohya's files have no name; export it for "
                "diffusers"
            )
        _put(placed, place, factors, name)
        parts[place.key] = place.parts
        if name in kernels:
            wide[place.key] = kernels[name]
    pairs = {key: fused(held, parts[key]) for key, held in placed.items()}
    return {key: as_convolution(pair, wide.get(key)) for key, pair in one_rank(pairs).items()}


def one_rank(pairs: Mapping[str, Pair], least: int = 0) -> dict[str, Pair]:
    """The same products at one rank, padded with zeros: programs that drop alphas of modules scale by 1."""
    rank = max((up.shape[1] for up, _ in pairs.values()), default=0)
    rank = max(rank, least)
    return {
        key: (F.pad(up, (0, rank - up.shape[1])), F.pad(down, (0, 0, 0, rank - len(down))))
        for key, (up, down) in pairs.items()
    }


def fused(held: Mapping[int, Factors], parts: int) -> Pair:
    """up (o, r), down (r, d) of a module whose outputs are those of `parts` maps, one after another.

    held: number of a part -> its factors; parts that are absent add 0. Maps of one down keep its rank, others
    stand in blocks, each with ranks of its own.
    """
    if parts == 1:
        return held[0].low_rank(narrow=True)
    sizes = _sizes({number: factors.shape[0] for number, factors in held.items()}, parts)
    pairs = {number: factors.low_rank(narrow=True) for number, factors in sorted(held.items())}
    first = next(iter(pairs.values()))[1]
    if all(down.shape == first.shape and torch.equal(down, first) for _, down in pairs.values()):
        absent = [first.new_zeros(size, len(first)) for size in sizes]
        return torch.cat([pairs[i][0] if i in pairs else absent[i] for i in range(parts)]), first
    rank, at = sum(len(down) for _, down in pairs.values()), 0
    up = first.new_zeros(sum(sizes), rank)
    for number, (own, down) in pairs.items():
        begin = sum(sizes[:number])
        up[begin : begin + sizes[number], at : at + len(down)] = own
        at += len(down)
    return up, torch.cat([down for _, down in pairs.values()])


def split(pair: Pair, sizes: Sequence[int]) -> list[Factors | None]:
    """What `fused` joined: each part's factors, without ranks that it does not use; None where it adds 0."""
    up, down = pair
    found: list[Factors | None] = []
    for block in up.split(list(sizes)):
        used = block.any(dim=0)
        found.append(Factors(block[:, used].contiguous(), down[used].contiguous()) if used.any() else None)
    return found


def without_padding(factors: Factors) -> Factors:
    """The same product without the zeros that `one_rank` put behind it; at least one rank stays."""
    if factors.up is None or factors.down is None:
        return factors
    used = (factors.up.any(dim=0) & factors.down.any(dim=1)).nonzero()
    rank = int(used.max()) + 1 if len(used) else 1
    return Factors(factors.up[:, :rank].contiguous(), factors.down[:rank].contiguous())


def as_convolution(pair: Pair, kernel: tuple[int, int] | None) -> Pair:
    """Factors of a convolution's flat weight (o, i h w) as programs store them; others stay."""
    if kernel is None:
        return pair
    up, down = pair
    return up[:, :, None, None], down.unflatten(1, (-1, *kernel))


def half_where_exact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in half precision where that changes none of them, else in float32."""
    plain = {name: tensor.detach().float() for name, tensor in tensors.items()}
    halves = {name: tensor.half() for name, tensor in plain.items()}
    exact = all(torch.equal(halves[name].float(), tensor) for name, tensor in plain.items())
    return halves if exact else plain


def without_zeros(delta: Delta) -> Delta:
    """The maps of a delta to which it adds something."""
    return delta.only([name for name, f in delta.items() if all(factor.any() for factor in f)])


def _put(placed: dict[str, dict[int, Factors]], place: Place, factors: Factors, name: str) -> None:
    held = placed.setdefault(place.key, {})
    if place.part in held:
        raise ConceptError(f"Two maps would be {place.key} in the file, {name} for one; export for diffusers")
    held[place.part] = factors


def _sizes(known: Mapping[int, int], parts: int) -> list[int]:
    """Outputs of each part; those of absent parts follow from the others."""
    ratios = [1] * parts if parts == len("qkv") else [1, 1, 1, MLP_RATIO]
    number, size = next(iter(known.items()))
    return [known.get(i, size * ratio // ratios[number]) for i, ratio in enumerate(ratios)]
