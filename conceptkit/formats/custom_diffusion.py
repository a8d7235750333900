"""Custom Diffusion as diffusers' script writes it: whole matrices of cross-attention, and embeddings."""

import re

import torch
from torch import Tensor

from conceptkit.base.pipeline import Base, check_fits
from conceptkit.concepts.concept import Concept
from conceptkit.formats.diffusers import folded
from conceptkit.formats.provenance import pack, provenance

WEIGHTS = "pytorch_custom_diffusion_weights.safetensors"
MAP = re.compile(r"(?P<layer>.*attn2)\.(?P<map>to_k|to_v|to_q|to_out)(?P<rest>(?:\.0)?)")


def files(concept: Concept, with_names: bool, base: Base) -> dict[str, bytes]:
    """Base plus delta of each cross-attention map, one embedding per token, and a note: name -> content.

    Raises BaseMismatch when the base is none that the concept fits.
    """
    check_fits(concept.base, base, concept.name, concept.base_name)
    concept = folded(concept)
    told = {"conceptkit": provenance(concept, with_names)}
    found: dict[str, bytes] = {}
    if tensors := matrices(concept, base):
        found[WEIGHTS] = pack(tensors, told)
    for token, rows in sorted(concept.tokens.items()):
        named = {token: rows[0][0] if len(rows[0]) == 1 else rows[0]}
        if len(rows) == 2:
            named = {"clip_l": rows[0], "clip_g": rows[1]}
        found[f"{token}.safetensors"] = pack(named, told)
    typed = " and ".join(f"`{text}`" for text in concept.words.values()) or "any prompt"
    found[f"{concept.name}.txt"] = (
        "Put it: a folder of its own, for scripts that read Custom Diffusion.\n"
        f"Type: {typed}\n"
        "For: the very base that it was learned on. Some versions of diffusers load these matrices without "
        "an effect; --for diffusers is safe.\n"
    ).encode()
    return found


def matrices(concept: Concept, base: Base) -> dict[str, Tensor]:
    """Key -> W + D (o, d), of cross-attention's keys, values, queries and outputs."""
    modules = dict(base.unet.named_modules())
    tensors: dict[str, Tensor] = {}
    for name, factors in sorted(concept.delta.items()):
        if not (found := MAP.fullmatch(name)):
            continue
        module = modules[name]
        while hasattr(module, "base_layer"):
            module = module.base_layer
        key = f"{found['layer']}.processor.{found['map']}_custom_diffusion{found['rest']}"
        tensors[f"{key}.weight"] = module.weight.detach().to("cpu", torch.float32) + factors.dense()
        if module.bias is not None:
            tensors[f"{key}.bias"] = module.bias.detach().to("cpu", torch.float32)
    return tensors
