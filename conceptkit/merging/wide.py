"""What concepts change beside keys and values of cross-attention, and who in a merge has which part of it.

Maps that read what the layer before made cannot tell whose words a prompt holds. So a concept's own part of
them is a voice: so many of their ranks, which act on a picture only if its prompt says one of its words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conceptkit.concept import READS_TEXT, Concept, Delta
from conceptkit.errors import BadBlob
from conceptkit.kv_delta import ENCODERS
from conceptkit.merging.baselines import add
from conceptkit.merging.parts import Part, beyond, twins
from conceptkit.merging.stacking import stacked

VOICES = "voices"
"""Of a merge's recipe: [ranks, words] of each voice in turn; without words it always speaks."""


@dataclass(frozen=True)
class Voice:
    """`ranks` of the maps beside keys and values, and the words that let them act; None: they always do."""

    ranks: int
    words: tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Wide:
    """The wide part of a merge, and what its recipe says of it."""

    delta: Delta
    recipe: Mapping[str, Any] = field(default_factory=dict)


def reads_text(name: str) -> bool:
    """Whether a map belongs to the reading of prompts: keys and values of cross-attention, text encoders."""
    return name.endswith(READS_TEXT) or name.partition(".")[0] in ENCODERS


def maps(delta: Delta) -> Delta:
    """The part of a delta on maps of the UNet that read no text."""
    return {name: factors for name, factors in delta.items() if not reads_text(name)}


def voices(concept: Concept) -> tuple[Voice, ...]:
    """Whose the ranks of a concept's wide maps are, in turn; () where they act on every picture.

    Raises BadBlob when a merge says so in a way that does not fit its maps.
    """
    found = list(maps(concept.delta).values())
    if not found:
        return ()
    sizes = {factors[-1].shape[0] if len(factors) == 2 else 0 for factors in found}
    if VOICES not in concept.recipe:
        own = bool(concept.recipe.get("wide")) and 0 not in sizes
        return (Voice(max(sizes), tuple(concept.words)),) if own else ()
    try:
        told = tuple(
            Voice(int(ranks), None if words is None else tuple(map(str, words)))
            for ranks, words in concept.recipe[VOICES]
        )
    except (TypeError, ValueError) as error:
        raise BadBlob(
            f"What {concept.name} says of its voices is damaged; import or compose it again"
        ) from error
    known = all(word in concept.words for voice in told for word in voice.words or ())
    if not known or any(voice.ranks < 0 for voice in told) or sizes != {sum(voice.ranks for voice in told)}:
        raise BadBlob(f"The voices of {concept.name} do not fit its maps; import or compose it again")
    return told


def together(parts: Sequence[Part], sizes: Mapping[str, int]) -> Wide:
    """What the parts of a merge change beside the maps in `sizes`, side by side, each with its own voices.

    Where none of them has a voice it is their sum. What was learned together counts once.
    """
    own = beyond(parts, sizes)
    told = [voices(part.concept) for part in parts]
    if not any(told):
        return Wide(add(own))
    inside = [maps(delta) for delta in own]
    outputs = {name: len(factors[0]) for delta in inside for name, factors in delta.items()}
    delta, ranks = stacked(inside, outputs)
    listed: list[list[Any]] = []
    for i, (count, its) in enumerate(zip(ranks, told, strict=True)):
        if not count:
            continue
        always = (Voice(count, None),)
        also = [told[k] or always for k in twins(parts, i, sizes)]
        for voice, *others in zip(its or always, *also, strict=True):
            words = voice.words
            for other in others:
                words = None if words is None or other.words is None else (*words, *other.words)
            listed.append([voice.ranks, None if words is None else sorted(set(words))])
    upstream = [{n: f for n, f in whole.items() if n not in outputs} for whole in own]
    return Wide({**delta, **add(upstream)}, {VOICES: listed})


def as_told(concept: Concept) -> dict[str, Any]:
    """What a merge's recipe says of the voices of a concept that it takes as it is."""
    found = voices(concept)
    return {VOICES: [[v.ranks, None if v.words is None else list(v.words)] for v in found]} if found else {}
