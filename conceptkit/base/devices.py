"""Where to compute: on an accelerator where there is one."""

from __future__ import annotations

from conceptkit.errors import BadDevice

AUTO = "auto"
KINDS = ("cuda", "mps", "cpu")
"""In the order of preference: a GPU of Nvidia or AMD, one of Apple, the processor."""


def choose(name: str = AUTO) -> str:
    """The device of this name, "cuda:1" is the second GPU; the best there is for "auto".

    Raises BadDevice when this machine has no such device.
    """
    present = _present()
    if name == AUTO:
        return next(kind for kind in KINDS if present[kind])
    kind, colon, number = name.partition(":")
    if kind not in present or (colon and not number.isdecimal()):
        raise BadDevice(f"There is no kind of device {name!r}; choose one of {AUTO}, {', '.join(KINDS)}")
    if not present[kind]:
        raise BadDevice(f"This machine has no device {kind!r} that torch can use; give {AUTO} or cpu")
    if colon and int(number) >= present[kind]:
        raise BadDevice(f"This machine has {present[kind]} of {kind!r}, counted from 0, and no {name!r}")
    return name


def _present() -> dict[str, int]:
    """How many of each kind there are."""
    import torch

    return {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16; others emulate it, over ten times slower than float32."""
    import torch

    return torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "SVE"))
