"""Several concepts in one: merged in one of many ways, with a report of what each of them keeps."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conceptkit.base.fingerprint import fingerprint_of
from conceptkit.base.pipeline import Base, check_fits, load, refreshed
from conceptkit.concepts.concept import Concept, base_of, read
from conceptkit.concepts.routing import ROUTED
from conceptkit.errors import BadRecipe, ConceptError, UnknownConcept
from conceptkit.features import caption_statistics
from conceptkit.merging import parts, recipes, report, request
from conceptkit.merging.merge_inputs import prepare_all
from conceptkit.merging.method_table import CROWDS, STRENGTHS, MergeMethod, merge_method_of
from conceptkit.merging.methods.base import MergeContext, MergeResult
from conceptkit.merging.notices import notices_of
from conceptkit.merging.parts import Part
from conceptkit.merging.report import Measured, Report
from conceptkit.merging.request import ComposeRequest
from conceptkit.merging.strengths import weighed
from conceptkit.registry.merge_recipe import AS_RECIPE, check_parts
from conceptkit.registry.opening import opened

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry

__all__ = ["ComposeRequest", "Merge", "Report", "compose", "rebuild"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Merge:
    """A merge is a concept, a report about it, and what it was made of.

    result: before it was rounded to the precision in which it is stored; None of one concept as it is.
    """

    concept: Concept
    report: Report
    parts: tuple[Part, ...] = ()
    result: MergeResult | None = None

    def at_strengths(self, strengths: Mapping[str, float], base: Base) -> Concept:
        """The same merge with its parts at other strengths, by name, without fitting anything again.

        base: the one it was merged on. Raises BadRecipe where the method is not linear in each of them, see
        `weighed`, and UnknownConcept for a name that is no part.
        """
        names = [part.concept.name for part in self.parts]
        if strange := [name for name in strengths if name not in names]:
            raise UnknownConcept(f"{strange[0]} is no part of this merge; its parts are {', '.join(names)}")
        if self.result is None or (len(self.parts) == 1 and self.parts[0].concept.routing):
            part = replace(self.parts[0], weight=strengths.get(names[0], self.parts[0].weight))
            return as_it_is(part, self.concept.name)
        method = merge_method_of(self.report.merge_method)
        changed, parts = weighed(self.result, self.parts, method, strengths, base)
        return _as_concept(parts, changed, base, self.concept.name, method)

    def _repr_html_(self) -> str:
        """What a notebook shows: the concept's facts and the report."""
        return self.concept._repr_html_() + self.report._repr_html_()


def compose(
    *concepts: Concept | Merge | Part | str,
    base: Base | None = None,
    registry: "Registry | None" = None,
    name: str | None = None,
    weights: Sequence[float] | None = None,
    merge_method: str = request.MERGE_METHOD,
    padding_delta: str = request.PADDING_DELTA,
    progress: Progress = lambda done, total, text: None,
) -> Merge:
    """Merge concepts, or names in the registry, into one delta of low rank; one alone stays as it is.

    concepts: each may carry a strength, "my_dog:0.8".
    base: on which they are merged; None: the one that the first was learned on.
    registry: where names are looked up, and what is worked out is kept; None: the one of the user, which is
        closed again.
    name: what the merge is called, and what one alone answers to.
    weights: a strength for each concept.
    merge_method: a row of `MERGE_METHODS`.
    padding_delta: what end of text and padding read when it is "routed", of `PADDING_DELTAS`.
    progress: hears of concepts that are read for the first time, a second each on a small base.

    Raises BadRecipe on bad weights or an unknown method, BaseMismatch when a concept does not fit the base,
    UnknownConcept for a name that is not in the registry, ConceptError when two concepts answer to one name.
    """
    given = None if weights is None else tuple(weights)
    asked = ComposeRequest(concepts, given, merge_method, padding_delta, name)
    with opened(registry) as store:
        here = refreshed(base) if base else load(_base_of(concepts[0], store))
        return merge(asked, here, store, progress)


def merge(asked: ComposeRequest, base: Base, registry: "Registry", progress: Progress) -> Merge:
    """Carry out a request on a loaded base; see `compose`."""
    method = merge_method_of(asked.merge_method)
    said: list[str] = []
    most = base.width if CROWDS in method.refuses else None
    chosen = parts.gather(
        asked.orders, registry, lambda ref: read_stored(registry, ref, base, said.append), most
    )
    routing = chosen[0].concept.routing if len(chosen) == 1 else None
    if routing:  # it is drawn by its routes, whatever is asked for now
        method = merge_method_of(request.MERGE_METHOD)
    fits = [check_fits(p.concept.base, base, p.concept.name, p.concept.base_name) for p in chosen]
    _check_parts(chosen, method)
    context = _context(asked, chosen, base, registry, progress)
    if len(chosen) > 1 or method.takes_one:
        result = method.merge(context)
    else:
        result = MergeResult(chosen[0].delta, [chosen[0].delta], chosen[0].concept.rows, routing=routing)
    concept = _as_concept(chosen, result, base, asked.name, method)
    notices = [*said, *filter(None, fits), *notices_of(context)]
    shown = ROUTED if routing else method.name
    kept = result if len(chosen) > 1 or method.takes_one else None
    return Merge(concept, _report(context, result, concept, shown, notices), tuple(chosen), kept)


def rebuild(name: str, *, registry: "Registry | None" = None, base: Base | None = None) -> Merge:
    """Compose a stored merge again, from its parts and its recipe: the same bytes, or a reason why not.

    Raises ConceptError when it is no merge, when a part is gone from the registry, or has other bytes now.
    """
    with opened(registry) as store:
        entry = store.get(name)
        stored = recipes.told(store.read(entry))
        origin, recipe = stored.provenance, stored.recipe
        if "parent_sha256" not in origin:
            raise ConceptError(f"{name} was not merged from other concepts, so there is nothing to rebuild")
        if origin.get("how") == "shrink":
            raise ConceptError(f"{name} was shrunk, not merged; shrink {origin['parents'][0]} again")
        again = [
            _as_it_was(store, ref, sha, base)
            for ref, sha in zip(origin["parents"], origin["parent_sha256"], strict=True)
        ]
        return compose(
            *again,
            base=base or load(base_of(entry, stored.base_name)),
            registry=store,
            name=stored.name,
            weights=origin.get("weights", recipe.get("weights")),
            merge_method=request.method_of(origin.get("how", recipe.get("method", "constrained"))),
            padding_delta=stored.padding_delta,
        )


def read_stored(
    registry: "Registry",
    name: str,
    base: Base | None = None,
    notice: Callable[[str], object] = warnings.warn,
) -> Concept:
    """What the registry holds under that name; a merge that is stored as its recipe is built from its parts.

    base: on which it is built; None: the one that it was merged on is loaded. notice: hears where it
    becomes other bytes than it was stored for. Raises what `read` raises, and ConceptError when a part is
    gone.
    """
    entry = registry.get(name)
    if not entry.summary.get(AS_RECIPE):
        return read(registry, entry.ref)
    check_parts(registry, entry)
    stored = recipes.told(registry.read(entry))
    concept = replace(rebuild(entry.ref, registry=registry, base=base).concept, base_name=stored.base_name)
    if hashlib.sha256(concept.to_bytes()).hexdigest() != stored.built:
        notice(
            f"{entry.ref} was built from its parts with other numbers than it was stored for, as other "
            "versions of the libraries make them; compare its pictures, and compose it again under a new name"
        )
    return replace(concept, base_name=base_of(entry, concept.base_name))


def as_it_is(part: Part, name: str) -> Concept:
    """One concept at its part's strength, under a name: what `compose` makes of it alone."""
    result = MergeResult(part.delta, [part.delta], part.concept.rows, routing=part.concept.routing)
    return _alone(part, result, name, _lineage([part], merge_method_of(request.MERGE_METHOD)))


def _as_it_was(registry: "Registry", ref: str, digest: str, base: Base | None) -> Part:
    """The part with these very bytes, under whatever name it is stored now, as it was called then."""
    from conceptkit.registry.catalogue import lineage

    if (entry := lineage.holder(registry, digest)) is None:
        raise ConceptError(f"{ref} is not the concept that was merged any more; the merge itself is whole")
    if entry.summary.get(AS_RECIPE):
        concept = read_stored(registry, entry.ref, base)
    else:
        concept = Concept.from_bytes(registry.read(entry))
    return Part(ref, concept.called(ref.partition("@")[0]), 1.0, digest)


def _context(
    asked: ComposeRequest, chosen: Sequence[Part], base: Base, registry: "Registry", progress: Progress
) -> MergeContext:
    """What the method may look at: what each part brings is worked out, or read when it was before."""
    now = fingerprint_of(base.pipe, own=True)
    ordinary = caption_statistics.statistics_of(base, registry, now=now)
    concepts = [(part.concept, part.digest) for part in chosen]
    inputs = prepare_all(concepts, base, ordinary, registry, now, progress)
    progress(len(chosen), len(chosen), "merging")
    sizes = {map: o for map, o in base.sizes.items() if any(map in part.delta for part in chosen)}
    return MergeContext(chosen, inputs, base, ordinary, registry, sizes, asked.padding_delta)


def _lineage(chosen: Sequence[Part], method: MergeMethod) -> dict[str, Any]:
    """What a merge says of where it came from."""
    return {
        "how": request.stored_name(method.name),
        "parents": [part.source for part in chosen],
        "parent_sha256": [part.digest for part in chosen],
        "weights": [part.weight for part in chosen],
    }


def _as_concept(
    chosen: Sequence[Part], result: MergeResult, base: Base, name: str | None, method: MergeMethod
) -> Concept:
    """The result in the precision in which it is stored: what is measured and drawn is what is kept."""
    lineage = _lineage(chosen, method)
    if len(chosen) == 1 and not method.takes_one:
        return _alone(chosen[0], result, name, lineage)
    routes = result.routing.to_recipe() if result.routing else {}
    stored = ROUTED if routes else lineage["how"]
    concept = Concept(
        name=name or "-".join(part.concept.name for part in chosen)[:64],
        kind="merge",
        noun=None,
        base=base.fingerprint,
        base_name=base.name,
        tokens={token: rows for part in chosen for token, rows in part.concept.tokens.items()},
        words={word: text for part in chosen for word, text in part.concept.words.items()},
        delta=result.delta,
        recipe={"method": stored, "weights": lineage["weights"], **result.recipe, **routes},
        provenance=lineage,
        rows=result.rows,
    )
    return replace(Concept.from_bytes(concept.to_bytes()), base_name=concept.base_name)


def _alone(part: Part, result: MergeResult, name: str | None, lineage: dict[str, Any]) -> Concept:
    """One concept as it is; or under another name, or at another strength."""
    itself = part.concept.called(name or part.concept.name)
    if part.weight == 1 and itself is part.concept:
        return itself
    stronger = replace(
        itself,
        name=name or itself.name,
        delta=result.delta,
        reference=itself.reference and itself.reference.scaled(part.weight),
        provenance={**itself.provenance, **lineage},
    )
    return replace(Concept.from_bytes(stronger.to_bytes()), base_name=stronger.base_name)


def _report(
    context: MergeContext, result: MergeResult, concept: Concept, method: str, notices: list[str]
) -> Report:
    base = context.base
    measured = Measured(
        method,
        [part.concept.name for part in context.parts],
        [part.delta.only(base.sizes) for part in context.parts],
        context.inputs,
        context.ordinary,
        base.dtype,
    )
    if result.routing:
        return report.measure_routed(measured, result.routing.padding_delta, notices)
    shares = [share.only(base.sizes) for share in result.shares]
    return report.measure(measured, concept.delta.only(base.sizes), shares, result.solved, notices)


def _check_parts(chosen: Sequence[Part], method: MergeMethod) -> None:
    """A routed merge is drawn by its routes, a photo by attention to it: no sum of deltas has either."""
    for part in chosen:
        if part.concept.reference is not None and (len(chosen) > 1 or method.takes_one):
            raise ConceptError(
                f"{part.concept.name} looks at its reference photo, for which a merge has no place; draw it "
                "alone, or learn it again with --method custom to compose it"
            )
        if part.concept.routing and len(chosen) > 1:
            parents = ", ".join(map(str, part.concept.provenance.get("parents", ())))
            raise ConceptError(
                f"{part.source} is routed and cannot be merged further; compose its parts {parents}"
            )
    if STRENGTHS in method.refuses and len(chosen) > 1 and any(part.weight != 1 for part in chosen):
        raise BadRecipe(
            f"The merge method {method.name} has no strength for each of its parts; leave strengths out, or "
            "give another --merge-method"
        )


def _base_of(first: Concept | Merge | Part | str, registry: "Registry") -> str:
    if isinstance(first, str):
        return str(registry.get(request.split_weight(first)[0]).summary.get("base_name") or "storybook")
    return (first if isinstance(first, Concept) else first.concept).base_name
