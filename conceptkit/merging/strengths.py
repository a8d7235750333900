"""A merge at other strengths: its parts are weighed again, and nothing is fitted again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from conceptkit.base.pipeline import Base
from conceptkit.concepts.delta import Delta
from conceptkit.errors import BadRecipe
from conceptkit.merging import gated_lora
from conceptkit.merging.method_table import EACH, MergeMethod
from conceptkit.merging.methods.base import MergeResult
from conceptkit.merging.parts import Part


def weighed(
    result: MergeResult,
    parts: Sequence[Part],
    method: MergeMethod,
    strengths: Mapping[str, float],
    base: Base,
) -> tuple[MergeResult, list[Part]]:
    """What a merge of `parts` gives at these strengths, by name; parts that are not named keep theirs.

    result: of the merge at the strengths that the parts have. Raises BadRecipe where the method's result is
    not linear in each strength, and they do not all change by one factor; and what `beyond` raises.
    """
    anew = [replace(part, weight=strengths.get(part.concept.name, part.weight)) for part in parts]
    factors = [new.weight / old.weight for new, old in zip(anew, parts, strict=True)]
    together = max(factors) - min(factors) <= 1e-9 * max(factors)
    if together:
        return replace(result, delta=result.delta * factors[0]), anew
    if method.strengths != EACH:
        raise BadRecipe(
            f"A merge by {method.name} is not linear in the strength of each part; change all by one factor, "
            "or attach them again at the strengths you want"
        )
    shares = [share.only(base.sizes) * factor for share, factor in zip(result.shares, factors, strict=True)]
    merged = Delta.stacked(shares, base.sizes)[0] if result.routing else Delta.sum(shares)
    return replace(result, delta=merged | gated_lora.joined(anew, base.sizes).delta), anew
