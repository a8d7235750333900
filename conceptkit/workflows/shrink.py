"""A stored concept becomes smaller: loaded, cut or rounded, and kept as its next version."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from conceptkit.base.pipeline import Base, check_fits, load
from conceptkit.compression.sizes import FULL, RECIPE, SHRUNK, SizeRequest, Smaller, compress
from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadRecipe, ConceptError, NoEffect
from conceptkit.features import caption_statistics
from conceptkit.merging import recipes
from conceptkit.merging.compose import read_stored, rebuild
from conceptkit.merging.shrink import check_size, shrink_concept
from conceptkit.registry.catalogue import lineage
from conceptkit.registry.merge_recipe import AS_RECIPE, check_parts
from conceptkit.registry.opening import opened
from conceptkit.registry.store import Entry, New, Registry


@dataclass(frozen=True, eq=False)
class Shrunk:
    """What became of a concept: its new version, and the share of its effect that is left where it was
    rounded.

    notice: a sentence where there was something to say.
    """

    entry: Entry
    concept: Concept
    kept: float | None = None
    notice: str | None = None


@dataclass(frozen=True)
class _Given:
    """A concept to be made smaller, how it is called, the sha256 of its bytes, its preview (PNG) if any."""

    concept: Concept
    source: str
    digest: str
    preview: bytes | None = None


def shrink(
    what: Concept | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    size: str | None = None,
    bytes: int | str | None = None,
    keep: float | None = None,
    base: Base | str | None = None,
    registry: Registry | None = None,
) -> Entry:
    """Store a concept in fewer bytes, as its next version.

        ck.shrink("my_dog", size="small")
        ck.shrink("my_dog", bytes="8kB")
        ck.shrink("my_dog", keep=0.99)
        ck.shrink("together", size="recipe")

    what: a name in the registry, or a concept, which is stored under its own name.
    size: a preset, "tiny" or "small"; "recipe" stores how a merge is made of its parts, which must stay, and
        "full" stores it whole again. bytes: of the whole file. keep: the share in (0, 1) of what it does to
        the base's predictions that is left; see `compression.sizes`.
    rank: of the result. energy: the share in (0, 1] of what it does to captions that is kept, at the smallest
        rank that does. Of all five one is given.
    base: loaded, or its name; None: the one that the concept was learned on.
    registry: None: the user's own, which is closed again.

    Returns the new version, whose lineage names the one before. Raises BadRecipe on a size that makes no
    sense or cannot be met and for a concept that cannot be cut, NoEffect when it would be no smaller,
    BaseMismatch on another base, UnknownConcept.
    """
    if rank is None and energy is None and (size, bytes, keep) != (None, None, None):
        return shrink_to(what, SizeRequest(size, bytes, keep), base=base, registry=registry).entry
    if (size, bytes, keep) != (None, None, None):
        raise BadRecipe("Give one of rank, energy, size, bytes and keep to shrink to")
    check_size(rank, energy)
    with opened(registry) as store:
        given = _given(what, store)
        base = _base(given, base)
        ordinary = caption_statistics.statistics_of(base, store)
        small = shrink_concept(given.concept, ordinary.gram, rank=rank, energy=energy)
        if len(small.to_bytes()) >= len(given.concept.to_bytes()):
            raise NoEffect(
                f"{given.source} would be no smaller: its rank is {given.concept.delta.rank}; give a smaller "
                "rank or energy"
            )
        return _stored(replace(small, provenance=_descended(given).provenance), store, given.preview)


def shrink_to(
    what: Concept | str,
    wish: SizeRequest,
    *,
    base: Base | str | None = None,
    registry: Registry | None = None,
) -> Shrunk:
    """The same by a preset, bytes or a share to keep, with what is left of its effect.

    A concept that was made smaller before is made again from the version before it, while that is stored.
    """
    if wish.size == RECIPE or (wish.size == FULL and _is_recipe(what, registry)):
        return _as_recipe(what, wish, base, registry)
    with opened(registry) as store:
        given = _given(what, store)
        before, notice = _original(given, store)
        here = _base(before, base)
        smaller = compress(_descended(before), here, wish)
        if smaller.bytes >= len(given.concept.to_bytes()):
            raise NoEffect(
                f"{given.source} would be no smaller: it takes {len(given.concept.to_bytes()):,} bytes, and "
                f"would take {smaller.bytes:,}; ask for less"
            )
        entry = _stored(smaller.concept, store, given.preview or before.preview)
        said = [notice and f"{notice} {_left(smaller)}", smaller.notice]
        return Shrunk(entry, smaller.concept, smaller.kept, " ".join(filter(None, said)) or None)


def _is_recipe(what: Concept | str, registry: Registry | None) -> bool:
    with opened(registry) as store:
        return isinstance(what, str) and bool(store.get(what).summary.get(AS_RECIPE))


def _as_recipe(
    what: Concept | str, wish: SizeRequest, base: Base | str | None, registry: Registry | None
) -> Shrunk:
    """A stored merge as its recipe, or whole again, as its next version; its lineage stays what it was."""
    if not isinstance(what, str):
        raise BadRecipe("Only a merge in the registry has a recipe; give its name")
    with opened(registry) as store:
        entry = store.get(what)
        if entry.summary.get("kind") != "merge":
            raise BadRecipe(f"{entry.ref} was learned and not merged, so it has no recipe; give another size")
        here = load(base) if isinstance(base, str) else base
        concept = read_stored(store, entry.ref, here)
        data, summary = concept.to_bytes(), concept.summary()
        if wish.size == RECIPE:
            data = _recipe(entry, concept, here, store)
            summary = {**summary, AS_RECIPE: True, "bytes": len(data)}
        new = New(entry.name, data, summary, preview=store.preview(entry))
        kept = store.add_many([new], new_version=True, also=lambda _, added: check_parts(store, added[0]))[0]
        return Shrunk(kept, concept)


def _recipe(entry: Entry, concept: Concept, base: Base | None, registry: Registry) -> bytes:
    """The recipe of a merge. Raises NoEffect where it is stored so, ConceptError where it cannot be built."""
    if entry.summary.get(AS_RECIPE):
        raise NoEffect(f"{entry.ref} is stored as its recipe already")
    again = rebuild(entry.ref, registry=registry, base=base).concept
    if replace(again, base_name=concept.base_name).to_bytes() != registry.read(entry):
        raise ConceptError(
            f"{entry.ref} composed again from its parts has other bytes, as it may on another machine or "
            "with other versions of the libraries; it stays as it is"
        )
    return recipes.to_recipe(concept)


def _left(smaller: Smaller) -> str:
    return f"it now keeps {smaller.concept.recipe[SHRUNK]['kept']:.1%} of what was learned."


def _given(what: Concept | str, registry: Registry) -> _Given:
    if isinstance(what, str):
        entry = registry.get(what)
        return _Given(read_stored(registry, entry.ref), entry.ref, entry.hash, registry.preview(entry))
    digest = hashlib.sha256(what.to_bytes()).hexdigest()
    stored = lineage.holder(registry, digest)
    return _Given(what, what.name, digest, registry.preview(stored) if stored else None)


def _original(given: _Given, registry: Registry) -> tuple[_Given, str | None]:
    """What `given` was rounded from, where it was and that is still stored; and a sentence about that."""
    if given.concept.coded is None:
        return given, None
    digests = (
        given.concept.provenance.get("parent_sha256")
        if given.concept.provenance.get("how") == "shrink"
        else []
    )
    entry = lineage.holder(registry, digests[0]) if digests else None
    if entry is not None:
        original = read_stored(registry, entry.ref).called(given.concept.name)
        if original.coded is None:
            found = _Given(original, entry.ref, entry.hash, registry.preview(entry))
            return found, f"{given.source} was made smaller before, so {entry.ref} was taken;"
    return given, f"{given.source} was made smaller before, and what was learned is not stored here;"


def _base(given: _Given, base: Base | str | None) -> Base:
    """The base it is measured on. Raises BaseMismatch when it is another one's."""
    here = load(base or given.concept.base_name) if base is None or isinstance(base, str) else base
    check_fits(given.concept.base, here, given.concept.name, given.concept.base_name)
    return here


def _stored(small: Concept, registry: Registry, preview: bytes | None) -> Entry:
    """The next version, with the picture of what it was made from: it is the same concept."""
    new = New(small.name, small.to_bytes(), small.summary(), preview=preview)
    return registry.add_many([new], new_version=True)[0]


def _descended(given: _Given) -> Concept:
    """The concept with its lineage: where it came from, and that one concept alone stands behind it."""
    kept = {key: value for key, value in given.concept.provenance.items() if key != "weights"}
    origin = {**kept, "how": "shrink", "parents": [given.source], "parent_sha256": [given.digest]}
    return replace(given.concept, provenance=origin)
