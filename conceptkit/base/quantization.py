"""Denoisers in 4 or 8 bits, through diffusers' configuration of bitsandbytes and torchao."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from conceptkit.base.architectures import architecture_of_denoiser
from conceptkit.errors import BadDevice, BadRecipe

if TYPE_CHECKING:
    from diffusers.quantizers import PipelineQuantizationConfig

PACKAGES = {"bnb": "bitsandbytes", "torchao": "torchao"}


def quantization_config(
    name: str, part: str, denoiser: nn.Module, dtype: torch.dtype
) -> PipelineQuantizationConfig:
    """What a pipeline is loaded with: its `part`, the `denoiser` on the meta device, in few bits.

    The maps that read text stay as they are: concepts change them exactly, and a base is known by them.
    Text encoders and the VAE stay too; they leave the GPU once they have been read.
    """
    from diffusers.quantizers import PipelineQuantizationConfig

    kept = list(architecture_of_denoiser(denoiser).text_site(denoiser))
    return PipelineQuantizationConfig(quant_mapping={part: _config(name, kept, dtype)})


def check_possible(name: str, device: str) -> None:
    """Raises BadRecipe or BadDevice where this machine cannot load a base so."""
    kind = name.partition("-")[0]
    package = PACKAGES[kind]
    if importlib.util.find_spec(package) is None:
        raise BadRecipe(f"quantization = {name} needs {package}; run pip install {package}, or leave it out")
    if kind == "bnb" and device.partition(":")[0] != "cuda":
        raise BadDevice(
            f"quantization = {name} needs a GPU of Nvidia or AMD, and the device is {device}; "
            "leave it out, or give torchao-int8"
        )


def is_quantized(denoiser: object) -> bool:
    """Whether a denoiser was loaded in few bits."""
    return getattr(denoiser, "hf_quantizer", None) is not None


def bits_of(denoiser: object) -> str | None:
    """The row of QUANTIZATIONS that a denoiser was loaded with, or comes nearest to; None: in no few bits."""
    if not is_quantized(denoiser):
        return None
    config = getattr(denoiser, "hf_quantizer").quantization_config  # noqa: B009
    if getattr(config, "load_in_4bit", False):
        return "bnb-4bit"
    return "bnb-8bit" if getattr(config, "load_in_8bit", False) else "torchao-int8"


def _config(name: str, kept: list[str], dtype: torch.dtype) -> Any:
    """diffusers' own configuration; kept: names of maps that stay as they are."""
    import diffusers

    if name == "bnb-4bit":
        return diffusers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == torch.float32 else dtype,
            llm_int8_skip_modules=kept,
        )
    if name == "bnb-8bit":
        return diffusers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    from torchao.quantization import Int8WeightOnlyConfig

    return diffusers.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
