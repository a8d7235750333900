"""A stored concept becomes smaller: loaded, cut, and kept as its next version."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from conceptkit.base.pipeline import Base, check_fits, load
from conceptkit.concepts.concept import Concept, read
from conceptkit.errors import NoEffect
from conceptkit.features import caption_statistics
from conceptkit.merging.shrink import check_size, shrink_concept
from conceptkit.registry.opening import opened
from conceptkit.registry.store import Entry, Registry


def shrink(
    what: Concept | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    base: Base | str | None = None,
    registry: Registry | None = None,
) -> Entry:
    """Cut a concept to a smaller rank where its base's text features miss least, as its next version.

        ck.shrink("my_dog", rank=2)
        ck.shrink("my_dog", energy=0.99)

    what: a name in the registry, or a concept, which is stored under its own name.
    rank: of the result. energy: the share in (0, 1] of what it does to captions that is kept, at the smallest
        rank that does. One of the two is given.
    base: loaded, or its name; None: the one that the concept was learned on.
    registry: None: the user's own, which is closed again.

    Returns the new version, whose lineage names the one before. Raises BadRecipe on a size that makes no
    sense and for a concept that cannot be cut, NoEffect when it would be no smaller, BaseMismatch on another
    base, UnknownConcept.
    """
    check_size(rank, energy)
    if registry is None:
        with opened() as store:
            return shrink(what, rank=rank, energy=energy, base=base, registry=store)
    if isinstance(what, str):
        entry = registry.get(what)
        concept, source, digest = read(registry, entry.ref), entry.ref, entry.hash
    else:
        concept, source = what, what.name
        digest = hashlib.sha256(what.to_bytes()).hexdigest()
    if base is None or isinstance(base, str):
        base = load(base or concept.base_name)
    check_fits(concept.base, base, concept.name, concept.base_name)
    ordinary = caption_statistics.statistics_of(base, registry)
    small = shrink_concept(concept, ordinary.gram, rank=rank, energy=energy)
    if len(small.to_bytes()) >= len(concept.to_bytes()):
        raise NoEffect(
            f"{source} would be no smaller: its rank is {concept.delta.rank}; give a smaller rank or energy"
        )
    small = replace(small, provenance=_lineage(concept, source, digest))
    return registry.add(concept.name, small.to_bytes(), small.summary(), new_version=True)


def _lineage(concept: Concept, source: str, digest: str) -> dict[str, Any]:
    """Where it came from, and that one concept alone stands behind it."""
    kept = {key: value for key, value in concept.provenance.items() if key != "weights"}
    return {**kept, "how": "shrink", "parents": [source], "parent_sha256": [digest]}
