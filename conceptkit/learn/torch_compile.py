"""torch.compile for the UNet while it learns, checked against the plain one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from conceptkit.base.pipeline import Base
from conceptkit.errors import ConceptError
from conceptkit.learn.mixed_precision import LEARNS_ON
from conceptkit.learn.train_config import TrainConfig

MOST_OFF = 0.3
"""How far, over its length, a compiled gradient may be from the one without."""


def compiles(base: Base, recipe: TrainConfig) -> bool:
    """Whether the recipe asks for torch.compile and the device is one it helps on."""
    return recipe.torch_compile and base.device.type in LEARNS_ON["torch_compile"]


@contextlib.contextmanager
def compiled(base: Base, recipe: TrainConfig) -> Iterator[None]:
    """The UNet goes through torch.compile, if the recipe says so and the device is one it helps on."""
    own = vars(base.denoiser)
    if not compiles(base, recipe):
        yield
        return
    before = {name: own[name] for name in ("_compiled_call_impl",) if name in own}
    try:
        base.denoiser.compile()
        yield
    finally:
        own.pop("_compiled_call_impl", None)
        own.update(before)


def check_compiled(gradients: Sequence[Tensor | None], plain: Sequence[Tensor | None]) -> None:
    """Raises ConceptError where a gradient is not the one without torch.compile, both of the same step.

    Compilers have lost the gradients of whole blocks without a word. Half precision moves a gradient by a
    few hundredths of its length; a lost one is off by all of it.
    """
    pairs = [
        (torch.zeros_like(b) if a is None else a, b)
        for a, b in zip(gradients, plain, strict=True)
        if b is not None
    ]
    wrong = sum(bool((a - b).norm() > MOST_OFF * b.norm()) for a, b in pairs)
    if wrong:
        raise ConceptError(
            f"torch.compile changes the gradients of {wrong} of {len(pairs)} parameters that learn; leave "
            "torch_compile=yes out"
        )
