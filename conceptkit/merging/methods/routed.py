"""Deltas side by side: each token reads its own concept's delta alone."""

from conceptkit.concepts.delta import Delta
from conceptkit.merging.methods.base import MergeContext, MergeResult


def merge_routed(kitchen: MergeContext, shared: str) -> MergeResult:
    """The deltas side by side, to be read apart: which of their ranks are whose is in the recipe."""
    sizes, beside = kitchen.base.sizes, kitchen.wide
    delta, ranks = Delta.stacked([part.delta.only(sizes) for part in kitchen.parts], sizes)
    routes = {word: i for i, part in enumerate(kitchen.parts) for word in part.concept.words}
    recipe = {"ranks": ranks, "routes": routes, "shared": shared, **beside.recipe}
    return MergeResult(delta | beside.delta, [part.delta for part in kitchen.parts], recipe=recipe)
