"""Bases of published shape with random weights, made where they compute, and the same in miniature."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from benchmarks.sd15 import TEXT, UNET, VAE
from tests import tiny, transformers_tiny

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_TEXT: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "max_position_embeddings": 77,
}
FLUX_VAE: dict[str, Any] = VAE | {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.1159,
    "scaling_factor": 0.3611,
}
T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
FAMILIES = ("sd15", "sdxl", "flux")


def pipeline(family: str, size: str, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """A pipeline of a family, "full" or "tiny", on its device and in its precision."""
    if size == "tiny":
        small = {"sd15": tiny.pico_sd, "sdxl": tiny.pico_sdxl, "flux": transformers_tiny.pico_flux}
        pipe = small[family]()
        return pipe if (device.type, dtype) == ("cpu", torch.float32) else pipe.to(device, dtype)
    build = {"sd15": _sd15, "sdxl": _sdxl, "flux": _flux}[family]
    pipe = build(device, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sd15(device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
    tokenizer = tiny.tokenizer()
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=_clip(tokenizer, TEXT, device, dtype),
        unet=_filled(unet, device, dtype),
        vae=_filled(vae, device, dtype),
        scheduler=tiny.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**SDXL_UNET), AutoencoderKL(**VAE | {"sample_size": 1024})
    first, second = tiny.tokenizer(), tiny.tokenizer(pad="!")
    return StableDiffusionXLPipeline(
        tokenizer=first,
        tokenizer_2=second,
        text_encoder=_clip(first, TEXT, device, dtype),
        text_encoder_2=_clip(second, SDXL_TEXT, device, dtype, CLIPTextModelWithProjection),
        unet=_filled(unet, device, dtype),
        vae=_filled(vae, device, dtype),
        scheduler=tiny.scheduler(),
        add_watermarker=False,
    )


def _flux(device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    first, second = tiny.tokenizer(), transformers_tiny.t5_tokenizer()
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
        vae = AutoencoderKL(**FLUX_VAE | {"sample_size": 1024})
        t5 = T5EncoderModel(T5Config(vocab_size=len(second) + 8, **T5_XXL))
    return FluxPipeline(
        transformer=_filled(transformer, device, dtype),
        vae=_filled(vae, device, dtype),
        text_encoder=_clip(first, TEXT, device, dtype),
        tokenizer=first,
        text_encoder_2=_filled(t5, device, dtype),
        tokenizer_2=second,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _clip(
    tokenizer: Any, shape: dict[str, Any], device: torch.device, dtype: torch.dtype, kind: Any = CLIPTextModel
) -> nn.Module:
    """A CLIP text encoder for a tokenizer."""
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return kind(CLIPTextConfig(vocab_size=len(tokenizer), **special, **shape)).eval().to(device, dtype)


def _filled(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A module of the meta device with weights of about unit gain; norms and biases do nothing yet."""
    module = module.to(dtype).to_empty(device=device).eval()
    make = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=make)
        else:
            parameter.data.fill_(float(name.endswith("weight")))
    return module
