"""What learning asks of a device: half precision, optimisers of 8 bits, compiled code."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from conceptkit.base import devices
from conceptkit.errors import BadRecipe
from conceptkit.learn.optimizers import bitsandbytes
from conceptkit.learn.train_config import TrainConfig

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types that a forward pass is computed in; what learns is always kept in float32."""
LEARNS_ON: dict[str, tuple[str, ...]] = {
    "bf16": ("cuda", "cpu"),
    "fp16": ("cuda",),
    "adamw8bit": ("cuda", "cpu"),
    "torch_compile": ("cuda",),
}
"""The kinds of device on which each of these is known to work."""
LEAST_SCALE = 1.0
"""At this scale of the loss a gradient that still overflows is no matter of scale any more."""


def check(device: torch.device, recipe: TrainConfig) -> None:
    """Raises BadRecipe when the device, or the installation, cannot do what the recipe asks for."""
    for asked in (recipe.mixed_precision, recipe.optimizer):
        if device.type not in LEARNS_ON.get(asked, (device.type,)):
            other = "fp32" if asked in HALF else "adamw"
            raise BadRecipe(
                f"{asked} works on {' and '.join(LEARNS_ON[asked])} alone, and the base is on {device.type}; "
                f"give {other}, or another --device"
            )
    if recipe.mixed_precision == "bf16" and device.type == "cuda" and not _has_bfloat16():
        raise BadRecipe("This GPU cannot compute in bf16; give --mixed-precision fp16 or fp32")
    if recipe.optimizer == "adamw8bit":
        bitsandbytes()


def notices(device: torch.device, recipe: TrainConfig) -> list[str]:
    """What the recipe asks for that only costs time here."""
    told = []
    if recipe.torch_compile and device.type not in LEARNS_ON["torch_compile"]:
        told.append(
            f"torch_compile = yes is for {LEARNS_ON['torch_compile'][0]}; on {device.type} "
            "learning goes on without."
        )
    if recipe.mixed_precision == "bf16" and device.type == "cpu" and not devices.has_bfloat16():
        told.append("This CPU only emulates bf16, many times slower than fp32; leave --mixed-precision out.")
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


def _has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
