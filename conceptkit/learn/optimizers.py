"""The optimizers that learning can use."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from conceptkit.errors import BadRecipe
from conceptkit.learn.train_config import PRODIGY, TrainConfig

ESTIMATES = ("d", "d_max", "d_numerator", "k")
"""What Prodigy knows of a group beside its parameters' moments."""


def optimizer_for(
    groups: Sequence[tuple[list[nn.Parameter], float]], betas: tuple[float, float], recipe: TrainConfig
) -> Any:
    """The recipe's optimizer over (parameters, learning rate).

    "adamw8bit" keeps moments in 8 bits: blocks of 256 share a scale (2110.02861), and parameters of under
    4,096 numbers keep 32 bits. "prodigy" finds a rate for each group by itself.
    """
    decay, eps = recipe.adam_weight_decay, recipe.adam_epsilon
    if recipe.optimizer == PRODIGY:
        return Separate([_prodigy(own, lr, betas, recipe) for own, lr in groups])
    given = [{"params": parameters, "lr": lr} for parameters, lr in groups]
    make = bitsandbytes().optim.AdamW8bit if recipe.optimizer == "adamw8bit" else torch.optim.AdamW
    return make(given, betas=betas, weight_decay=decay, eps=eps)


def betas(recipe: TrainConfig, own: float) -> tuple[float, float]:
    """Adam's two decay rates; `own` is that of squares where the recipe names none."""
    return recipe.adam_beta1, recipe.adam_beta2 or own


@torch.no_grad()
def clip(parameters: Sequence[nn.Parameter], most: float) -> None:
    """Scale gradients to a norm of at most `most`, of all parameters together; 0: leave them."""
    if most:
        nn.utils.clip_grad_norm_(parameters, most)


@torch.no_grad()
def decay_towards_zero(parameters: Sequence[nn.Parameter], below: Sequence[Tensor], amount: float) -> None:
    """What decoupled decay by `amount` of a whole weight asks of a delta on it, whose own part has decayed.

    below: the weights that the deltas are on. Training the weight itself decays all of it.
    """
    for parameter, weight in zip(parameters, below, strict=True):
        parameter.add_(weight.detach().to(parameter), alpha=-amount)


class Separate:
    """Optimizers of one group each, used as one: what is estimated of one group is not for another."""

    def __init__(self, each: Sequence[torch.optim.Optimizer]) -> None:
        self.each = list(each)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all."""
        return [group for one in self.each for group in one.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        """That of all parameters."""
        return {parameter: state for one in self.each for parameter, state in one.state.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients."""
        for one in self.each:
            one.zero_grad(set_to_none)

    def step(self) -> None:
        """One step of each."""
        for one in self.each:
            one.step()

    def state_dict(self) -> dict[str, Any]:
        """Without the parameters' moments, which `load_state_dict` is given beside it."""
        return {}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Moments by the place of their parameter among those of all."""
        begin = 0
        for one in self.each:
            count = sum(len(group["params"]) for group in one.param_groups)
            own = {k: stored["state"][begin + k] for k in range(count) if begin + k in stored["state"]}
            one.load_state_dict({**one.state_dict(), "state": own})
            begin += count


def _prodigy(
    parameters: list[nn.Parameter], lr: float, betas: tuple[float, float], recipe: TrainConfig
) -> torch.optim.Optimizer:
    """As diffusers' scripts call it: bias correction, and no trust in the rate while it warms up."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that weight decay is decoupled
        made: torch.optim.Optimizer = importlib.import_module("prodigyopt").Prodigy(
            parameters,
            lr=lr,
            betas=betas,
            eps=recipe.adam_epsilon,
            weight_decay=recipe.adam_weight_decay,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
    return made


def bitsandbytes() -> ModuleType:
    """The library of that name. Raises BadRecipe when it is not installed, or does not work here."""
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise BadRecipe(
            "The optimiser adamw8bit needs bitsandbytes; run pip install 'conceptkit[8bit]', or give adamw"
        ) from error
