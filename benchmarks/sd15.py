"""What a step of learning costs at Stable Diffusion 1.5's full shape, 512x512 pixels, with random weights."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.report import finish, use_own_cores
from conceptkit.base import devices
from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import Concept
from conceptkit.data.photos import PhotoSet
from conceptkit.features import caption_statistics, captions
from conceptkit.learn.config import CHOICES, DEFAULT_CONFIGS, TrainConfig
from conceptkit.learn.request import TrainRequest
from conceptkit.learn.session import Session
from conceptkit.learn.subject import Subject
from conceptkit.learn.trainer import train
from conceptkit.rng import seeded
from tests import tiny

UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}
CAPTIONS = 48


def pipeline(
    seed: int = 0,
    pixels: int = 512,
    tokenizer: CLIPTokenizer | None = None,
    unet_config: Mapping[str, Any] = UNET,
) -> StableDiffusionPipeline:
    """All parts in float32 on the CPU, 4.2 GB; only the vocabulary is smaller than the real one.

    pixels: on a side of what it draws and learns from; its maps have one shape at all sizes.
    tokenizer: another than that small one. unet_config: another shape of the UNet.
    """
    if tokenizer is None:
        words = " ".join(dict.fromkeys(" ".join(captions.captions("sd15")).split()))
        tokenizer = tiny.tokenizer(words)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with seeded(seed, torch.device("cpu")):
        text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **special, **TEXT))
    with torch.device("meta"):
        unet = UNet2DConditionModel(**{**unet_config, "sample_size": pixels // 8})
        vae = AutoencoderKL(**VAE)
    for module in (unet, vae):
        _fill(module, seed)
    pipe = StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=text.eval(),
        unet=unet.eval(),
        vae=vae.eval(),
        scheduler=tiny.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _fill(module: nn.Module, seed: int) -> None:
    """Weights of about unit gain, as trained ones have; norms and biases do nothing yet."""
    dice = torch.Generator().manual_seed(seed)
    module.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=dice)
        else:
            parameter.data.fill_(float(name.endswith("weight")))


def forward_tflop() -> float:
    """Of one forward pass of the UNet for one picture, counted without computing it."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
        inputs = torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(*inputs)
    return counter.get_total_flops() / 1e12


def recipe_of(method: str, steps: int, precision: str, batch: int = 1) -> TrainConfig:
    """The method's own, in a few steps, without class pictures and with as little kept as can be."""
    recipe = replace(
        DEFAULT_CONFIGS[method],
        max_train_steps=min(steps, DEFAULT_CONFIGS[method].max_train_steps),
        prior_loss_weight=0.0,
        num_augmented_views=1,
    )
    token = min(steps, recipe.token_train_steps)
    return replace(
        recipe,
        token_train_steps=token,
        train_batch_size=batch,
        mixed_precision=precision,
        gradient_checkpointing=True,
    )


def teach(base: bases.Base, recipe: TrainConfig) -> tuple[Concept, list[float]]:
    """A concept from one photo of noise, and when each step of the look ended, in seconds."""
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    photos = PhotoSet((Image.fromarray(pixels),), ("noise",), "noise")
    ends: list[float] = []

    def tick(done: int, total: int, text: str) -> None:
        if text == "learning the delta":
            ends.append(time.perf_counter())

    # Ordinary captions are read once for each base and kept; a few of them are enough for the cost of a step.
    few = captions.captions("sd15")[:CAPTIONS]
    with mock.patch.object(caption_statistics, "captions", lambda name: few):
        request = TrainRequest((Subject("my_dog", "dog", photos),), recipe)
        made = train(request, Session(base, progress=tick))
    return made.whole, ends


def peak_gb(device: torch.device) -> float:
    """The most memory that this process has held, on the device it computes on."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def checksum(module: nn.Module) -> float:
    return sum(float(p.detach().double().sum()) for p in module.parameters())


@click.command()
@click.option(
    "--method",
    type=click.Choice([name for name in DEFAULT_CONFIGS if DEFAULT_CONFIGS[name].max_train_steps]),
    default="dreambooth",
)
@click.option("--steps", default=1, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(CHOICES["mixed_precision"]), default="fp32", show_default=True)
@click.option("--peak", type=float, help="Arithmetic peak of the device in TFLOP/s, to say its share.")
def main(method: str, steps: int, batch: int, device: str, precision: str, peak: float | None) -> None:
    use_own_cores()
    base = bases.of(pipeline().to(devices.choose(device)), "sd15")
    recipe, before = recipe_of(method, steps, precision, batch), checksum(base.unet)
    begun = time.perf_counter()
    concept, ends = teach(base, recipe)
    whole = time.perf_counter() - begun
    each = float(np.median(np.diff(ends))) if len(ends) > 2 else None
    # Forward, once more for checkpointing, and back to the inputs; the base's own weights need no gradient.
    tflop = 3 * batch * forward_tflop()
    factors = [factor for pair in concept.delta.values() for factor in pair]
    finish(
        "sd15",
        each,
        "seconds per step of the look",
        None,
        None,
        0,
        method=method,
        precision=precision,
        device=str(base.device),
        steps=len(ends),
        seconds=whole,
        peak_gb=peak_gb(base.device),
        tflop_per_step=tflop,
        share_of_peak=tflop / each / peak if each and peak else None,
        maps=len(concept.delta),
        learned=bool(
            all(f.isfinite().all() for f in factors) and any(f.any() for f, *_ in concept.delta.values())
        ),
        base_untouched=checksum(base.unet) == before,
    )


if __name__ == "__main__":
    main()
