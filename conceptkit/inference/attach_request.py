"""What `attach` is asked for, checked before anything is changed."""

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from conceptkit.base import pipeline
from conceptkit.base.fingerprint import features_digest
from conceptkit.base.fingerprint_memo import remembered
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.routing import ROUTED
from conceptkit.errors import BadRegion, ConceptError, UnknownConcept
from conceptkit.inference import regions
from conceptkit.merging.request import (
    MERGE_METHOD,
    PADDING_DELTA,
    check_merge_method,
    check_one_way_apart,
    check_weight,
    split_weight,
)

if TYPE_CHECKING:
    from conceptkit.merging.compose import Merge
    from conceptkit.merging.report import Report
    from conceptkit.registry.store import Registry


RECENT_BYTES = 1 << 28
"""Of decoded concepts that are kept, beside the last one."""
_recent: dict[tuple[str, ...], Concept] = {}
_lock = threading.Lock()


class AttachOptions(TypedDict, total=False):
    """The keyword arguments of `attach`; see `AttachRequest`."""

    merge_method: str
    weights: Sequence[float] | None
    padding_delta: str
    regions: Sequence[str]
    auto_regions: bool
    side_by_side: bool | None
    isolate_concepts: bool | None
    confine: bool | None
    detail: bool | None


@dataclass(frozen=True, eq=False)
class AttachRequest:
    """What is to be put on a pipeline, and how; checked where it enters.

    concepts: names in the registry, each with a strength if wanted; concepts; merges.
    registry: where names are looked up; None: the one of the user.
    merge_method, weights, padding_delta: as in `compose`.
    regions: "my_dog=left" keeps a concept in a part of the picture; see `regions.parse_regions`.
    auto_regions: the concepts split the picture by where they begin to appear.
    side_by_side: a window for each thing that a prompt names; None: where that suits the base.
    isolate_concepts: in one frame each concept's words are encoded without the others; None: where that
        suits the base.
    confine: in one frame each concept acts in its own part alone, see `confinement`, in a prompt of one
        thing too; None: where several concepts are attached and a prompt names several things; where
        attention can be given regions, without regions.
    detail: concepts that are confined are drawn at full size, each in its part, see `detail`; None: where
        that suits the base.
    masks: of the regions, by name: (GRID, GRID) bool.

    Raises BadRegion when concepts would be kept apart in two ways, or a region cannot be read; BadRecipe for
    an unknown merge method.
    """

    concepts: tuple[Any, ...]
    registry: "Registry | None" = None
    merge_method: str = MERGE_METHOD
    weights: Sequence[float] | None = None
    padding_delta: str = PADDING_DELTA
    regions: Sequence[str] = ()
    auto_regions: bool = False
    side_by_side: bool | None = None
    isolate_concepts: bool | None = None
    confine: bool | None = None
    detail: bool | None = None
    masks: Mapping[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        if not self.concepts:
            raise ConceptError("There is nothing to attach; name at least one concept")
        check_merge_method(self.merge_method)
        check_one_way_apart(self.regions, self.auto_regions, self.side_by_side, self.confine)
        object.__setattr__(self, "masks", regions.parse_regions(self.regions))
        object.__setattr__(self, "weights", None if self.weights is None else tuple(self.weights))


@dataclass(frozen=True, eq=False)
class Found:
    """What a request comes to on a base: one concept, and the report of the merge that it is.

    merge: what can be weighed again, at the strengths that were asked for; None for one concept as it is.
    """

    concept: Concept
    report: "Report | None"
    notice: str | None
    merge: "Merge | None" = None

    @property
    def strengths(self) -> dict[str, float]:
        """Of each part by name, as it was asked for."""
        if self.merge is None:
            return {self.concept.name: 1.0}
        return {part.concept.name: part.weight for part in self.merge.parts}

    def at_strengths(self, strengths: Mapping[str, float], base: pipeline.Base) -> Concept:
        """The concept with its parts at other strengths. Raises UnknownConcept and BadRecipe."""
        from conceptkit.merging.compose import as_it_is
        from conceptkit.merging.parts import Part

        for name, strength in strengths.items():
            if name not in self.strengths:
                raise UnknownConcept(
                    f"There is no {name} to give a strength; attached are {', '.join(self.strengths)}"
                )
            if strength != 0:
                check_weight(name, strength)
        if self.merge is not None:
            return self.merge.at_strengths(strengths, base)
        name, concept = self.concept.name, self.concept
        return as_it_is(Part(name, concept, strengths.get(name, 1.0), ""), name)


def find_concepts(request: AttachRequest, here: pipeline.Base) -> Found:
    """One concept as it is, several as their merge, with what a user should know. Raises BadRegion."""
    concept, merge = resolve_concepts(request, here)
    report = merge.report if merge else None
    regions.check(request.masks, tuple(concept.words))
    if concept.reference is not None and (request.masks or request.auto_regions):
        raise BadRegion(
            f"{concept.name} looks at its reference photo, which has no regions; draw it without them, "
            "or learn it again with --method custom"
        )
    notices = (
        pipeline.check_fits(concept.base, here, concept.name, concept.base_name),
        *getattr(report, "notices", ()),
    )
    return Found(concept, report, "; ".join(text for text in notices if text) or None, merge)


def resolve_concepts(request: AttachRequest, here: pipeline.Base) -> "tuple[Concept, Merge | None]":
    """One concept as it is, several as their merge, which is kept as long as the base is the same."""
    (first, *more) = request.concepts
    weighted = request.weights is not None or (isinstance(first, str) and split_weight(first)[1] != 1)
    if not (more or weighted or request.merge_method == ROUTED or isinstance(first, str)):
        return (
            (first, None) if isinstance(first, Concept) else (first.concept, first if first.parts else None)
        )

    from conceptkit.registry.opening import opened

    with opened(request.registry) as registry:
        if not (more or weighted or request.merge_method == ROUTED):
            return read_recent(registry, split_weight(first)[0], here), None
        merge = _composed(request, registry, here)
        return merge.concept, merge


def _composed(request: AttachRequest, registry: "Registry", here: pipeline.Base) -> "Merge":
    """The merge that is asked for, which is worked out once for a base."""
    from conceptkit.merging.compose import compose
    from conceptkit.merging.method_table import merge_method_of

    def work_out() -> "Merge":
        return compose(
            *(getattr(c, "concept", c) for c in request.concepts),
            base=here,
            registry=registry,
            weights=request.weights,
            merge_method=request.merge_method,
            padding_delta=request.padding_delta,
        )

    if not merge_method_of(request.merge_method).repeatable:
        return work_out()
    given = tuple(
        (one, registry.get(split_weight(one)[0]).hash) if isinstance(one, str) else one
        for one in request.concepts
    )
    how = (request.weights, request.merge_method, request.padding_delta, here.name, here.dtype)
    features = features_digest(here.pipe)  # the tokenizers count too
    return remembered(here.pipe, ("merge", given, how, features), work_out)


def read_recent(registry: "Registry", name: str, base: pipeline.Base | None = None) -> Concept:
    """What `read_stored` gives, decoded once while the registry holds the same bytes."""
    from conceptkit.merging.compose import read_stored

    entry = registry.get(name)
    key = (str(registry.home), entry.ref, entry.hash, json.dumps(entry.summary, sort_keys=True))
    with _lock:
        concept = _recent.pop(key, None)
        if concept is not None:
            _recent[key] = concept
            return concept
    concept = read_stored(registry, entry.ref, base)
    with _lock:
        _recent[key] = concept
        while len(_recent) > 1 and sum(map(_size, _recent.values())) > RECENT_BYTES:
            del _recent[next(iter(_recent))]
    return concept


def _size(concept: Concept) -> int:
    """Bytes of a concept's delta in memory."""
    return sum(tensor.nbytes for factors in concept.delta.values() for tensor in factors)


def exchanged(
    request: AttachRequest, present: Sequence[str], old: str, new: "str | Concept | Merge"
) -> AttachRequest:
    """The request with one concept for another; a merge that was attached is taken apart again."""
    request = taken_apart(request)
    names = names_of(request)
    if old not in names:
        listed = ", ".join(names)
        raise UnknownConcept(
            f"{old} came as part of {listed}; attach the parts by name to swap one of them"
            if old in present
            else f"There is no {old} to swap; attached are {listed}"
        )
    at = names.index(old)
    weights = request.weights
    if weights is not None:
        given = split_weight(new) if isinstance(new, str) else (new, weights[at])
        weights = (*weights[:at], given[1], *weights[at + 1 :])
        new = given[0]
    name = _name(new)
    renamed = {key: name if key == old else key for key in request.masks}
    places = tuple(f"{renamed[text.partition('=')[0]]}={text.partition('=')[2]}" for text in request.regions)
    concepts = (*request.concepts[:at], new, *request.concepts[at + 1 :])
    return replace(request, concepts=concepts, weights=weights, regions=places)


def at_weights(request: AttachRequest, strengths: Mapping[str, float]) -> AttachRequest:
    """The request with a strength for each concept, by name; what is not named keeps its own."""
    apart = taken_apart(request)
    request = apart if strengths.keys() & set(names_of(apart)) else request
    own = [split_weight(c) if isinstance(c, str) else (c, 1.0) for c in request.concepts]
    given = request.weights or [weight for _, weight in own]
    weights = [strengths.get(name, weight) for name, weight in zip(names_of(request), given, strict=True)]
    return replace(request, concepts=tuple(one for one, _ in own), weights=tuple(weights))


def names_of(request: AttachRequest) -> list[str]:
    """What the concepts of a request are called."""
    return [_name(given) for given in request.concepts]


def taken_apart(request: AttachRequest) -> AttachRequest:
    """The request for the parts of the merge that it is for; any other as it is."""
    (first, *more) = request.concepts
    if not more and len(getattr(first, "parts", ())) > 1:
        whole = request.weights[0] if request.weights else 1.0
        strengths = tuple(whole * part.weight for part in first.parts)
        parts = tuple(part.concept for part in first.parts)
        routing = first.concept.routing
        request = replace(
            request,
            concepts=parts,
            weights=strengths,
            merge_method=first.report.merge_method,
            padding_delta=routing.padding_delta if routing else request.padding_delta,
        )
    return request


def reopened(registry: "Registry | None") -> "AbstractContextManager[Registry | None]":
    """The same registry once more: whoever attached may have closed theirs since."""
    return nullcontext() if registry is None else type(registry)(registry.home)


def _name(given: "str | Concept | Merge") -> str:
    """Of what is attached, without its strength and version."""
    if isinstance(given, str):
        return split_weight(given)[0].partition("@")[0]
    return given.name if isinstance(given, Concept) else given.concept.name
