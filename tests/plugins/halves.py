"""A merge method: half of each concept."""

from conceptkit.concepts.delta import Delta
from conceptkit.merging.method_table import MergeMethod
from conceptkit.merging.methods.base import MergeContext, MergeResult


def merge(context: MergeContext) -> MergeResult:
    """(D_1 + ... + D_n) / 2."""
    shares = [part.delta * 0.5 for part in context.parts]
    return MergeResult(Delta.sum(shares), shares, recipe={"share": 0.5})


HALVES = MergeMethod("halves", "half of each", merge, refuses=frozenset({"strengths"}))
