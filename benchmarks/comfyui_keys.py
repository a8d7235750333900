"""Names and sizes of all modules of whole bases, as our LoRA files call them, in ComfyUI's own tables.

No weights: both sides build their models on the meta device, in processes of their own.
"""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

from benchmarks import sd15
from conceptkit.formats.module_names import NAMES

WIDTHS = (320, 640, 1280, 1280)
UNETS: dict[str, dict[str, Any]] = {
    "sd1": sd15.UNET,
    "sd2": {
        "block_out_channels": WIDTHS,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": WIDTHS[:3],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
SD3 = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 192,
}
_SD3_THERE: dict[str, Any] = {
    "in_channels": 16,
    "patch_size": 2,
    "out_channels": 16,
    "depth": 24,
    "input_size": None,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 1536},
    },
    "num_patches": 192 * 192,
    "pos_embed_max_size": 192,
    "pos_embed_scaling_factor": None,
}
_FLUX_THERE: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
THEIRS = """
import json, logging, math, sys
import comfy.options
comfy.options.enable_args_parsing()  # they read --cpu
logging.disable(logging.WARNING)
import comfy.lora, comfy.supported_models
asked, found = json.load(sys.stdin), {}
for family, (kind, config, modules) in asked.items():
    model = getattr(comfy.supported_models, kind)(config).get_model({}, "", device="meta")
    places, weights = comfy.lora.model_lora_keys_unet(model, {}), model.state_dict()
    shapes = {key: weights[place].shape for key, place in places.items() if place in weights}
    sizes = {key: [shape[0], math.prod(shape[1:])] for key, shape in shapes.items()}
    found[family] = [key for key, size in modules.items() if sizes.get(key) != size]
print(json.dumps(found))
"""
"""Runs in ComfyUI's interpreter: keys of our modules that have no weight of that size there."""


def _unet(config: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A UNet's configuration in the terms of the original models."""
    levels = len(config["block_out_channels"])
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * levels if isinstance(depths, int) else list(depths)
    crossed = [
        "CrossAttn" in kind for kind in config.get("down_block_types", (*["CrossAttn"] * (levels - 1), ""))
    ]
    each = [depth * cross for depth, cross in zip(depths, crossed, strict=True)]
    return {
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": [2] * levels,
        "channel_mult": [width // 320 for width in config["block_out_channels"]],
        "transformer_depth": [depth for depth in each for _ in range(2)],
        "transformer_depth_output": [depth for depth in each for _ in range(3)],
        "transformer_depth_middle": depths[-1],
        "use_linear_in_transformer": config.get("use_linear_projection", False),
        "context_dim": config["cross_attention_dim"],
        "adm_in_channels": None,
        "use_temporal_attention": False,
        **more,
    }


def _modules(family: str, model: nn.Module) -> dict[str, list[int]]:
    """Key in our files -> outputs and inputs of the module, of all that kohya's files have a name for."""
    found: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        place = NAMES[family].place(name) if isinstance(module, nn.Linear | nn.Conv2d) else None
        if place is not None:
            outputs, *inputs = module.weight.shape
            total = found.get(place.key, [0, 0])[0] + outputs
            found[place.key] = [total, math.prod(inputs)]
    return found


def unmatched(comfyui: Path, python: str) -> tuple[dict[str, list[str]], dict[str, int]]:
    """By family, keys that ComfyUI has no weight of that size for, and how many were looked up."""
    with torch.device("meta"):
        models: dict[str, nn.Module] = {key: UNet2DConditionModel(**one) for key, one in UNETS.items()}
        models["sd3"] = SD3Transformer2DModel(**SD3)
        models["flux"] = FluxTransformer2DModel(guidance_embeds=True)
    modules = {family: _modules(family, model) for family, model in models.items()}
    adm = {"num_classes": "sequential", "adm_in_channels": 2816}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "sd1": ("SD15", _unet(UNETS["sd1"])),
        "sd2": ("SD20", _unet(UNETS["sd2"])),
        "sdxl": ("SDXL", _unet(UNETS["sdxl"], **adm)),
        "sd3": ("SD3", _SD3_THERE),
        "flux": ("Flux", _FLUX_THERE),
    }
    asked = {family: (*kinds[family], modules[family]) for family in kinds}
    answer = subprocess.run(
        [python, "-c", THEIRS, "--cpu"],
        cwd=comfyui,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        raise RuntimeError(f"ComfyUI's tables cannot be read: {answer.stderr[-1000:]}")
    counts = {family: len(known) for family, known in modules.items()}
    return json.loads(answer.stdout.splitlines()[-1]), counts
