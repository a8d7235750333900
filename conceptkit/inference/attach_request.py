"""What `attach` is asked for, checked before anything is changed."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptkit.base import pipeline
from conceptkit.concepts.concept import Concept, read
from conceptkit.concepts.routing import ROUTED
from conceptkit.errors import BadRegion, UnknownConcept
from conceptkit.inference import regions
from conceptkit.merging.request import check_one_way_apart, split_weight

if TYPE_CHECKING:
    from conceptkit.merging.report import Report
    from conceptkit.registry.store import Registry


@dataclass(frozen=True, eq=False)
class AttachOrder:
    """What was asked for: who, how strong, merged in which way, kept apart in which way."""

    concepts: tuple[Any, ...]
    weights: tuple[float, ...] | None
    merge_method: str
    padding_delta: str
    regions: Mapping[str, np.ndarray]
    separate: bool
    side_by_side: bool | None
    read_apart: bool | None
    registry: "Registry | None"


@dataclass(frozen=True, eq=False)
class Found:
    """What an order comes to on a base: one concept, and the report of the merge that it is."""

    concept: Concept
    report: "Report | None"
    notice: str | None


def read_order(
    concepts: tuple[Any, ...],
    weights: Sequence[float] | None,
    merge_method: str,
    padding_delta: str,
    places: Sequence[str],
    separate: bool,
    side_by_side: bool | None,
    read_apart: bool | None,
    registry: "Registry | None",
) -> AttachOrder:
    check_one_way_apart(places, separate, side_by_side)
    masks = regions.read(places)
    strengths = None if weights is None else tuple(weights)
    return AttachOrder(
        concepts, strengths, merge_method, padding_delta, masks, separate, side_by_side, read_apart, registry
    )


def find_concepts(order: AttachOrder, here: pipeline.Base) -> Found:
    """One concept as it is, several as their merge, with what a user should know. Raises BadRegion."""
    concept, report = resolve_concepts(order, here)
    regions.check(order.regions, tuple(concept.words))
    if concept.reference is not None and (order.regions or order.separate):
        raise BadRegion(
            f"{concept.name} looks at its reference photo, which has no regions; draw it without them, "
            "or learn it again with --method custom"
        )
    notices = (
        pipeline.check_fits(concept.base, here, concept.name, concept.base_name),
        *getattr(report, "notices", ()),
    )
    return Found(concept, report, "; ".join(text for text in notices if text) or None)


def resolve_concepts(order: AttachOrder, here: pipeline.Base) -> "tuple[Concept, Report | None]":
    (first, *more) = order.concepts
    weighted = order.weights is not None or (isinstance(first, str) and split_weight(first)[1] != 1)
    if more or weighted or order.merge_method == ROUTED:
        from conceptkit.merging.compose import compose

        merge = compose(
            *(getattr(c, "concept", c) for c in order.concepts),
            base=here,
            registry=order.registry,
            weights=order.weights,
            merge_method=order.merge_method,
            padding_delta=order.padding_delta,
        )
        return merge.concept, merge.report
    if isinstance(first, str):
        from conceptkit.registry.opening import opened

        with opened(order.registry) as registry:
            return read(registry, split_weight(first)[0]), None
    return getattr(first, "concept", first), getattr(first, "report", None)


def exchanged(order: AttachOrder, present: Sequence[str], old: str, new: Any) -> AttachOrder:
    """The order with one concept for another; a merge that was attached is taken apart again."""
    (first, *more) = order.concepts
    if not more and len(getattr(first, "parts", ())) > 1:
        whole = order.weights[0] if order.weights else 1.0
        strengths = tuple(whole * part.weight for part in first.parts)
        parts = tuple(part.concept for part in first.parts)
        routing = first.concept.routing
        order = replace(
            order,
            concepts=parts,
            weights=strengths,
            merge_method=first.report.merge_method,
            padding_delta=routing.padding_delta if routing else order.padding_delta,
        )
    names = [
        split_weight(c)[0].partition("@")[0] if isinstance(c, str) else getattr(c, "concept", c).name
        for c in order.concepts
    ]
    if old not in names:
        listed = ", ".join(names)
        raise UnknownConcept(
            f"{old} came as part of {listed}; attach the parts by name to swap one of them"
            if old in present
            else f"There is no {old} to swap; attached are {listed}"
        )
    at = names.index(old)
    weights = order.weights
    if weights is not None:
        given = split_weight(new) if isinstance(new, str) else (new, weights[at])
        weights = (*weights[:at], given[1], *weights[at + 1 :])
        new = given[0]
    name = (
        split_weight(new)[0].partition("@")[0] if isinstance(new, str) else getattr(new, "concept", new).name
    )
    places = {name if key == old else key: mask for key, mask in order.regions.items()}
    concepts = (*order.concepts[:at], new, *order.concepts[at + 1 :])
    return replace(order, concepts=concepts, weights=weights, regions=places)


def reopened(registry: "Registry | None") -> "AbstractContextManager[Registry | None]":
    """The same registry once more: whoever attached may have closed theirs since."""
    return nullcontext() if registry is None else type(registry)(registry.home)
