"""Least squares over everybody's prompts and ordinary captions: each concept gives way a little."""

import torch

from conceptkit.concepts.delta import Delta
from conceptkit.features.closed_form import CONTEXT_WEIGHT, RIDGE, soft_form
from conceptkit.merging import merge_inputs
from conceptkit.merging.methods.base import MergeContext, MergeResult, blocks
from conceptkit.merging.report import Solved


def merge_soft(kitchen: MergeContext) -> MergeResult:
    """Least squares over all concepts' prompts; what is not keys and values is added up."""
    ready = kitchen.prepared
    counts = [len(p.asked) for p in ready]
    beside = kitchen.wide
    recipe = {"rows": counts, "ridge": RIDGE, "context_weight": CONTEXT_WEIGHT, **beside.recipe}
    rows = torch.cat([p.rows for p in ready])
    if not kitchen.sizes:
        return MergeResult(beside.delta, [Delta() for _ in kitchen.parts], rows, recipe=recipe)
    weights = [part.weight for part in kitchen.parts]
    given = merge_inputs.joined([p.given for p in ready], counts, weights, kitchen.sizes)
    asked, seen = torch.cat([p.asked for p in ready]), torch.cat([p.seen for p in ready])
    down, used, condition = soft_form(asked, seen, kitchen.ordinary.factor)
    delta = merge_inputs.factors_of(given, down)
    solved = Solved(condition, problem="soft", rows=round(used))
    return MergeResult(delta | beside.delta, blocks(delta, counts), rows, solved, recipe)
