"""A concept's numbers at any coarseness: factors turned to their principal ranks, rounded, and refitted.

In the metric of `sensitivity` a factor's entry of sensitivity s costs s e^2. One number, the step, sets all
steps: an entry's is step / sqrt(s), so that all entries are equally wrong where it counts, and those that
matter less than that become zeros. That is reverse water-filling over maps and ranks (Cover and Thomas,
10.3.3).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from conceptkit.compression.rounding import Metric, rounded, second_moment
from conceptkit.compression.sensitivity import Sensitivity
from conceptkit.concepts.codec.compact import Coded, Layout, coded
from conceptkit.concepts.codec.symbols import Vector, worth
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta, Factors
from conceptkit.concepts.gates import maps_without_text, rank_gates
from conceptkit.errors import BadRecipe

FULL_ENERGY = 0.999
"""Of a full matrix, what its ranks hold before they are weighed."""
MOST_FULL_RANK = 32
TOKEN_STEP = 0.5
"""Of an embedding's entries, whose errors cannot be made good by others, relative to a factor's."""
LARGEST_TOKEN_STEP = 0.7
"""In units of an embedding's own spread: coarser, it would be another word."""


def low_rank(concept: Concept) -> Concept:
    """The same concept with a low rank for every full matrix, and with no rows, which its words give
    again."""
    maps: dict[str, Factors] = {}
    for name, factors in concept.delta.items():
        maps[name] = factors if factors.down is not None else _cut(factors)
    keys: dict[str, Hashable] = {name: concept.delta.shared.get(name, ("own", name)) for name in maps}
    return replace(concept, delta=Delta(maps, keys), rows=None, coded=None)


def _cut(factors: Factors) -> Factors:
    sizes = torch.linalg.svdvals(factors.first.double()).square()
    held = sizes.cumsum(0) / sizes.sum().clamp(min=1e-300)
    return factors.truncated(min(int((held < FULL_ENERGY).sum()) + 1, MOST_FULL_RANK))


def rank_blocks(concept: Concept) -> dict[str, list[int]]:
    """Map -> how its ranks may be turned into one another: each concept's in a merge among themselves."""
    wide = set(maps_without_text(concept.delta))
    gates = [gate.ranks for gate in rank_gates(concept) if gate.ranks]
    routes = [ranks for ranks in concept.routing.ranks if ranks] if concept.routing else []
    blocks = {}
    for name, factors in concept.delta.items():
        rank = factors.shape and len(factors.low_rank()[1])
        own = gates if name in wide else ([] if name.partition(".")[0].startswith("text_encoder") else routes)
        blocks[name] = own if sum(own) == rank else [rank]
    return blocks


@dataclass(eq=False)
class _Group:
    """Maps that share a down, in their principal ranks: ups (o, r) by map, down (r, d), and their metrics.

    moment (d, d): of the down's gradients, all ranks together.
    """

    names: list[str]
    ups: dict[str, Tensor]
    down: Tensor
    moment: Tensor
    of_ups: dict[str, list[Metric]]
    of_down: list[Metric]


class Quantizer:
    """Makes a concept's numbers as coarse as asked; what does not depend on that is worked out once."""

    def __init__(self, concept: Concept, measured: Sensitivity) -> None:
        if concept.reference is not None:
            raise BadRecipe(
                f"{concept.name} looks at its reference photo, whose numbers are stored as they are; "
                "learn it again with --method custom to store it in fewer bytes"
            )
        self.concept, self.measured = concept, measured
        blocks = rank_blocks(concept)
        members: dict[Hashable, list[str]] = {}
        for name in sorted(concept.delta):
            members.setdefault(concept.delta.shared[name], []).append(name)
        self.groups = [
            _group(concept.delta, key, names, measured, blocks[names[0]]) for key, names in members.items()
        ]

    def at(self, step: float, parts: Sequence[str] | None = None) -> Coded:
        """The numbers at a step, in units in which the concept's whole effect is 1.

        parts: the maps that are kept; None: all. The others become zeros, which take no bytes.
        """
        unit = step * math.sqrt(self.measured.effect)
        downs = _round_all(
            [
                (row, metric)
                for group in self.groups
                for row, metric in zip(group.down, group.of_down, strict=True)
            ],
            unit,
        )
        tasks, places = [], []
        rows = iter(downs)
        for group in self.groups:
            own = [next(rows) for _ in group.of_down]
            values = torch.stack([_worth(vector) for vector in own])
            for name in group.names:
                up = _refitted(group, name, values)
                if parts is not None and name not in parts:
                    up = torch.zeros_like(up)
                tasks += list(zip(up.T, group.of_ups[name], strict=True))
                places.append((name, len(own)))
        columns = iter(_round_all(tasks, unit))
        ups = {name: [next(columns) for _ in range(rank)] for name, rank in places}
        return self._coded(downs, ups, unit)

    def _coded(self, downs: Sequence[Vector], ups: Mapping[str, list[Vector]], unit: float) -> Coded:
        rows = iter(downs)
        by_key = {}
        for group in self.groups:
            own = [next(rows) for _ in group.of_down]
            used = [any(ups[name][k].values.any() for name in group.names) for k in range(len(own))]
            key = self.concept.delta.shared[group.names[0]]
            by_key[key] = [row if use else _zeros(row) for row, use in zip(own, used, strict=True)]
        layout = Layout.of(self.concept.delta, self.concept.tokens)
        ordered = [row for shape in layout.downs() for row in by_key[self.concept.delta.shared[shape.name]]]
        ordered += [column for shape in layout.maps for column in ups[shape.name]]
        return coded(layout, [*ordered, *self._tokens(unit)])

    def _tokens(self, unit: float) -> list[Vector]:
        found = []
        for token, encoders in sorted(self.concept.tokens.items()):
            for number, rows in enumerate(encoders):
                scale = self.measured.tokens.get((token, number), 0.0)
                for row in rows.float():
                    most = LARGEST_TOKEN_STEP * float(row.std(correction=0))
                    wanted = TOKEN_STEP * unit / math.sqrt(scale) if scale else most
                    exponent = _exponent(min(wanted, most) or 1.0)
                    found.append(Vector((row / worth(exponent)).round().long().numpy(), exponent))
        return found


def _group(
    delta: Delta, key: Hashable, names: list[str], measured: Sensitivity, blocks: Sequence[int]
) -> _Group:
    """The maps of one down with their ranks turned: R down and up R^-1, principal in the metric."""
    down = delta[names[0]].low_rank()[1].double()
    ups = {name: delta[name].first.double() for name in names}
    of_down = measured.downs[key].double()
    moment = second_moment(of_down.flatten(0, 1))
    turn = torch.block_diag(*(_turn(block, down, ups, measured, moment) for block in _slices(blocks)))
    back = torch.linalg.inv(turn)
    of_down = torch.einsum("rk,nrd->nkd", back, of_down)
    metrics = {}
    for name in names:
        gradients = torch.einsum("kr,nor->nok", turn, measured.ups[name].double())
        metrics[name] = [Metric.of(gradients[:, :, k]) for k in range(len(down))]
    return _Group(
        names,
        {name: up @ back for name, up in ups.items()},
        turn @ down,
        moment,
        metrics,
        [Metric.of(of_down[:, k]) for k in range(len(down))],
    )


def _turn(
    block: slice, down: Tensor, ups: Mapping[str, Tensor], measured: Sensitivity, moment: Tensor
) -> Tensor:
    """R (b, b) of some ranks: R down is orthonormal in the inputs' metric, up R^-1 orthogonal in the
    outputs'."""
    rows = down[block]
    inner = rows @ moment @ rows.T
    scale = float(inner.trace()) or 1.0
    lower = torch.linalg.cholesky(inner + 1e-9 * scale * torch.eye(len(inner), dtype=torch.float64))
    size = torch.zeros_like(inner)
    for name, up in ups.items():
        gradients = measured.ups[name].double().transpose(1, 2).flatten(0, 1)
        answers = gradients @ (up[:, block] @ lower)
        size += answers.T @ answers / len(gradients)
    _, vectors = torch.linalg.eigh(size)
    return vectors.flip(1).T @ torch.linalg.inv(lower)


def _refitted(group: _Group, name: str, values: Tensor) -> Tensor:
    """The up (o, r) that with a rounded down comes nearest to the map: zero where the down is."""
    up, values = group.ups[name], values.double()
    live = values.any(dim=1)
    found = torch.zeros_like(up)
    if live.any():
        kept = values[live]
        inner = kept @ group.moment @ kept.T
        inner = inner + 1e-9 * inner.trace() * torch.eye(len(inner), dtype=torch.float64)
        wanted = up @ (group.down @ group.moment @ kept.T)
        found[:, live] = torch.linalg.solve(inner, wanted.T).T
    return found


def _round_all(tasks: Sequence[tuple[Tensor, Metric]], unit: float) -> list[Vector]:
    exponents = [
        _exponent(unit / math.sqrt(metric.scale)) if metric.scale > 0 else None for _, metric in tasks
    ]
    steps = [worth(exponent) if exponent is not None else math.inf for exponent in exponents]
    whole = rounded([vector for vector, _ in tasks], [metric for _, metric in tasks], steps)
    return [
        Vector(values.long().numpy(), exponent or 0)
        for values, exponent in zip(whole, exponents, strict=True)
    ]


def _exponent(step: float) -> int:
    """The nearest step that can be stored, in quarters of an octave."""
    return max(-200, min(200, round(4 * math.log2(step))))


def _worth(vector: Vector) -> Tensor:
    return torch.from_numpy(vector.values).double() * worth(vector.step)


def _zeros(vector: Vector) -> Vector:
    return Vector(vector.values * 0, vector.step)


def _slices(blocks: Sequence[int]) -> list[slice]:
    ends = torch.tensor(list(blocks)).cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, blocks, strict=True)]
