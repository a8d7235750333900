"""One stretch of learning: the same parameters, step after step, with checkpoints and validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from conceptkit.errors import ConceptError
from conceptkit.learn import losses, mixed_precision, optimizers, torch_compile, training_step
from conceptkit.learn.checkpoints import CheckpointManager, CheckpointState, capture, restore
from conceptkit.learn.early_stopping import EarlyStopping
from conceptkit.learn.trainable_delta import ParameterGroup
from conceptkit.learn.training_step import TrainingContext


@dataclass(eq=False)
class TrainingPhase:
    """A stretch of steps in which the same parameters learn.

    name: "token" or "delta", on which random numbers depend.
    groups: what learns, with the fields of the recipe that say how fast.
    token_fraction: the share of the steps in which the token learns.
    """

    name: str
    steps: int
    groups: list[ParameterGroup]
    betas: tuple[float, float]
    lr_schedule: Callable[[int, int], float]
    with_prior: bool
    conditionings: training_step.Conditionings
    regularizer: Callable[[], Tensor] | None
    progress: Callable[[int], None]
    before: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)
    token_fraction: float = 1.0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters that learn."""
        return [p for group in self.groups for p in group.parameters]

    def lr_factor(self, group: ParameterGroup, step: int) -> float:
        """The share of its rate at which a group learns in a step; a token may stand still in the end."""
        if group.rate == "token_learning_rate" and step >= self.token_steps:
            return 0.0
        return self.lr_schedule(step, self.steps)

    @property
    def token_steps(self) -> int:
        """The steps in which the token learns."""
        return self.steps if self.token_fraction == 1 else round(self.token_fraction * self.steps)

    @property
    def rates(self) -> list[str]:
        """The fields of the recipe that say how fast its parameters learn."""
        return list(dict.fromkeys(group.rate for group in self.groups))


def run(
    context: TrainingContext,
    phase: TrainingPhase,
    checkpoints: CheckpointManager,
    early_stopping: EarlyStopping,
) -> None:
    """Steps, from where the checkpoints says, to the end or until validation gets no better."""
    parameters, distributed = phase.parameters, context.distributed
    base, recipe = context.base, context.recipe
    rated = [(group.parameters, float(getattr(recipe, group.rate)) * group.unit) for group in phase.groups]
    optimiser = optimizers.optimizer_for(rated, phase.betas, recipe)
    scaler = mixed_precision.scaler(base.device, recipe.mixed_precision)
    begin = 0
    if (state := checkpoints.at(phase.name)) is not None:
        early_stopping.best = restore(state.tensors, parameters, optimiser, scaler)
        early_stopping.curve, early_stopping.best_step, begin = list(state.curve), state.best, state.step
    else:
        early_stopping.begin(phase.before, parameters)
    plain = _gradients(context, phase, begin, scaler) if torch_compile.compiles(base, recipe) else None
    with torch_compile.compiled(base, recipe):
        for step in range(begin, phase.steps):
            if early_stopping.look(phase.before + step, parameters):
                break
            rates = [
                lr * phase.lr_factor(group, step) for group, (_, lr) in zip(phase.groups, rated, strict=True)
            ]
            for group, lr in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = lr
            optimiser.zero_grad()
            loss = _descend(context, phase, step, scaler)
            if not losses.finite(loss):
                raise ConceptError(_no_number(step, checkpoints, recipe.mixed_precision, phase.rates))
            if plain is not None:
                torch_compile.check_compiled([p.grad for p in parameters], plain)
                plain = None
            if distributed.first:
                tensors = capture(parameters, optimiser, early_stopping.best, scaler) | phase.kept
                checkpoints.keep(
                    CheckpointState(phase.name, step, tensors, early_stopping.curve, early_stopping.best_step)
                )
            distributed.add_up(parameters)
            if recipe.max_grad_norm:
                scaler.unscale_(optimiser)
                optimizers.clip(parameters, recipe.max_grad_norm)
            scaler.step(optimiser)
            scaler.update()
            if recipe.adam_weight_decay:
                _decay_below(phase, rates, recipe.adam_weight_decay)
            if scaler.get_scale() < mixed_precision.LEAST_SCALE:
                raise ConceptError(
                    f"Gradients at step {step} are too large for fp16; give --mixed-precision bf16 or fp32"
                )
            phase.progress(step + 1)
        else:
            early_stopping.look(phase.before + phase.steps, parameters, last=True)
    early_stopping.put_back(parameters)
    optimiser.zero_grad()


def _decay_below(phase: TrainingPhase, rates: Sequence[float], decay: float) -> None:
    """Weights that learn in full decay with what they were before, as they do where they learn themselves."""
    for group, lr in zip(phase.groups, rates, strict=True):
        if group.below:
            optimizers.decay_towards_zero(group.parameters, group.below, lr * decay)


def _gradients(
    context: TrainingContext, phase: TrainingPhase, step: int, scaler: torch.amp.GradScaler
) -> list[Tensor | None] | None:
    """This process's gradients of a step, for later comparison; None at the end, where there is no step."""
    if step >= phase.steps:
        return None
    for p in phase.parameters:
        p.grad = None
    _descend(context, phase, step, scaler)
    return [None if p.grad is None else p.grad.clone() for p in phase.parameters]


def _descend(
    context: TrainingContext, phase: TrainingPhase, step: int, scaler: torch.amp.GradScaler
) -> Tensor:
    """Gradients of one step's loss, as the scaler scales it, and the loss itself, over all processes."""
    drawn = training_step.sample_step(context, (phase.name, step), phase.with_prior)
    total = torch.zeros(())
    for part in range(context.recipe.gradient_accumulation_steps):
        loss = training_step.loss(context, drawn, phase.conditionings, part)
        if phase.regularizer is not None and part == 0 and context.distributed.first:
            loss = loss + phase.regularizer()
        scaler.scale(loss).backward()
        total = total + loss.detach().cpu()
    return context.distributed.total(total)


def _no_number(step: int, checkpoints: CheckpointManager, precision: str, rates: Sequence[str]) -> str:
    text = f"The loss is no number at step {step}; try again with a smaller learning rate"
    text += " or --mixed-precision fp32" if precision == "fp16" else ""
    if checkpoints.path is None or not checkpoints.path.is_file():
        return text
    smaller = " or ".join(f"--set {rate}" for rate in rates)
    return f"{text}, or go on from the last good state with --resume and a smaller {smaller}"
