"""A concept as a PEFT LoRA that diffusers loads."""

import json
from typing import Any

import torch
from torch import Tensor

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Factors, by_component
from conceptkit.formats.provenance import pack, provenance

LORA = "pytorch_lora_weights.safetensors"
TEXT_MODEL = "text_model."


def lora(concept: Concept, with_names: bool = False) -> bytes:
    """The delta as a LoRA for `load_lora_weights`, of the UNet and of text encoders that it has maps of.

    One rank for all maps of a part, padded with zeros, and alpha equal to it: readers that drop per-module
    alphas, as diffusers does, then still scale by 1.
    """
    tensors: dict[str, Tensor] = {}
    adapter: dict[str, Any] = {}
    for place, delta in by_component(concept.delta).items():
        factors = {name: _low_rank(parts) for name, parts in sorted(delta.items())}
        rank = max(up.shape[1] for up, _ in factors.values())
        for name, (up, down) in factors.items():
            more, key = rank - up.shape[1], f"{place}.{_written(place, name)}"
            tensors[f"{key}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, more))
            tensors[f"{key}.lora_B.weight"] = torch.nn.functional.pad(up, (0, more))
        names = sorted(name.removeprefix(TEXT_MODEL) for name in factors)
        adapter |= {f"{place}.r": rank, f"{place}.lora_alpha": rank, f"{place}.target_modules": names}
    return pack(
        tensors, {"lora_adapter_metadata": json.dumps(adapter), "conceptkit": provenance(concept, with_names)}
    )


def _written(place: str, name: str) -> str:
    """A map's name as files have it: in transformers 5 CLIP's modules lost a level, files did not."""
    return name if place == "unet" else TEXT_MODEL + name.removeprefix(TEXT_MODEL)


def _low_rank(factors: Factors) -> Factors:
    """(up, down) with the same product; a full matrix gets an identity beside it, which is exact."""
    if len(factors) == 2:
        return factors
    (weight,) = factors
    one = torch.eye(min(weight.shape), dtype=weight.dtype)
    return (weight, one) if weight.shape[0] >= weight.shape[1] else (one, weight)
