"""Several concepts in one: merged in one of many ways, with a report of what each of them keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

from conceptkit.base.pipeline import Base, check_fits, load, refreshed
from conceptkit.concepts import gates
from conceptkit.concepts.concept import Concept, base_of
from conceptkit.concepts.delta import only
from conceptkit.errors import BadRecipe, ConceptError
from conceptkit.features import caption_statistics
from conceptkit.merging import parts, report, request
from conceptkit.merging.merge_inputs import prepare
from conceptkit.merging.methods.base import MergeContext, MergeResult, equal
from conceptkit.merging.methods.routed import merge_routed
from conceptkit.merging.methods.table import METHODS
from conceptkit.merging.parts import Part
from conceptkit.merging.report import Report

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry


__all__ = ["HOW", "Merge", "Report", "compose", "rebuild"]

HOW = tuple(request.WAYS)


@dataclass(frozen=True, eq=False)
class Merge:
    """A merge is a concept, a report about it, and what it was made of."""

    concept: Concept
    report: Report
    parts: tuple[Part, ...] = ()

    def _repr_html_(self) -> str:
        """What a notebook shows: the concept's facts and the report."""
        return self.concept._repr_html_() + self.report._repr_html_()


def compose(
    *concepts: Concept | Merge | Part | str,
    base: Base | None = None,
    registry: "Registry | None" = None,
    name: str | None = None,
    weights: Sequence[float] | None = None,
    how: str = request.HOW,
    shared: str = request.SHARED[0],
    tick: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Merge:
    """Merge concepts, or names in the registry, into one delta of low rank; one alone stays as it is.

    One alone under another `name` answers to that. A name may carry a strength, "my_dog:0.8"; `weights` give
    one for each concept. `how` is a row of `request.WAYS`; `shared` says what end of text and padding read
    when it is "routed" (`request.SHARED`).
    `tick` hears of concepts that are read for the first time, a second each on a small base.
    Raises BadRecipe on bad weights or an unknown way, BaseMismatch when a concept does not fit the base,
    UnknownConcept for a name that is not in the registry, ConceptError when two concepts answer to one name.
    """
    request.check_way(how)
    if shared not in request.SHARED:
        raise BadRecipe(f"There is no sharing called {shared!r}; use one of {', '.join(request.SHARED)}")
    request.read([given for given in concepts if isinstance(given, str)])  # before anything is loaded
    registry = _default_registry() if registry is None else registry
    if base is None and concepts:
        base = load(_base_of(concepts[0], registry))
    elif base is not None:
        base = refreshed(base)
    most = None if base is None or how == "routed" else base.width
    chosen = parts.gather(concepts, weights, registry, most)
    assert base is not None
    routed = chosen[0].concept.recipe if len(chosen) == 1 and _is_routed(chosen[0]) else None
    if routed:  # it is drawn by its routes, whatever is asked for now
        how = request.HOW
    fits = [check_fits(p.concept.base, base, p.concept.name, p.concept.base_name) for p in chosen]
    _check_whole(chosen, how)
    ordinary = caption_statistics.statistics_of(base, registry)
    ready = []
    for i, part in enumerate(chosen):
        tick(i, len(chosen), f"reading {part.concept.name}")
        ready.append(prepare(part.concept, base, ordinary, registry, part.digest))
    tick(len(chosen), len(chosen), "merging")
    sizes = {map: o for map, o in base.sizes.items() if any(map in part.delta for part in chosen)}
    kitchen = MergeContext(chosen, ready, base, ordinary, registry, sizes)
    if how == "routed":
        joined = merge_routed(kitchen, shared)
    elif len(chosen) == 1:
        joined = MergeResult(chosen[0].delta, [chosen[0].delta], chosen[0].concept.rows)
    else:
        joined = METHODS[how](kitchen)
    concept = _as_concept(kitchen, joined, name, how)
    notices = [*filter(None, fits), *_weak_words(kitchen), *_same_words(kitchen), *_wide(kitchen)]
    if routed:
        how, shared = "routed", str(routed["shared"])
    return Merge(concept, _report(kitchen, joined, concept, how, shared, notices), tuple(chosen))


def rebuild(name: str, *, registry: "Registry | None" = None, base: Base | None = None) -> Merge:
    """Compose a stored merge again, from its parts and its recipe: the same bytes, or a reason why not.

    Raises ConceptError when it is no merge, when a part is gone from the registry, or has other bytes now.
    """
    registry = _default_registry() if registry is None else registry
    merge = Concept.from_bytes(registry.read(name))
    told, recipe = merge.provenance, merge.recipe
    if "parent_sha256" not in told:
        raise ConceptError(f"{name} was not merged from other concepts, so there is nothing to rebuild")
    again = [
        _as_it_was(registry, ref, sha)
        for ref, sha in zip(told["parents"], told["parent_sha256"], strict=True)
    ]
    return compose(
        *again,
        base=base or load(base_of(registry.get(name), merge.base_name)),
        registry=registry,
        name=merge.name,
        weights=told.get("weights", recipe.get("weights")),
        how=told.get("how", recipe.get("method", "constrained")),
        shared=recipe.get("shared", request.SHARED[0]),
    )


def _as_it_was(registry: "Registry", ref: str, digest: str) -> Part:
    """The part with these very bytes, under whatever name it is stored now, as it was called then."""
    from conceptkit.registry.catalogue import lineage

    if (entry := lineage.holder(registry, digest)) is None:
        raise ConceptError(f"{ref} is not the concept that was merged any more; the merge itself is whole")
    concept = Concept.from_bytes(registry.read(entry)).called(ref.partition("@")[0])
    return Part(ref, concept, 1.0, digest)


def _wide(kitchen: MergeContext) -> list[str]:
    """One sentence for each part that changes more than keys and values on all pictures, beside others."""
    told = []
    several = len(kitchen.parts) > 1
    beyond = parts.beyond(kitchen.parts, kitchen.base.sizes)
    for part, own in zip(kitchen.parts, beyond, strict=True) if several else ():
        if own and not gates.rank_gates(part.concept):
            told.append(
                f"{part.concept.name} also changes {len(own)} maps beside keys and values of "
                "cross-attention: they are added to the others' exactly, and no figure here speaks of them"
            )
    return told


def _weak_words(kitchen: MergeContext) -> list[str]:
    """One sentence for each part that was given a strength and has nothing that could be weaker."""
    return [
        f"{part.concept.name} is a word alone, which is as strong as it is: {part.weight:g} changes nothing"
        for part in kitchen.parts
        if part.weight != 1 and not part.concept.delta and part.concept.reference is None
    ]


def _same_words(kitchen: MergeContext) -> list[str]:
    """One sentence for each two parts with one word: a rare token may have been drawn twice."""
    told = []
    for one, other in combinations(kitchen.parts, 2):
        pairs = [
            (mine, theirs) for mine in one.concept.tokens.values() for theirs in other.concept.tokens.values()
        ]
        if one.concept.noun == other.concept.noun and any(equal(*pair) for pair in pairs):
            told.append(
                f"{one.concept.name} and {other.concept.name} have the same word inside, so each looks like "
                "both; learn one of them again with another --seed"
            )
    return told


def _as_concept(kitchen: MergeContext, joined: MergeResult, name: str | None, how: str) -> Concept:
    """The result in the precision in which it is stored: what is measured and drawn is what is kept."""
    chosen = kitchen.parts
    lineage = {
        "how": how,
        "parents": [part.source for part in chosen],
        "parent_sha256": [part.digest for part in chosen],
        "weights": [part.weight for part in chosen],
    }
    if len(chosen) == 1 and how != "routed":
        only_one = chosen[0].concept.called(name or chosen[0].concept.name)
        if chosen[0].weight == 1 and only_one is chosen[0].concept:
            return only_one
        stronger = replace(
            only_one,
            name=name or only_one.name,
            delta=joined.delta,
            reference=only_one.reference and only_one.reference.scaled(chosen[0].weight),
            provenance={**only_one.provenance, **lineage},
        )
        return replace(Concept.from_bytes(stronger.to_bytes()), base_name=stronger.base_name)
    concept = Concept(
        name=name or "-".join(part.concept.name for part in chosen)[:64],
        kind="merge",
        noun=None,
        base=kitchen.base.fingerprint,
        base_name=kitchen.base.name,
        tokens={token: rows for part in chosen for token, rows in part.concept.tokens.items()},
        words={word: text for part in chosen for word, text in part.concept.words.items()},
        delta=joined.delta,
        recipe={"method": how, "weights": lineage["weights"], **joined.recipe},
        provenance=lineage,
        rows=joined.rows,
    )
    return replace(Concept.from_bytes(concept.to_bytes()), base_name=concept.base_name)


def _report(
    kitchen: MergeContext, joined: MergeResult, concept: Concept, how: str, shared: str, notices: list[str]
) -> Report:
    names = [part.concept.name for part in kitchen.parts]
    sizes, dtype = kitchen.base.sizes, kitchen.base.dtype
    alone = [only(part.delta, sizes) for part in kitchen.parts]
    if how == "routed":
        width = kitchen.base.width
        return report.measure_routed(names, alone, kitchen.prepared, width, shared, dtype, notices)
    merged = only(concept.delta, sizes)
    shares = [only(share, sizes) for share in joined.shares]
    return report.measure(
        how,
        names,
        merged,
        alone,
        shares,
        kitchen.prepared,
        kitchen.ordinary,
        joined.solved,
        dtype,
        notices,
    )


def _check_whole(chosen: Sequence[Part], how: str) -> None:
    """A routed merge is drawn by its routes, a photo by attention to it: no sum of deltas has either."""
    for part in chosen:
        if part.concept.reference is not None and (len(chosen) > 1 or how == "routed"):
            raise ConceptError(
                f"{part.concept.name} looks at its reference photo, for which a merge has no place; draw it "
                "alone, or learn it again with --method custom to compose it"
            )
        if _is_routed(part) and len(chosen) > 1:
            parents = ", ".join(map(str, part.concept.provenance.get("parents", ())))
            raise ConceptError(
                f"{part.source} is routed and cannot be merged further; compose its parts {parents}"
            )


def _is_routed(part: Part) -> bool:
    return part.concept.recipe.get("method") == "routed"


def _base_of(first: Concept | Merge | Part | str, registry: "Registry") -> str:
    if isinstance(first, str):
        return str(registry.get(request.split_weight(first)[0]).summary.get("base_name") or "storybook")
    return (first if isinstance(first, Concept) else first.concept).base_name


def _default_registry() -> "Registry":
    from conceptkit.registry.store import Registry

    return Registry()
