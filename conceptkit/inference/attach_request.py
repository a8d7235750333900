"""What `attach` is asked for, checked before anything is changed."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from conceptkit.base import pipeline
from conceptkit.concepts.concept import Concept, read
from conceptkit.concepts.routing import ROUTED
from conceptkit.errors import BadRegion, ConceptError, UnknownConcept
from conceptkit.inference import regions
from conceptkit.merging.request import (
    MERGE_METHOD,
    PADDING_DELTA,
    check_merge_method,
    check_one_way_apart,
    split_weight,
)

if TYPE_CHECKING:
    from conceptkit.merging.compose import Merge
    from conceptkit.merging.report import Report
    from conceptkit.registry.store import Registry


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
    confine: in one frame each concept acts in its own part alone, see `confinement`; in a prompt of one
        thing too; None: not.
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
    """What an request comes to on a base: one concept, and the report of the merge that it is."""

    concept: Concept
    report: "Report | None"
    notice: str | None


def find_concepts(request: AttachRequest, here: pipeline.Base) -> Found:
    """One concept as it is, several as their merge, with what a user should know. Raises BadRegion."""
    concept, report = resolve_concepts(request, here)
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
    return Found(concept, report, "; ".join(text for text in notices if text) or None)


def resolve_concepts(request: AttachRequest, here: pipeline.Base) -> "tuple[Concept, Report | None]":
    """One concept as it is, several as their merge with its report."""
    (first, *more) = request.concepts
    weighted = request.weights is not None or (isinstance(first, str) and split_weight(first)[1] != 1)
    if more or weighted or request.merge_method == ROUTED:
        from conceptkit.merging.compose import compose

        merge = compose(
            *(getattr(c, "concept", c) for c in request.concepts),
            base=here,
            registry=request.registry,
            weights=request.weights,
            merge_method=request.merge_method,
            padding_delta=request.padding_delta,
        )
        return merge.concept, merge.report
    if isinstance(first, str):
        from conceptkit.registry.opening import opened

        with opened(request.registry) as registry:
            return read(registry, split_weight(first)[0]), None
    return getattr(first, "concept", first), getattr(first, "report", None)


def exchanged(
    request: AttachRequest, present: Sequence[str], old: str, new: "str | Concept | Merge"
) -> AttachRequest:
    """The request with one concept for another; a merge that was attached is taken apart again."""
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
    names = [_name(given) for given in request.concepts]
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


def reopened(registry: "Registry | None") -> "AbstractContextManager[Registry | None]":
    """The same registry once more: whoever attached may have closed theirs since."""
    return nullcontext() if registry is None else type(registry)(registry.home)


def _name(given: "str | Concept | Merge") -> str:
    """Of what is attached, without its strength and version."""
    if isinstance(given, str):
        return split_weight(given)[0].partition("@")[0]
    return given.name if isinstance(given, Concept) else given.concept.name
