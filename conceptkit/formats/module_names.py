"""What kohya's files, which most programs read, call the maps of each family of bases.

A family's function takes the name that diffusers gives to a map and returns a `Place`: the key of a module
in a file, and which part of that module's outputs the map is. Attention that diffusers holds in three maps is
one module, `qkv`, in SD3 and FLUX. Read without torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

UNET, TEXT = "lora_unet_", "lora_te"
TEXT_MODEL = "text_model."
LAYERS = 2
"""Residual blocks of a level of SD and SDXL."""


@dataclass(frozen=True)
class Place:
    """Where a map is in a file: the module's key, and its part of the module's outputs."""

    key: str
    part: int = 0
    parts: int = 1


Naming = Callable[[str], Place | None]
QKV = ("to_q", "to_k", "to_v")
ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")
_RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
_EDGES = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
}
_BLOCK = re.compile(
    r"(down|up|mid)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(?:\.(.+))?"
)


def plain(name: str) -> Place:
    """SD 1 and SD 2: diffusers' own names, with underscores."""
    return Place(UNET + name.replace(".", "_"))


def sdxl(name: str) -> Place | None:
    """SDXL: the block names of the original checkpoint, input_blocks, middle_block and output_blocks."""
    if name in _EDGES:
        return Place(UNET + _EDGES[name])
    if not (found := _BLOCK.fullmatch(name)):
        return None
    way, level, kind, number, rest = found.groups()
    block = _sgm_block(way, int(level or 0), kind, int(number))
    if kind == "resnets":
        rest = _RESNET.get(rest)
        if rest is None:
            return None
    elif kind == "downsamplers":
        rest = "op"
    return Place(UNET + f"{block}_{rest}".replace(".", "_"))


def _sgm_block(way: str, level: int, kind: str, number: int) -> str:
    attention = kind == "attentions"
    if way == "mid":
        return f"middle_block_{1 if attention else 2 * number}"
    if kind == "downsamplers":
        return f"input_blocks_{(LAYERS + 1) * (level + 1)}_0"
    if kind == "upsamplers":  # behind the attention, where the level has one; SDXL's last level has none
        return f"output_blocks_{(LAYERS + 1) * level + LAYERS}_2"
    if way == "down":
        return f"input_blocks_{(LAYERS + 1) * level + number + 1}_{int(attention)}"
    return f"output_blocks_{(LAYERS + 1) * level + number}_{int(attention)}"


_SD3 = (
    ("attn", QKV, "x_block_attn_qkv"),
    ("attn", ADDED_QKV, "context_block_attn_qkv"),
    ("attn2", QKV, "x_block_attn2_qkv"),
)
_SD3_SINGLE = {
    "attn.to_out.0": "x_block_attn_proj",
    "attn.to_add_out": "context_block_attn_proj",
    "attn2.to_out.0": "x_block_attn2_proj",
    "ff.net.0.proj": "x_block_mlp_fc1",
    "ff.net.2": "x_block_mlp_fc2",
    "ff_context.net.0.proj": "context_block_mlp_fc1",
    "ff_context.net.2": "context_block_mlp_fc2",
    "norm1.linear": "x_block_adaLN_modulation_1",
    "norm1_context.linear": "context_block_adaLN_modulation_1",
}
_SD3_EDGES = {
    "pos_embed.proj": "x_embedder_proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder_mlp_0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder_mlp_2",
    "time_text_embed.text_embedder.linear_1": "y_embedder_mlp_0",
    "time_text_embed.text_embedder.linear_2": "y_embedder_mlp_2",
    "proj_out": "final_layer_linear",
}


def sd3(name: str) -> Place | None:
    """SD3 and SD3.5: joint_blocks of an x_block and a context_block each."""
    if name in _SD3_EDGES:
        return Place(UNET + _SD3_EDGES[name])
    found = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
    return found and _in_block(f"joint_blocks_{found[1]}_", found[2], _SD3, _SD3_SINGLE)


_FLUX = (("attn", QKV, "img_attn_qkv"), ("attn", ADDED_QKV, "txt_attn_qkv"))
_FLUX_SINGLE = {
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "ff.net.0.proj": "img_mlp_0",
    "ff.net.2": "img_mlp_2",
    "ff_context.net.0.proj": "txt_mlp_0",
    "ff_context.net.2": "txt_mlp_2",
    "norm1.linear": "img_mod_lin",
    "norm1_context.linear": "txt_mod_lin",
}
_FLUX_LINEAR1 = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
_FLUX_OUTER = {"proj_out": "linear2", "norm.linear": "modulation_lin"}
_FLUX_EDGES = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in_in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in_out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in_in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in_out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in_in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in_out_layer",
    "proj_out": "final_layer_linear",
}


def flux(name: str) -> Place | None:
    """FLUX.1: double_blocks, and single_blocks whose linear1 is queries, keys, values and the MLP."""
    if name in _FLUX_EDGES:
        return Place(UNET + _FLUX_EDGES[name])
    if found := re.fullmatch(r"single_transformer_blocks\.(\d+)\.(.+)", name):
        key = f"{UNET}single_blocks_{found[1]}_"
        if found[2] in _FLUX_LINEAR1:
            return Place(f"{key}linear1", _FLUX_LINEAR1.index(found[2]), len(_FLUX_LINEAR1))
        return Place(key + _FLUX_OUTER[found[2]]) if found[2] in _FLUX_OUTER else None
    found = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
    return found and _in_block(f"double_blocks_{found[1]}_", found[2], _FLUX, _FLUX_SINGLE)


def _in_block(
    block: str, name: str, fused: Collection[tuple[str, tuple[str, ...], str]], single: dict[str, str]
) -> Place | None:
    parent, _, child = name.partition(".")
    for attention, maps, key in fused:
        if parent == attention and child in maps:
            return Place(f"{UNET}{block}{key}", maps.index(child), len(maps))
    return Place(f"{UNET}{block}{single[name]}") if name in single else None


@dataclass(frozen=True)
class Names:
    """How the files of a family name things.

    denoiser: the naming of its denoiser's maps. texts: part of a pipeline -> how its text encoder's keys
    begin. part: what diffusers calls the denoiser. base, architecture: `ss_base_model_version` and
    `modelspec.architecture`.
    """

    denoiser: Naming
    texts: dict[str, str]
    part: str
    base: str
    architecture: str

    def place(self, name: str) -> Place | None:
        """Where a map of a delta is, by its name there; None where kohya's files have no such map."""
        part, _, rest = name.partition(".")
        if part not in self.texts:
            return self.denoiser(name)
        return Place(f"{self.texts[part]}_{written(rest).replace('.', '_')}")


def written(name: str) -> str:
    """A CLIP map's name as files have it: in transformers 5 its modules lost a level, files did not."""
    is_clip = name.removeprefix(TEXT_MODEL).startswith("encoder.layers.")
    return TEXT_MODEL + name.removeprefix(TEXT_MODEL) if is_clip else name


_ONE = {"text_encoder": TEXT}
_TWO = {"text_encoder": f"{TEXT}1", "text_encoder_2": f"{TEXT}2"}
NAMES: dict[str, Names] = {
    "sd1": Names(plain, _ONE, "unet", "sd_v1", "stable-diffusion-v1/lora"),
    "sd2": Names(plain, _ONE, "unet", "sd_v2", "stable-diffusion-v2-512/lora"),
    "sdxl": Names(sdxl, _TWO, "unet", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    "sd3": Names(
        sd3, {**_TWO, "text_encoder_3": f"{TEXT}3"}, "transformer", "sd3_m", "stable-diffusion-3/lora"
    ),
    "flux": Names(flux, _TWO, "transformer", "flux1", "flux-1-dev/lora"),
}
"""Family -> how kohya's files name it."""
TITLES = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "SDXL",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX.1",
}


def family_by_maps(names: Collection[str], width: int = 0, encoders: int = 1) -> str:
    """The family of a base, by the names of maps of it, the width of its text features and its encoders."""
    if any(name.startswith("single_transformer_blocks.") for name in names):
        return "flux"
    if any(name.startswith("transformer_blocks.") for name in names):
        return "flux" if width == 4096 and any(".norm1.linear" in name for name in names) else "sd3"
    second = encoders > 1 or any(name.startswith("text_encoder_2.") for name in names)
    if second or width == 2048:
        return "sdxl"
    return "sd2" if width == 1024 else "sd1"
