"""The closed form: each concept is exact on its own words (Custom Diffusion, 2212.04488, eq. 4)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from conceptkit.concepts.delta import Delta
from conceptkit.features.closed_form import MAX_CONDITION, RIDGE, merge_rows
from conceptkit.merging import merge_inputs
from conceptkit.merging.methods.base import MergeContext, MergeResult, blocks
from conceptkit.merging.report import Solved


def merge_closed_form(context: MergeContext) -> MergeResult:
    """The closed form over all concepts' rows at once; maps that no concept changes stay out of it."""
    inputs = context.inputs
    rows, white = torch.cat([p.rows for p in inputs]), torch.cat([p.white for p in inputs])
    counts = [len(p.rows) for p in inputs]
    beside = context.wide
    recipe = {"rows": counts, "ridge": RIDGE, "max_condition": MAX_CONDITION, **beside.recipe}
    if not context.sizes:
        return MergeResult(beside.delta, [Delta() for _ in context.parts], rows, recipe=recipe)
    weights = [part.weight for part in context.parts]
    targets = merge_inputs.joined([p.targets for p in inputs], counts, weights, context.sizes)
    solution = merge_rows(white, white.new_zeros(len(white), 0), context.ordinary.factor)
    delta = merge_inputs.factors_of(targets, solution.down)
    solved = Solved(
        solution.condition,
        solution.damping,
        solution.problem,
        solution.shared,
        len(rows) - solution.shared,
        _missed(targets, rows @ solution.down.T),
    )
    recipe |= {"problem": solution.problem}
    return MergeResult(delta | beside.delta, blocks(delta, counts), rows, solved, recipe)


def _missed(targets: Mapping[str, Tensor], met: Tensor) -> float:
    """||D C^T - R^T|| / ||R|| with D C^T = R^T met^T: through R R^T (s, s)."""
    moment = sum((block.double() @ block.double().T for block in targets.values()), torch.zeros(()).double())
    slack = met - torch.eye(len(met), dtype=met.dtype)
    size = float(moment.trace())
    return (max(0.0, float(((slack @ moment) * slack).sum())) / size) ** 0.5 if size > 0 else 0.0
