"""One stretch of learning: the same parameters, step after step, with checkpoints and validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from conceptkit.errors import ConceptError
from conceptkit.learn import checkpoints, losses, mixed_precision, optimizers, torch_compile, training_step
from conceptkit.learn.checkpoints import CheckpointManager, CheckpointState
from conceptkit.learn.early_stopping import EarlyStopping
from conceptkit.learn.training_step import TrainingContext


@dataclass(eq=False)
class TrainingPhase:
    """A stretch of steps in which the same parameters learn. name: "token" or "delta", part of the dice.

    rates: the fields of the recipe that say how fast.
    """

    name: str
    steps: int
    groups: list[tuple[list[nn.Parameter], float]]
    betas: tuple[float, float]
    ramp: Callable[[int, int], float]
    with_prior: bool
    told: training_step.Conditionings
    more: Callable[[], Tensor] | None
    tick: Callable[[int], None]
    rates: Sequence[str]
    before: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group, _ in self.groups for p in group]


def run(
    taught: TrainingContext, stage: TrainingPhase, keeper: CheckpointManager, watch: EarlyStopping
) -> None:
    """Steps, from where the keeper says, to the end or until validation gets no better."""
    parameters, crew = stage.parameters, taught.crew
    base, recipe = taught.base, taught.recipe
    optimiser = optimizers.optimizer_for(stage.groups, stage.betas, recipe.optimiser)
    scaler = mixed_precision.scaler(base.device, recipe.precision)
    begin = 0
    if (state := keeper.at(stage.name)) is not None:
        watch.best = checkpoints.restore(state.tensors, parameters, optimiser, scaler)
        watch.curve, watch.best_step, begin = list(state.curve), state.best, state.step
    else:
        watch.begin(stage.before, parameters)
    plain = _gradients(taught, stage, begin, scaler) if torch_compile.compiles(base, recipe) else None
    with torch_compile.compiled(base, recipe):
        for step in range(begin, stage.steps):
            if watch.look(stage.before + step, parameters):
                break
            for group, (_, lr) in zip(optimiser.param_groups, stage.groups, strict=True):
                group["lr"] = lr * stage.ramp(step, stage.steps)
            optimiser.zero_grad()
            loss = _descend(taught, stage, step, scaler)
            if not losses.finite(loss):
                raise ConceptError(_no_number(step, keeper, recipe.precision, stage.rates))
            if plain is not None:
                torch_compile.check_compiled([p.grad for p in parameters], plain)
                plain = None
            if crew.first:
                tensors = checkpoints.capture(parameters, optimiser, watch.best, scaler) | stage.kept
                keeper.keep(CheckpointState(stage.name, step, tensors, watch.curve, watch.best_step))
            crew.add_up(parameters)
            scaler.step(optimiser)
            scaler.update()
            if scaler.get_scale() < mixed_precision.LEAST_SCALE:
                raise ConceptError(
                    f"Gradients at step {step} are too large for fp16; give --precision bf16 or fp32"
                )
            stage.tick(step + 1)
        else:
            watch.look(stage.before + stage.steps, parameters, last=True)
    watch.put_back(parameters)
    optimiser.zero_grad()


def _gradients(
    taught: TrainingContext, stage: TrainingPhase, step: int, scaler: torch.amp.GradScaler
) -> list[Tensor | None] | None:
    """This process's gradients of a step, for later comparison; None at the end, where there is no step."""
    if step >= stage.steps:
        return None
    for p in stage.parameters:
        p.grad = None
    _descend(taught, stage, step, scaler)
    return [None if p.grad is None else p.grad.clone() for p in stage.parameters]


def _descend(
    taught: TrainingContext, stage: TrainingPhase, step: int, scaler: torch.amp.GradScaler
) -> Tensor:
    """Gradients of one step's loss, as the scaler scales it, and the loss itself, over all processes."""
    drawn = training_step.sample_step(taught, (stage.name, step), stage.with_prior)
    total = torch.zeros(())
    for part in range(taught.recipe.accumulate):
        loss = training_step.loss(taught, drawn, stage.told, part)
        if stage.more is not None and part == 0 and taught.crew.first:
            loss = loss + stage.more()
        scaler.scale(loss).backward()
        total = total + loss.detach().cpu()
    return taught.crew.total(total)


def _no_number(step: int, keeper: CheckpointManager, precision: str, rates: Sequence[str]) -> str:
    text = f"The loss is no number at step {step}; try again with a smaller learning rate"
    text += " or --precision fp32" if precision == "fp16" else ""
    if keeper.path is None or not keeper.path.is_file():
        return text
    smaller = " or ".join(f"--set {rate}" for rate in rates)
    return f"{text}, or go on from the last good state with --resume and a smaller {smaller}"


def lr_schedule(step: int, steps: int) -> float:
    """Up over a twentieth of the steps, level to the half, then straight down to zero."""
    return min(1.0, (step + 1) / max(1, steps // 20), 2 * (1 - step / steps))
