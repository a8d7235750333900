"""Random numbers that depend on what they are for, and on nothing that was drawn before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def hash_of(*parts: object) -> int:
    """A stable 63-bit number for a generator."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the random numbers of the CPU and of `device` begin at `seed`; afterwards all go on as before.

    Generators of other devices are neither read nor seeded.
    """
    import torch

    generators: list[Any] = [torch.random]
    if device.type not in ("cpu", "meta"):
        generators.append(_OfDevice(device))
    states = [one.get_rng_state() for one in generators]
    try:
        torch.default_generator.manual_seed(seed)
        for one in generators[1:]:
            one.manual_seed(seed)
        yield
    finally:
        for one, state in zip(generators, states, strict=True):
            one.set_rng_state(state)


class _OfDevice:
    """The default generator of one accelerator."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._module, self._device = torch.get_device_module(device), device
        # Of Apple's kind there is one, and its functions take no number.
        self._which = () if device.type == "mps" else (device,)

    def get_rng_state(self) -> torch.Tensor:
        return self._module.get_rng_state(*self._which)

    def set_rng_state(self, state: torch.Tensor) -> None:
        self._module.set_rng_state(state, *self._which)

    def manual_seed(self, seed: int) -> None:
        with self._module.device(self._device) if self._which else nullcontext():
            self._module.manual_seed(seed)
