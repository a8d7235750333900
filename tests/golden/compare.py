"""Numbers that must not change: bit for bit where the machine is the one of the golden files, else nearly."""

import functools
import hashlib
import importlib.metadata
import json
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

LIBRARIES = (
    "accelerate",
    "diffusers",
    "numpy",
    "peft",
    "pillow",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)
EACH, ALL = 1e-2, 2e-3
"""How far one of the numbers' tensors, and all of them together, may be off on another machine:
||a - b|| / ||b||. Three times what AVX2 or SSE make of files from AVX-512; Adam enlarges small gradients."""
BASE = 1e-3
"""The same for the weights of a base, which are told by a sketch."""
PIXELS = 1
"""How far a channel of a pixel, of 0 to 255, may be off on another machine."""


def machine() -> dict[str, Any]:
    """All that rounding depends on, as JSON: libraries, and what the processor can do."""
    return {
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "system": platform.system(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
    }


def _processor() -> str:
    """Who made it and which vector instructions it has: MKL and oneDNN choose their code by both."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    told = dict(
        (part.strip() for part in line.split(":", 1)) for line in info.read_text().splitlines() if ":" in line
    )
    flags = sorted(f for f in told.get("flags", "").split() if f.startswith(("avx", "amx", "fma", "sse")))
    return " ".join([told.get("vendor_id", ""), *flags])


@functools.cache
def _differs(before: tuple[tuple[str, Any], ...]) -> str:
    now = machine()
    other = [(name, now.get(name), was) for name, was in before if now.get(name) != was]
    return "; ".join(f"{name} {new!s:.60} instead of {was!s:.60}" for name, new, was in other)


def exact(golden: Mapping[str, Any]) -> bool:
    """Whether numbers must be the same bit for bit here; a warning says why not."""
    differs = _differs(tuple(sorted(golden["machine"].items())))
    if differs:
        warnings.warn(f"The golden files are compared by tolerance: {differs}", stacklevel=2)
    return not differs


def sha(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes in float32; reports come in float64."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def shas(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """sha256 of each tensor."""
    return {name: sha(tensor) for name, tensor in tensors.items()}


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 of all tensors by their names: short, where a file beside it says which one changed."""
    told = json.dumps(
        {name: [*tensor.shape, sha(tensor)] for name, tensor in tensors.items()}, sort_keys=True
    )
    return hashlib.sha256(told.encode()).hexdigest()


def pixels(picture: Image.Image) -> np.ndarray:
    """(h, w, 3), 0 to 255."""
    return np.asarray(picture.convert("RGB"))


def pixel_sha(picture: Image.Image) -> str:
    """sha256 of the pixels, whatever file they are in."""
    return hashlib.sha256(pixels(picture).tobytes()).hexdigest()


def same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, str]) -> None:
    """Assert that these tensors, by name, have these sha256s."""
    assert sorted(found) == sorted(wanted)
    other = [name for name, tensor in found.items() if sha(tensor) != wanted[name]]
    assert not other, f"{len(other)} of {len(found)} tensors changed: {', '.join(other[:5])}"


def near(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Assert that tensors, by name, are the same within EACH, and all of one first word within ALL."""
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in wanted.items()}
    for name, tensor in wanted.items():
        off = distance(found[name], tensor)
        assert off <= EACH, f"{name} is off by {off:.1e}"
    for kind in {name.split()[0] for name in wanted}:
        names = [name for name in wanted if name.split()[0] == kind]
        off = distance(*(torch.cat([side[name].flatten() for name in names]) for side in (found, wanted)))
        assert off <= ALL, f"{kind} is off by {off:.1e}"


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """||found - wanted|| / ||wanted||; NaN counts as a value."""
    assert torch.equal(found.isnan(), wanted.isnan())
    found, wanted = found.nan_to_num().double(), wanted.nan_to_num().double()
    gap = float((found - wanted).norm())
    return gap / float(wanted.norm()) if gap else 0.0


def near_picture(found: Image.Image, wanted: Image.Image) -> None:
    """Assert that two pictures are the same within PIXELS."""
    assert found.size == wanted.size
    off = np.abs(pixels(found).astype(int) - pixels(wanted).astype(int)).max()
    assert off <= PIXELS, f"a pixel is off by {off}"
