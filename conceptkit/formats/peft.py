"""A concept as a PEFT LoRA that diffusers loads."""

import json
from typing import Any

from torch import Tensor

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import ENCODERS
from conceptkit.concepts.kernels import kernels_of
from conceptkit.formats.lora_modules import as_convolution, one_rank
from conceptkit.formats.module_names import TEXT_MODEL
from conceptkit.formats.provenance import pack, provenance

LORA = "pytorch_lora_weights.safetensors"


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
    kernels = kernels_of(concept)
    for part, delta in concept.delta.by_component().items():
        factors = one_rank({name: own.low_rank(narrow=True) for name, own in sorted(delta.items())})
        rank = next(up.shape[1] for up, _ in factors.values())
        for name, pair in factors.items():
            up, down = as_convolution(pair, kernels.get(name) if part == "unet" else None)
            key = f"{part}.{_written(part, name)}"
            tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
        names = sorted(name.removeprefix(TEXT_MODEL) for name in factors)
        adapter |= {f"{part}.r": rank, f"{part}.lora_alpha": rank, f"{part}.target_modules": names}
    return pack(
        tensors, {"lora_adapter_metadata": json.dumps(adapter), "conceptkit": provenance(concept, with_names)}
    )


def _written(part: str, name: str) -> str:
    """A map's name as files have it: in transformers 5 CLIP's modules lost a level, files did not."""
    return TEXT_MODEL + name.removeprefix(TEXT_MODEL) if part in ENCODERS else name
