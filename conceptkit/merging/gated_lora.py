"""What concepts change beside keys and values of cross-attention, and who in a merge has which part of it.

Maps that read what the layer before made cannot tell whose words a prompt holds. So a concept's own part of
them is behind a gate: so many ranks, which act on a picture only if its prompt says one of its words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta
from conceptkit.concepts.gates import RANK_GATES, RankGate, maps_without_text, rank_gates
from conceptkit.concepts.kernels import recorded_kernels
from conceptkit.merging.parts import Part, beyond, twins


@dataclass(frozen=True, eq=False)
class BesideText:
    """The wide part of a merge, and what its recipe says of it."""

    delta: Delta
    recipe: Mapping[str, Any] = field(default_factory=dict)


def joined(parts: Sequence[Part], sizes: Mapping[str, int]) -> BesideText:
    """What the parts of a merge change beside the maps in `sizes`, side by side, each with its own gates.

    Where none of them has a gate it is their sum. What was learned together counts once.
    """
    own = beyond(parts, sizes)
    gates = [rank_gates(part.concept) for part in parts]
    kernels = recorded_kernels(part.concept for part in parts)
    if not any(gates):
        return BesideText(Delta.sum(own), kernels)
    inside = [maps_without_text(delta) for delta in own]
    outputs = {name: factors.shape[0] for delta in inside for name, factors in delta.items()}
    delta, ranks = Delta.stacked(inside, outputs)
    listed: list[list[Any]] = []
    for i, (count, its) in enumerate(zip(ranks, gates, strict=True)):
        if not count:
            continue
        always = (RankGate(count, None),)
        also = [gates[k] or always for k in twins(parts, i, sizes)]
        for gate, *others in zip(its or always, *also, strict=True):
            words = gate.words
            for other in others:
                words = None if words is None or other.words is None else (*words, *other.words)
            whose = None if words is None else tuple(sorted(set(words)))
            listed.append(RankGate(gate.ranks, whose).to_recipe())
    upstream = Delta.sum([whole.without(outputs) for whole in own])
    return BesideText(delta | upstream, {RANK_GATES: listed, **kernels})


def recorded_gates(concept: Concept) -> dict[str, Any]:
    """What a merge's recipe says of the gates of a concept that it takes as it is."""
    gates = rank_gates(concept)
    return {RANK_GATES: [gate.to_recipe() for gate in gates]} if gates else {}
