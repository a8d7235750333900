"""A pico Stable Diffusion as one file, its tensors named as in the checkpoints of the model's authors."""

import re
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    r"^time_embedding\.linear_1": "time_embed.0",
    r"^time_embedding\.linear_2": "time_embed.2",
    r"^conv_in": "input_blocks.0.0",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
    r"^mid_block\.resnets\.0": "middle_block.0",
    r"^mid_block\.attentions\.0": "middle_block.1",
    r"^mid_block\.resnets\.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_checkpoint(pipe: StableDiffusionPipeline, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """UNet, text encoder and autoencoder in one file; configurations and tokenizers are not in it."""
    found = {f"model.diffusion_model.{unet_key(k)}": v for k, v in pipe.unet.state_dict().items()}
    blocks = len(pipe.vae.config.block_out_channels)
    for key, value in pipe.vae.state_dict().items():
        name = vae_key(key, blocks)
        image = ".mid.attn_1." in name and value.ndim == 2
        found[f"first_stage_model.{name}"] = value[:, :, None, None] if image else value
    for key, value in pipe.text_encoder.state_dict().items():
        found[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({k: v.to(dtype).contiguous() for k, v in found.items()}, path)
    return path


def unet_key(key: str) -> str:
    for pattern, name in UNET.items():
        key = re.sub(pattern, name, key)
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|\w+samplers)\.(\d)\.(.*)", key):
        side, block, part, layer, rest = found.groups()
        first = 1 + 2 * int(block) if side == "down" else 2 * int(block)
        if part.endswith("samplers"):
            end = "0.op" if side == "down" else "2.conv"
            key = f"{first + 1}.{end}.{rest.removeprefix('conv.')}"
        else:
            key = f"{first + int(layer)}.{0 if part == 'resnets' else 1}.{rest}"
        key = f"{'input' if side == 'down' else 'output'}_blocks.{key}"
    if re.match(r"(input|output)_blocks\.\d+\.0\.|middle_block\.[02]\.", key):
        for theirs, ours in RESNET.items():
            key = key.replace(f".{theirs}.", f".{ours}.")
    return key


def vae_key(key: str, blocks: int) -> str:
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1")
        for theirs, ours in VAE_ATTENTION.items():
            key = key.replace(f".{theirs}.", f".{ours}.")
    return key
