"""How the learning rate goes over the steps of a phase, as shares of the recipe's."""

from __future__ import annotations

import math
from collections.abc import Callable

from conceptkit.learn.train_config import TrainConfig

Schedule = Callable[[int, int], float]
"""From a step and the number of steps to a share of the rate."""


def annealed(step: int, steps: int) -> float:
    """Up over a twentieth of the steps, level to the half, then straight down to zero."""
    return min(1.0, (step + 1) / max(1, steps // 20), 2 * (1 - step / steps))


def square_root(step: int, steps: int) -> float:
    """Down as the square root of what is left."""
    return float((1 - step / steps) ** 0.5)


def schedule_of(recipe: TrainConfig, own: Schedule) -> Schedule:
    """That of the recipe; `own` is what "annealed" means in this phase.

    The others are those of diffusers (`diffusers.optimization`): the first step of a warm-up has rate 0.
    """
    name, warmup = recipe.lr_scheduler, recipe.lr_warmup_steps
    if name == "annealed":
        return own
    if name == "constant":
        return lambda step, steps: 1.0

    def warming(step: int, steps: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        gone = (step - warmup) / max(1, steps - warmup)
        if name == "linear":
            return max(0.0, 1 - gone)
        if name == "cosine":
            return max(0.0, 0.5 * (1 + math.cos(math.pi * gone)))
        return 1.0

    return warming
