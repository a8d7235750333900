"""Architectures of bases: how a kind of denoiser is called, where text enters it, what its latents are."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from conceptkit.base.architectures.architecture import Architecture, Condition, Segment
from conceptkit.errors import BadBase
from conceptkit.extension_table import ExtensionTable

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Condition",
    "Segment",
    "architecture_of",
    "architecture_of_denoiser",
    "check_denoiser_class",
    "denoiser_of",
    "text_site",
]

MODULES = {
    "UNet2DConditionModel": "unet",
    "HunyuanDiT2DModel": "hunyuan_dit",
    "SD3Transformer2DModel": "sd3",
    "FluxTransformer2DModel": "flux",
    "PixArtTransformer2DModel": "pixart",
    "SanaTransformer2DModel": "sana",
    "Flux2Transformer2DModel": "flux2",
    "QwenImageTransformer2DModel": "qwen_image",
    "ZImageTransformer2DModel": "z_image",
    "Lumina2Transformer2DModel": "lumina2",
    "AuraFlowTransformer2DModel": "auraflow",
    "ChromaTransformer2DModel": "chroma",
}
"""Class of the denoiser -> the module beside this one that knows it, whose ARCHITECTURE it is."""
ARCHITECTURES: ExtensionTable[Architecture] = ExtensionTable("architecture", "conceptkit.architectures")
"""Those of other packages, by the class of the denoiser."""
GUIDE = "docs/how-to/add-a-base.md"


def architecture_of(pipe: DiffusionPipeline) -> Architecture:
    """The architecture of a pipeline's denoiser. Raises BadBase on one that is not in the table."""
    for part in ("transformer", "unet"):
        if (denoiser := getattr(pipe, part, None)) is not None:
            return architecture_of_denoiser(denoiser)
    raise BadBase(
        f"{type(pipe).__name__} has no UNet and no transformer that reads text; use a text-to-image pipeline"
    )


def architecture_of_denoiser(denoiser: nn.Module) -> Architecture:
    """The architecture of a UNet or a transformer. Raises BadBase on one that is in no table."""
    kind = type(getattr(denoiser, "_orig_mod", denoiser))
    for name in (each.__name__ for each in kind.__mro__):
        if name in MODULES:
            found: Architecture = import_module(f"{__name__}.{MODULES[name]}").ARCHITECTURE
            return found.of(denoiser)
        if name in ARCHITECTURES:
            return ARCHITECTURES[name].of(denoiser)
    raise BadBase(_unknown(kind.__name__))


def check_denoiser_class(name: str) -> None:
    """Raises BadBase for a class of diffusers, by its name, that is in no table; nothing is loaded for it."""
    import diffusers

    kind = getattr(diffusers, name, None)
    names = [name, *(base.__name__ for base in getattr(kind, "__mro__", ()))]
    if not any(each in MODULES or each in ARCHITECTURES for each in names):
        raise BadBase(_unknown(name))


def _unknown(kind: str) -> str:
    return (
        f"The denoiser of this pipeline, a {kind}, is of no family that is known; `conceptkit "
        f"bases` lists them, and {GUIDE} tells how to add one"
    )


def denoiser_of(pipe: DiffusionPipeline) -> nn.Module:
    """The UNet or the transformer of a pipeline. Raises BadBase on one that is not in the table."""
    module: nn.Module = getattr(pipe, architecture_of(pipe).denoiser)
    return module


def text_site(pipe: DiffusionPipeline) -> dict[str, nn.Linear]:
    """Name -> Linear of every map of the denoiser that reads text features, see `Architecture.text_site`."""
    return architecture_of(pipe).text_site(denoiser_of(pipe))
