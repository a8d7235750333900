"""The tensors in a file or folder of another program; nothing that could be code is ever run."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from conceptkit.errors import BadBlob, ConceptError

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SUFFIXES = (".safetensors", *PICKLES)
ADAPTER_CONFIG = "adapter_config.json"
IN_FOLDER = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "pytorch_custom_diffusion_weights.safetensors",
    "pytorch_custom_diffusion_weights.bin",
    "delta.bin",
    "learned_embeds.safetensors",
    "learned_embeds.bin",
)
"""What programs call the weights in a folder of one concept."""
SEPARATOR = "/"
"""Between the keys of nested dictionaries."""


@dataclass(frozen=True, eq=False)
class TensorFile:
    """path: as it was given. tensors: by key; of nested dictionaries "outer/inner". metadata: of the header.

    config: of a PEFT folder. beside: embeddings that lie in the folder of a Custom Diffusion.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def is_concept_folder(path: Path) -> bool:
    """Whether a folder holds one concept of another program."""
    return path.is_dir() and _weights_in(path) is not None


def read_tensors(path: Path) -> TensorFile:
    """All of a file, or of a folder that is one concept. Raises BadBlob; ConceptError for other places."""
    if not path.is_dir():
        tensors, metadata = _read(path)
        return TensorFile(path, tensors, metadata)
    if (weights := _weights_in(path)) is None:
        raise ConceptError(f"{path} holds none of {', '.join(IN_FOLDER)}; name the file itself")
    tensors, metadata = _read(weights)
    config = _config(path / ADAPTER_CONFIG) if weights.name.startswith("adapter_model") else {}
    if "custom_diffusion" in weights.name:
        for file in sorted(path.iterdir()):
            if file.suffix in SUFFIXES and file.name.startswith("<"):
                more, _ = _read(file)
                tensors |= more
    return TensorFile(path, tensors, metadata, config)


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in IN_FOLDER if (folder / name).is_file()), None)


def _config(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadBlob(f"{file} cannot be read; a PEFT folder needs it") from error
    if not isinstance(told, dict):
        raise BadBlob(f"{file} is no configuration of PEFT; ask for the folder again")
    return told


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise ConceptError(f"There is no file {path}; name a LoRA, an embedding or a folder of them")
    if path.suffix.lower() in PICKLES:
        found: dict[str, Tensor] = {}
        for key, value in _flat(_unpickled(path), path):
            found[key] = value
        metadata: dict[str, str] = {}
    else:
        found, metadata = _safetensors(path)
    if not found:
        raise BadBlob(f"{path} holds no tensor; ask for it again")
    for key, tensor in found.items():
        if not (tensor.is_floating_point() or tensor.numel() <= 1):
            raise BadBlob(f"{key[:80]!r} in {path} is {tensor.dtype}, no weights; ask for a file in float16")
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise BadBlob(f"{key[:80]!r} in {path} is not finite; ask for the file again")
    return {key: tensor.detach().float() for key, tensor in found.items()}, metadata


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, OverflowError, RuntimeError, KeyError) as error:
        raise BadBlob(
            f"{path} is no whole safetensors file ({_short(error)}); it may be copied by half, fetch it again"
        ) from error


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadBlob(
            f"{path} is a pickle with more than weights in it, which could run code; it stays closed: ask "
            "for a safetensors file"
        ) from error
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, OSError) as error:
        raise BadBlob(
            f"{path} cannot be read ({_short(error)}); it may be copied by half, fetch it again"
        ) from error
    except (zipfile.BadZipFile, ImportError, MemoryError, OverflowError, AssertionError) as error:
        raise BadBlob(f"{path} is damaged ({_short(error)}); fetch it again") from error


def _flat(value: Any, path: Path, before: str = "") -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) of nested dictionaries; numbers are tensors too, texts and the like are left aside."""
    if isinstance(value, Tensor):
        yield before, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, path, f"{before}{SEPARATOR}{key}" if before else str(key))
    elif isinstance(value, float) and before.endswith("alpha"):
        yield before, torch.tensor(value)
    elif value is None or isinstance(value, str | int | bool | float):
        return
    else:
        raise BadBlob(f"{path} holds a {type(value).__name__} under {before[:80]!r}; nothing here reads that")


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:80] or type(error).__name__
