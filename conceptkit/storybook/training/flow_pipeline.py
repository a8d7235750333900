"""What the flow needs beside its transformer, made of the first base's parts, and the folder of all.

StableDiffusion3Pipeline takes two CLIP encoders with projections, and reads their last layer but one.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from conceptkit.storybook.training import flow

WORDS_WIDTH = 32
"""Width of the second encoder."""


def projected(encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The encoder with one more layer that changes nothing, and a projection that is the identity.

    So its last layer but one is what was the last, before the final norm.
    """
    config = CLIPTextConfig(**encoder.config.to_dict())
    config.num_hidden_layers += 1
    config.projection_dim = config.hidden_size
    out = CLIPTextModelWithProjection(config)
    known = {f"text_model.{name.removeprefix('text_model.')}": x for name, x in encoder.state_dict().items()}
    out.load_state_dict(out.state_dict() | known)
    last = out.text_model.encoder.layers[-1]
    with torch.no_grad():
        for linear in (last.self_attn.out_proj, last.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
        out.text_projection.weight.copy_(torch.eye(config.hidden_size))
    return out.eval()


def _directions(x: Tensor, count: int) -> Tensor:
    """The main directions (width, count) of rows (n, width), largest first, signs fixed."""
    directions = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False).Vh[:count].mT
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    return (directions * signs).to(x.dtype)


def words_encoder(encoder: CLIPTextModel, width: int = WORDS_WIDTH) -> CLIPTextModelWithProjection:
    """A second, small encoder: which word stands where, in the main directions of the first one's embeddings.

    It has no layer but the one that changes nothing.
    """
    config = CLIPTextConfig(**encoder.config.to_dict())
    config.hidden_size, config.intermediate_size = width, width
    config.num_attention_heads, config.num_hidden_layers = 1, 0
    torch.manual_seed(7)
    small = CLIPTextModel(config)
    known = {name.removeprefix("text_model."): x for name, x in encoder.state_dict().items()}
    tokens = known["embeddings.token_embedding.weight"]
    places = known["embeddings.position_embedding.weight"]
    directions = _directions(torch.cat([tokens, places]), width)
    scale = (tokens @ directions).std()
    with torch.no_grad():
        for name, value in small.named_parameters():
            if name.endswith("token_embedding.weight"):
                value.copy_(tokens @ directions / scale)
            elif name.endswith("position_embedding.weight"):
                value.copy_(places @ directions / scale)
    return projected(small)


def pipeline(first: StableDiffusionPipeline, transformer: SD3Transformer2DModel) -> StableDiffusion3Pipeline:
    """The flow's pipeline, of the first base's tokenizer, text encoder and autoencoder."""
    vae = copy.deepcopy(first.vae)
    vae.register_to_config(shift_factor=0.0)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow.scheduler(),
        vae=vae,
        text_encoder=projected(first.text_encoder),
        tokenizer=first.tokenizer,
        text_encoder_2=words_encoder(first.text_encoder),
        tokenizer_2=copy.deepcopy(first.tokenizer),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def save(pipe: StableDiffusion3Pipeline, folder: Path) -> None:
    """Write the pipeline in float16 safetensors, text encoders to be read in float32 as the rest is."""
    copy.deepcopy(pipe).to(torch.float16).save_pretrained(folder)
    for file in folder.rglob("config.json"):
        known = json.loads(file.read_text())
        known.pop("_name_or_path", None)  # a folder of this machine
        more = {"dtype": "float32"} if file.parent.name.startswith("text_encoder") else {}
        file.write_text(json.dumps(known | more, indent=2) + "\n")
