"""What the checkpoints of Stable Diffusion's authors call the weights that diffusers has in folders.

Read back by `from_single_file` of diffusers, and by ComfyUI and the web UIs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from conceptkit.errors import ConceptError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

KINDS = {"StableDiffusionPipeline": "cond_stage_model", "StableDiffusionXLPipeline": "conditioner.embedders"}
"""Pipelines whose checkpoints are known, and where their text encoders are in them."""
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_EDGES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def checkpoint(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Key -> weight of UNet, text encoders and autoencoder, as they are now.

    Raises ConceptError for a pipeline of another family.
    """
    kind = type(pipe).__name__
    if kind not in KINDS:
        raise ConceptError(
            f"The original layout of a {kind}'s checkpoints is not known here; export a whole folder with "
            "--for pipeline"
        )
    unet = pipe.unet
    found = {
        f"model.diffusion_model.{unet_key(key, unet)}": value for key, value in unet.state_dict().items()
    }
    levels = len(pipe.vae.config.block_out_channels)
    for key, value in pipe.vae.state_dict().items():
        name = vae_key(key, levels)
        image = ".mid.attn_1." in f".{name}" and value.ndim == 2
        found[f"first_stage_model.{name}"] = value[:, :, None, None] if image else value
    if kind == "StableDiffusionPipeline":
        # Stable Diffusion 2 reads OpenCLIP, which computes with "gelu" and not with CLIP's "quick_gelu".
        place, first = KINDS[kind], pipe.text_encoder
        open_clip = first.config.hidden_act != "quick_gelu"
        found |= _open_clip(first, f"{place}.model.") if open_clip else _clip(first, f"{place}.transformer.")
    else:
        place = KINDS[kind]
        found |= _clip(pipe.text_encoder, f"{place}.0.transformer.")
        found |= _open_clip(pipe.text_encoder_2, f"{place}.1.model.")
    return {key: value.detach().to("cpu").contiguous() for key, value in found.items()}


def unet_key(key: str, unet: nn.Module) -> str:
    """A UNet's key there."""
    for ours, theirs in _UNET_EDGES.items():
        if key.startswith(f"{ours}."):
            key = theirs + key.removeprefix(ours)
    if found := _BLOCK.fullmatch(key):
        way, level, part, number, rest = found.groups()
        key = _block_key(way, int(level), part, int(number), rest, unet)
    if re.match(r"(input|output)_blocks\.\d+\.0\.|middle_block\.[02]\.", key):
        for ours, theirs in _RESNET.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
    return key


def _block_key(way: str, level: int, part: str, number: int, rest: str, unet: nn.Module) -> str:
    layers = len(unet.get_submodule(f"{way}_blocks.{level}.resnets"))  # type: ignore[arg-type]
    size = layers if way == "up" else layers + 1
    first = size * level + (way == "down")
    if part == "downsamplers":
        return f"input_blocks.{size * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":
        block = unet.get_submodule(f"up_blocks.{level}")
        return f"output_blocks.{first + size - 1}.{1 + hasattr(block, 'attentions')}.{rest}"
    side = "input" if way == "down" else "output"
    return f"{side}_blocks.{first + number}.{int(part == 'attentions')}.{rest}"


def vae_key(key: str, levels: int) -> str:
    """An autoencoder's key there; its decoder's levels are counted from the other end."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in _VAE_ATTENTION.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
    return key


def _plain(encoder: nn.Module) -> dict[str, Tensor]:
    """Weights by the names that files have, without `text_model.`."""
    return {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}


def _clip(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}text_model.{key}": value for key, value in _plain(encoder).items()}


def _open_clip(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """OpenCLIP's names: queries, keys and values are one matrix, and the projection is on the other side."""
    weights, found = _plain(encoder), dict[str, Tensor]()
    for key, value in weights.items():
        if key == "text_projection.weight":
            found[f"{prefix}text_projection"] = value.T
        elif key in _OPEN_CLIP:
            found[prefix + _OPEN_CLIP[key]] = value
        elif layer := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
            number, name, end = layer.groups()
            place = f"{prefix}transformer.resblocks.{number}"
            if name in _OPEN_CLIP_LAYER:
                found[f"{place}.{_OPEN_CLIP_LAYER[name]}.{end}"] = value
            elif name == "self_attn.q_proj":
                found[f"{place}.attn.in_proj_{end}"] = _fused(weights, number, end)
    return found


def _fused(weights: Mapping[str, Tensor], number: str, end: str) -> Tensor:
    parts = (f"encoder.layers.{number}.self_attn.{name}_proj.{end}" for name in "qkv")
    return torch.cat([weights[part] for part in parts])
