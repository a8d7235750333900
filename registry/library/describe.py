"""What one file of another program is, from its header and its bytes; its tensors are hashed, not loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conceptkit.registry.library.shapes import family_of_shapes
from conceptkit.registry.library.trigger_words import preview_of, trigger_words

SAFETENSORS = ".safetensors"
PICKLES = (".pt", ".bin", ".pth", ".ckpt")
SUFFIXES = (SAFETENSORS, *PICKLES)
CHUNK = 1 << 20
LONGEST_HEADER = 64 << 20
AUTOV2 = 10
"""Hex digits of the sha256 that other tools show."""
_KINDS = (
    ("LoHa", ("hada_w1_a",)),
    ("LoKr", ("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w2_a")),
    ("DoRA", ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight")),
    ("LoRA", ("lora_down.weight", "lora_A.weight", "lora.down.weight", "lora_A.default.weight")),
    ("Custom Diffusion", ("to_k_custom_diffusion.weight", "to_v_custom_diffusion.weight")),
)


@dataclass(frozen=True)
class Described:
    """kind: "LoRA", "embedding", "checkpoint", "pickle", "other", or "damaged". family: a key of the naming
    tables, None where shapes do not tell. words: that call it. sha256: of the file; tensors: of the bytes
    behind the header, which is what `sshs_model_hash` is; of a pickle the same as the sha256."""

    kind: str
    family: str | None
    words: tuple[str, ...]
    sha256: str
    tensors: str
    preview: str | None = None

    @property
    def autov2(self) -> str:
        """The short hash that other tools show."""
        return self.sha256[:AUTOV2].upper()

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self) | {"autov2": self.autov2}


def describe(path: Path) -> Described:
    """Read one file through, once. Raises OSError."""
    begin, header = _header(path) if path.suffix.lower() == SAFETENSORS else (0, None)
    whole, body = _hashes(path, begin)
    picture = preview_of(path)
    shown = None if picture is None else picture.name
    if path.suffix.lower() != SAFETENSORS:
        return Described("pickle", None, tuple(trigger_words({}, path)), whole, body, shown)
    if header is None:
        return Described("damaged", None, (), whole, body, shown)
    metadata = header.get("__metadata__")
    texts = {k: v for k, v in metadata.items() if isinstance(v, str)} if isinstance(metadata, dict) else {}
    shapes = {
        key: tuple(about["shape"])
        for key, about in header.items()
        if key != "__metadata__" and isinstance(about, dict) and isinstance(about.get("shape"), list)
    }
    words = tuple(trigger_words(texts, path))
    return Described(_kind(shapes), _family(shapes), words, whole, body, shown)


def _family(shapes: Mapping[str, tuple[Any, ...]]) -> str | None:
    try:
        return family_of_shapes(shapes)
    except (TypeError, IndexError):
        return None


def _kind(shapes: Mapping[str, tuple[Any, ...]]) -> str:
    for kind, ends in _KINDS:
        if any(key.endswith(ends) for key in shapes):
            return kind
    if any("lora" in key for key in shapes):
        return "LoRA"
    if set(shapes) & {"emb_params", "clip_l", "clip_g", "t5xxl", "t5"} or len(shapes) == 1:
        return "embedding"
    return "checkpoint" if any("diffusion_model" in key for key in shapes) else "other"


def _header(path: Path) -> tuple[int, dict[str, Any] | None]:
    """(where the tensors begin, the header); (0, None) of a file that is not whole."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            return 0, None
        try:
            told = json.loads(handle.read(length))
            ends = [about["data_offsets"][1] for key, about in told.items() if key != "__metadata__"]
            whole = all(type(end) is int for end in ends) and max(ends, default=0) == size - 8 - length
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError):
            return 0, None
    return (8 + length, told) if whole else (0, None)


def _hashes(path: Path, begin: int) -> tuple[str, str]:
    """sha256 of a file, and of its bytes from `begin` on."""
    whole, body, left = hashlib.sha256(), hashlib.sha256(), begin
    with path.open("rb") as handle:
        while piece := handle.read(min(CHUNK, left) if left else CHUNK):
            whole.update(piece)
            if left:
                left -= len(piece)
            elif begin:
                body.update(piece)
    return whole.hexdigest(), body.hexdigest() if begin else whole.hexdigest()
