"""A concept as a PEFT LoRA that diffusers loads."""

import json
from typing import Any

import torch
from torch import Tensor

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import ENCODERS
from conceptkit.formats.provenance import pack, provenance

LORA = "pytorch_lora_weights.safetensors"
TEXT_MODEL = "text_model."


def files(concept: Concept, with_names: bool = False) -> dict[str, bytes]:
    """The LoRA alone: file name -> content."""
    return {LORA: lora(concept, with_names)}


def lora(concept: Concept, with_names: bool = False) -> bytes:
    """The delta as a LoRA for `load_lora_weights`, of the denoiser and of text encoders that it has maps of.

    One rank for all maps of a part, padded with zeros, and alpha equal to it: readers that drop per-module
    alphas, as diffusers does, then still scale by 1.
    """
    tensors: dict[str, Tensor] = {}
    adapter: dict[str, Any] = {}
    for part, delta in concept.delta.by_component().items():
        factors = {name: own.low_rank(narrow=True) for name, own in sorted(delta.items())}
        rank = max(up.shape[1] for up, _ in factors.values())
        for name, (up, down) in factors.items():
            more, key = rank - up.shape[1], f"{part}.{_written(part, name)}"
            tensors[f"{key}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, more))
            tensors[f"{key}.lora_B.weight"] = torch.nn.functional.pad(up, (0, more))
        names = sorted(name.removeprefix(TEXT_MODEL) for name in factors)
        adapter |= {f"{part}.r": rank, f"{part}.lora_alpha": rank, f"{part}.target_modules": names}
    return pack(
        tensors, {"lora_adapter_metadata": json.dumps(adapter), "conceptkit": provenance(concept, with_names)}
    )


def _written(part: str, name: str) -> str:
    """A map's name as files have it: in transformers 5 CLIP's modules lost a level, files did not."""
    return TEXT_MODEL + name.removeprefix(TEXT_MODEL) if part in ENCODERS else name
