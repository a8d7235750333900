"""Deltas side by side: each token reads its own concept's delta alone."""

from conceptkit.concepts.delta import Delta
from conceptkit.concepts.routing import Routing
from conceptkit.merging.methods.base import MergeContext, MergeResult


def merge_routed(context: MergeContext) -> MergeResult:
    """The deltas side by side, to be read apart: which of their ranks are whose is said by the routes."""
    sizes, beside = context.base.sizes, context.wide
    delta, ranks = Delta.stacked([part.delta.only(sizes) for part in context.parts], sizes)
    part_of = {word: i for i, part in enumerate(context.parts) for word in part.concept.words}
    return MergeResult(
        delta | beside.delta,
        [part.delta for part in context.parts],
        recipe=beside.recipe,
        routing=Routing(tuple(ranks), part_of, context.padding_delta),
    )
