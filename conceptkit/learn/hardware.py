"""What learning asks of a device: half precision, optimisers of 8 bits, compiled code."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conceptkit import devices
from conceptkit.base import Base
from conceptkit.errors import BadRecipe, ConceptError
from conceptkit.recipes import Recipe

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types that a forward pass is computed in; what learns is always kept in float32."""
LEARNS_ON: dict[str, tuple[str, ...]] = {
    "bf16": ("cuda", "cpu"),
    "fp16": ("cuda",),
    "adamw8bit": ("cuda", "cpu"),
    "compile": ("cuda",),
}
"""The kinds of device on which each of these is known to work."""
MOST_OFF = 0.3
"""How far, over its length, a compiled gradient may be from the one without."""
LEAST_SCALE = 1.0
"""At this scale of the loss a gradient that still overflows is no matter of scale any more."""


def check(device: torch.device, recipe: Recipe) -> None:
    """Raises BadRecipe when the device, or the installation, cannot do what the recipe asks for."""
    for asked in (recipe.precision, recipe.optimiser):
        if device.type not in LEARNS_ON.get(asked, (device.type,)):
            other = "fp32" if asked in HALF else "adamw"
            raise BadRecipe(
                f"{asked} works on {' and '.join(LEARNS_ON[asked])} alone, and the base is on {device.type}; "
                f"give {other}, or another --device"
            )
    if recipe.precision == "bf16" and device.type == "cuda" and not _has_bfloat16():
        raise BadRecipe("This GPU cannot compute in bf16; give --precision fp16 or fp32")
    if recipe.optimiser == "adamw8bit":
        _bitsandbytes()


def notices(device: torch.device, recipe: Recipe) -> list[str]:
    """What the recipe asks for that only costs time here."""
    told = []
    if recipe.compile and device.type not in LEARNS_ON["compile"]:
        told.append(
            f"compile = yes is for {LEARNS_ON['compile'][0]}; on {device.type} learning goes on without."
        )
    if recipe.precision == "bf16" and device.type == "cpu" and not devices.has_bfloat16():
        told.append("This CPU only emulates bf16, many times slower than fp32; leave --precision out.")
    return told


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """A block whose forward passes are computed in this precision."""
    if precision not in HALF:
        return contextlib.nullcontext()
    return torch.autocast(device.type, HALF[precision])


def scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales the loss up where small gradients would vanish (1710.03740, section 3.2); else does nothing.

    A step whose gradients overflow is left out, and the next one is scaled by half as much.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def optimiser(
    groups: Sequence[tuple[list[nn.Parameter], float]], betas: tuple[float, float], kind: str
) -> torch.optim.Optimizer:
    """AdamW without decay over (parameters, learning rate); "adamw8bit" keeps moments in 8 bits.

    Blocks of 256 moments share a scale (2110.02861); parameters of under 4,096 numbers keep 32 bits.
    """
    given = [{"params": parameters, "lr": lr} for parameters, lr in groups]
    make = _bitsandbytes().optim.AdamW8bit if kind == "adamw8bit" else torch.optim.AdamW
    made: torch.optim.Optimizer = make(given, betas=betas, weight_decay=0.0)
    return made


def compiles(base: Base, recipe: Recipe) -> bool:
    """Whether the recipe asks for torch.compile and the device is one it helps on."""
    return recipe.compile and base.device.type in LEARNS_ON["compile"]


@contextlib.contextmanager
def compiled(base: Base, recipe: Recipe) -> Iterator[None]:
    """The UNet goes through torch.compile, if the recipe says so and the device is one it helps on."""
    own = vars(base.unet)
    if not compiles(base, recipe):
        yield
        return
    before = {name: own[name] for name in ("_compiled_call_impl",) if name in own}
    try:
        base.unet.compile()
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
            "compile=yes out"
        )


def _has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise BadRecipe(
            "The optimiser adamw8bit needs bitsandbytes; run pip install 'conceptkit[8bit]', or give adamw"
        ) from error
