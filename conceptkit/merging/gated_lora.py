"""What concepts change beside keys and values of cross-attention, and who in a merge has which part of it.

Maps that read what the layer before made cannot tell whose words a prompt holds. So a concept's own part of
them is a voice: so many of their ranks, which act on a picture only if its prompt says one of its words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta
from conceptkit.concepts.gates import RANK_GATES, RankGate, maps_without_text, rank_gates
from conceptkit.merging.parts import Part, beyond, twins


@dataclass(frozen=True, eq=False)
class BesideText:
    """The wide part of a merge, and what its recipe says of it."""

    delta: Delta
    recipe: Mapping[str, Any] = field(default_factory=dict)


def joined(parts: Sequence[Part], sizes: Mapping[str, int]) -> BesideText:
    """What the parts of a merge change beside the maps in `sizes`, side by side, each with its own voices.

    Where none of them has a voice it is their sum. What was learned together counts once.
    """
    own = beyond(parts, sizes)
    told = [rank_gates(part.concept) for part in parts]
    if not any(told):
        return BesideText(Delta.sum(own))
    inside = [maps_without_text(delta) for delta in own]
    outputs = {name: factors.shape[0] for delta in inside for name, factors in delta.items()}
    delta, ranks = Delta.stacked(inside, outputs)
    listed: list[list[Any]] = []
    for i, (count, its) in enumerate(zip(ranks, told, strict=True)):
        if not count:
            continue
        always = (RankGate(count, None),)
        also = [told[k] or always for k in twins(parts, i, sizes)]
        for voice, *others in zip(its or always, *also, strict=True):
            words = voice.words
            for other in others:
                words = None if words is None or other.words is None else (*words, *other.words)
            listed.append([voice.ranks, None if words is None else sorted(set(words))])
    upstream = Delta.sum([whole.without(outputs) for whole in own])
    return BesideText(delta | upstream, {RANK_GATES: listed})


def recorded_gates(concept: Concept) -> dict[str, Any]:
    """What a merge's recipe says of the voices of a concept that it takes as it is."""
    found = rank_gates(concept)
    return (
        {RANK_GATES: [[v.ranks, None if v.words is None else list(v.words)] for v in found]} if found else {}
    )
