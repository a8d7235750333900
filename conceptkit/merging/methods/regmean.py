"""Least squares over everybody's prompts and ordinary captions: each concept gives way a little."""

import torch

from conceptkit.concepts.delta import Delta
from conceptkit.features.closed_form import CONTEXT_WEIGHT, RIDGE, soft_form
from conceptkit.merging import merge_inputs
from conceptkit.merging.methods.base import MergeContext, MergeResult, blocks
from conceptkit.merging.report import Solved


def merge_regmean(context: MergeContext) -> MergeResult:
    """Least squares over all concepts' prompts; what is not keys and values is added up."""
    inputs = context.inputs
    counts = [len(p.asked) for p in inputs]
    beside = context.wide
    recipe = {"rows": counts, "ridge": RIDGE, "context_weight": CONTEXT_WEIGHT, **beside.recipe}
    rows = torch.cat([p.rows for p in inputs])
    if not context.sizes:
        return MergeResult(beside.delta, [Delta() for _ in context.parts], rows, recipe=recipe)
    weights = [part.weight for part in context.parts]
    given = merge_inputs.joined([p.given for p in inputs], counts, weights, context.sizes)
    asked, seen = torch.cat([p.asked for p in inputs]), torch.cat([p.seen for p in inputs])
    down, used, condition = soft_form(asked, seen, context.ordinary.factor)
    delta = merge_inputs.factors_of(given, down)
    solved = Solved(condition, problem="regmean", rows=round(used))
    return MergeResult(delta | beside.delta, blocks(delta, counts), rows, solved, recipe)
