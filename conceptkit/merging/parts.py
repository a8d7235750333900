"""The parts of a merge: concepts, read, at their strength, and fit to stand side by side."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta
from conceptkit.errors import BadRecipe, ConceptError
from conceptkit.merging.request import Order

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry


@dataclass(frozen=True, eq=False)
class Part:
    """A concept in a merge; `source` is how it was named, `digest` the sha256 of its bytes."""

    source: str
    concept: Concept
    weight: float
    digest: str

    @property
    def delta(self) -> Delta:
        """What the concept adds, at its strength."""
        return self.concept.delta if self.weight == 1 else self.concept.delta * self.weight


def beyond(chosen: Sequence[Part], sizes: Mapping[str, int]) -> list[Delta]:
    """What each part changes beside the maps in `sizes`; what is shared counts once.

    Raises BadRecipe where such things are given different strengths.
    """
    own: list[Delta] = []
    for i, part in enumerate(chosen):
        before = [chosen[k] for k in twins(chosen, i, sizes) if k < i]
        if any(twin.weight != part.weight for twin in before):
            raise BadRecipe(
                f"{before[0].concept.name} and {part.concept.name} were learned together and share what they "
                "change beside keys and values; give both the same strength"
            )
        own.append(Delta() if before else part.delta.without(sizes))
    return own


def twins(chosen: Sequence[Part], i: int, sizes: Mapping[str, int]) -> list[int]:
    """The other parts that change the very same beside the maps in `sizes` as part i does."""
    mine = chosen[i].concept.delta.without(sizes)
    others = [(k, part.concept.delta.without(sizes)) for k, part in enumerate(chosen) if k != i]
    return [k for k, theirs in others if mine and mine.same(theirs)]


def gather(
    orders: Sequence[Order],
    registry: "Registry",
    stored: Callable[[str], Concept],
    most: int | None = None,
) -> list[Part]:
    """What was ordered as parts: concepts, merges, or names in the registry.

    stored: reads a name. most: as many can be merged at all. Raises UnknownConcept, BadBlob, and
    ConceptError when two parts answer to one name or there are too many.
    """
    if most is not None and len(orders) > most:
        raise ConceptError(
            f"{len(orders)} concepts are more than the {most} directions that this base's words can take; "
            f"compose at most {most} of them, or use --merge-method routed (merge_method='routed')"
        )
    parts = []
    seen: dict[str, str] = {}
    for order in orders:
        part = _part(order.given, order.name, order.weight, registry, stored)
        _check_distinct(part, seen)
        parts.append(part)
    return parts


def _part(
    given: Any, name: str, weight: float, registry: "Registry", stored: Callable[[str], Concept]
) -> Part:
    if isinstance(given, Part):
        return replace(given, weight=weight)
    if isinstance(given, str):
        entry = registry.get(name)
        return Part(entry.ref, stored(entry.ref), weight, entry.hash)
    # In the precision in which it would be stored, so that a merge can be made again from the registry.
    data = getattr(given, "concept", given).to_bytes()
    return Part(name, Concept.from_bytes(data), weight, hashlib.sha256(data).hexdigest())


def _check_distinct(part: Part, seen: dict[str, str]) -> None:
    """Nothing may be there twice: a name, a version of it, or a concept and a merge that already holds it."""
    for label in (*part.concept.words, *part.concept.tokens):
        other = seen.get(label)
        if other == part.source:
            raise ConceptError(f"{part.source} is named twice; name it once, with a weight if it is too weak")
        if other:
            raise ConceptError(
                f"{other} and {part.source} both answer to {label}; "
                "compose one of them, or learn one under another name"
            )
    seen |= dict.fromkeys((*part.concept.words, *part.concept.tokens), part.source)
