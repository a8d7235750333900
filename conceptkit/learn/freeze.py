"""What stands still of a base while it is taught, and comes back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from conceptkit.base.pipeline import Base
from conceptkit.learn.train_config import TrainConfig


@contextmanager
def frozen(base: Base) -> Iterator[None]:
    """Nothing of the base learns or drops out meanwhile; flags are put back."""
    modules = [m for m in base.pipe.components.values() if isinstance(m, torch.nn.Module)]
    flags = [(p, p.requires_grad) for m in modules for p in m.parameters()]
    modes = [(m, m.training) for m in modules]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        for m, _ in modes:
            m.eval()
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
        for m, mode in modes:
            m.train(mode)


@contextmanager
def gradient_checkpointing(base: Base, recipe: TrainConfig) -> Iterator[None]:
    """Activations of the UNet are computed twice instead of kept, if the recipe says so."""
    if not recipe.gradient_checkpointing:
        yield
        return
    kept = [(module, dict(vars(module))) for module in base.denoiser.modules()]
    try:
        base.denoiser.enable_gradient_checkpointing()
        yield
    finally:
        for module, before in kept:
            for name in ("gradient_checkpointing", "_gradient_checkpointing_func"):
                vars(module).pop(name, None)
                vars(module).update({name: before[name]} if name in before else {})
