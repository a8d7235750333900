"""The optimizers that learning can use."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from conceptkit.errors import BadRecipe


def optimizer_for(
    groups: Sequence[tuple[list[nn.Parameter], float]], betas: tuple[float, float], kind: str
) -> torch.optim.Optimizer:
    """AdamW without decay over (parameters, learning rate); "adamw8bit" keeps moments in 8 bits.

    Blocks of 256 moments share a scale (2110.02861); parameters of under 4,096 numbers keep 32 bits.
    """
    given = [{"params": parameters, "lr": lr} for parameters, lr in groups]
    make = bitsandbytes().optim.AdamW8bit if kind == "adamw8bit" else torch.optim.AdamW
    made: torch.optim.Optimizer = make(given, betas=betas, weight_decay=0.0)
    return made


def bitsandbytes() -> Any:
    """The library of that name. Raises BadRecipe when it is not installed, or does not work here."""
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise BadRecipe(
            "The optimiser adamw8bit needs bitsandbytes; run pip install 'conceptkit[8bit]', or give adamw"
        ) from error
