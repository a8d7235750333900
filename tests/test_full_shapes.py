"""Published shapes on the meta device: where text enters, what a LoRA learns on, how large a concept is."""

from __future__ import annotations

import diffusers
import pytest
import torch

from conceptkit.base.architectures import architecture_of_denoiser
from conceptkit.base.families import FAMILIES
from conceptkit.concepts.gates import reads_text
from conceptkit.tuners.targets import find

# Configurations of the published models, where they are not those that the class begins with.
CONFIGS = {
    "sd3": {
        "sample_size": 128,
        "num_layers": 38,
        "num_attention_heads": 38,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 2432,
        "pooled_projection_dim": 2048,
        "out_channels": 16,
        "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    },
    "flux": {"guidance_embeds": True},
    "flux2": {},
    "qwen-image": {},
    "z-image": {},
    "chroma": {},
    "auraflow": {"joint_attention_dim": 2048},
    "lumina2": {
        "cap_feat_dim": 2304,
        "hidden_size": 2304,
        "num_layers": 26,
        "num_attention_heads": 24,
        "num_kv_heads": 8,
    },
    "pixart": {"sample_size": 128, "caption_channels": 4096, "cross_attention_dim": 1152},
    "sana": {},
    "kolors": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 5632,
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
    },
    "if": {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": (704, 1408, 2112, 2816),
        "layers_per_block": 3,
        "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
        "attention_head_dim": 64,
        "act_fn": "gelu",
        "cross_attention_dim": 2816,
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text",
        "resnet_time_scale_shift": "scale_shift",
    },
    "hunyuan-dit": {
        "sample_size": 128,
        "in_channels": 4,
        "patch_size": 2,
        "hidden_size": 1408,
        "num_layers": 40,
        "mlp_ratio": 4.3637,
        "use_style_cond_and_image_meta_size": False,
    },
}
SITES = {
    "sd3": {"context_embedder": (2432, 4096)},
    "flux": {"context_embedder": (3072, 4096)},
    "flux2": {"context_embedder": (6144, 15360)},
    "qwen-image": {"txt_in": (3072, 3584)},
    "z-image": {"cap_embedder.1": (3840, 2560)},
    "chroma": {"context_embedder": (3072, 4096)},
    "auraflow": {"context_embedder": (3072, 2048)},
    "lumina2": {"time_caption_embed.caption_embedder.1": (2304, 2304)},
}
STATIC = {
    "pixart": ("attn2.to_k", "attn2.to_v", 2 * 28),
    "sana": ("attn2.to_k", "attn2.to_v", 2 * 20),
    "kolors": ("attn2.to_k", "attn2.to_v", 2 * 70),
    "if": ("add_k_proj", "add_v_proj", 2 * (9 + 1 + 12)),
    "hunyuan-dit": ("attn2.to_k", "attn2.to_v", 2 * 40),
}
"""How names of key and value maps of text end, and how many there are."""
MAPS = {
    "sd3": 38 * 8 - 1,  # the last block has no way out for text
    "flux": 19 * 8 + 38 * 3,
    "flux2": 8 * 4 + 48 * 2,
    "qwen-image": 60 * 4,
    "z-image": 34 * 4,
    "chroma": 19 * 8 + 38 * 3,
    "auraflow": 4 * 8 + 32 * 4,
    "lumina2": 30 * 4,
    "pixart": 28 * 8,
    "sana": 20 * 8,
    "kolors": 70 * 8,
    "if": 22 * 6,
    "hunyuan-dit": 40 * 8,
}
"""How many maps of attention a LoRA learns on."""
BYTES = {
    "sd3": 5934336,
    "flux": 6580224,
    "flux2": 19396608,
    "qwen-image": 5938176,
    "z-image": 4216320,
    "chroma": 6580224,
    "auraflow": 3962880,
    "lumina2": 1870848,
    "pixart": 1942272,
    "sana": 2701440,
    "kolors": 5004288,
    "if": 2092288,
    "hunyuan-dit": 3385344,
}
"""Of a concept by the default method."""
KEYS, RANK = 3, 2


def denoiser(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return getattr(diffusers, FAMILIES[name].denoiser)(**CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_text_enters_where_the_row_says_and_a_lora_learns_on_attention(name):
    model = denoiser(name)
    kind, row = architecture_of_denoiser(model), FAMILIES[name]
    site = {path: tuple(linear.weight.shape) for path, linear in kind.text_site(model).items()}
    if name in SITES:
        assert site == SITES[name]
    else:
        keys, values, count = STATIC[name]
        assert all(path.endswith((keys, values)) and reads_text(path) for path in site)
        assert len(site) == count and keys.endswith(kind.key_ending)
    maps = find(model, kind.presets["attn"])
    assert len(maps) == MAPS[name]
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert row.parameters == pytest.approx(count, rel=0.03)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_concept_is_small_at_full_shape(name):
    """Keyed values of the text site and a gated LoRA beside it, in 16 bits."""
    model = denoiser(name)
    kind = architecture_of_denoiser(model)
    site = kind.text_site(model)
    width = next(iter(site.values())).weight.shape[1]
    keyed = KEYS * (width + sum(linear.weight.shape[0] for linear in site.values()))
    beside = {path: m for path, m in find(model, kind.presets["attn"]).items() if path not in site}
    wide = RANK * sum(sum(linear.weight.shape) for linear in beside.values())
    assert 2 * (keyed + wide) == BYTES[name]
    assert keyed + wide < 2e-3 * 1e9 * FAMILIES[name].parameters
