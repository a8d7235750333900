"""Pico pipelines: Stable Diffusion and SDXL in miniature, built in code, seeded, ready in a blink.

They draw noise, not pictures, but have every part, name and shape rule of the real ones: byte-level BPE
tokenizers in CLIP's format, text encoders, an autoencoder and a UNet with cross-attention on two levels.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from conceptkit.base import pipeline
from conceptkit.base.architectures import denoiser_of
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import ENCODERS
from conceptkit.tuners import targets

WORDS = """
    a an the of in on at to and with next front under near by is very far away small close up zoomed
    photo picture drawing painting dog cat car house gate teapot flower chair fish candle bird tree
    red blue green yellow white black snow grass beach street forest night room hat scarf runs sits jumps
"""
SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}
LENGTH = 77


def tokenizer(words: str = WORDS, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer that knows `words` whole and spells the rest in bytes; EOT has the largest id."""
    letters = sorted(ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in words.split():
        parts = [*word[:-1], word[-1] + "</w>"]
        for i in range(1, len(parts)):
            merges.setdefault(("".join(parts[:i]), parts[i]))
    entries = [*letters, *(c + "</w>" for c in letters), *dict.fromkeys(a + b for a, b in merges)]
    vocab = {entry: i for i, entry in enumerate([*entries, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), pad_token=pad, model_max_length=LENGTH)


def text_encoder(tok: CLIPTokenizer, d: int, projected: bool = False) -> CLIPTextModel:
    """A text encoder of width d for `tok`; `projected` gives SDXL's second kind, projecting to 16."""
    config = CLIPTextConfig(
        vocab_size=len(tok),
        hidden_size=d,
        intermediate_size=2 * d,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def vae() -> AutoencoderKL:
    """4 latent channels, 2 pixels a cell."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def unet(d: int, **sdxl) -> UNet2DConditionModel:
    """8x8 latents, two cross-attention levels and a middle: 14 K/V maps, (16 or 32, d) each."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=d,
        attention_head_dim=8,
        norm_num_groups=4,
        **sdxl,
    )


def scheduler(kind: str = "ddim", prediction: str = "epsilon"):
    return SCHEDULERS[kind](
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def pico_sd(
    seed: int = 0,
    *,
    d: int = 32,
    prediction: str = "epsilon",
    kind: str = "ddim",
    words: str = WORDS,
) -> StableDiffusionPipeline:
    """Stable Diffusion in miniature: 16x16 pictures, `prediction` "epsilon" or "v_prediction"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tok = tokenizer(words)
        pipe = StableDiffusionPipeline(
            tokenizer=tok,
            text_encoder=text_encoder(tok, d),
            vae=vae(),
            unet=unet(d),
            scheduler=scheduler(kind, prediction),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _quiet(pipe)


def pico_sdxl(
    seed: int = 0, *, d: tuple[int, int] = (32, 48), prediction: str = "epsilon", kind: str = "ddim"
) -> StableDiffusionXLPipeline:
    """SDXL in miniature: two text encoders of widths d side by side; the second one is pooled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = tokenizer(), tokenizer(pad="!")
        pipe = StableDiffusionXLPipeline(
            tokenizer=first,
            tokenizer_2=second,
            text_encoder=text_encoder(first, d[0]),
            text_encoder_2=text_encoder(second, d[1], projected=True),
            vae=vae(),
            unet=unet(
                sum(d),
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 16,
            ),
            scheduler=scheduler(kind, prediction),
            add_watermarker=False,
        )
    return _quiet(pipe)


def draw(pipe: DiffusionPipeline, prompt: str, seed: int = 0, **options) -> torch.Tensor:
    """One picture (3, 16, 16) in [0, 1] in two steps with a mild guidance."""
    options = {"num_inference_steps": 2, "guidance_scale": 2.0} | options
    generator = torch.Generator().manual_seed(seed)
    return torch.from_numpy(pipe(prompt, generator=generator, output_type="np", **options).images[0]).permute(
        2, 0, 1
    )


def pico_concept(
    pipe: DiffusionPipeline,
    name: str = "my_dog",
    noun: str | None = "dog",
    *,
    rank: int = 2,
    vectors: int = 1,
    seed: int = 0,
    size: float = 0.3,
    text_rank: int = 0,
) -> Concept:
    """A concept of random values for this base: rank 0 is a full delta, otherwise all maps share one down.

    text_rank: of what it changes in the text encoders' attention.
    """
    generator = torch.Generator().manual_seed(seed)
    here = pipeline.of(pipe, "pico")

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    down = random(rank, here.width) * here.width**-0.5
    delta = {
        map_name: (size * random(o, rank), down)
        if rank
        else (size * here.width**-0.5 * random(o, here.width),)
        for map_name, o in here.sizes.items()
    }
    if text_rank:
        for place in ENCODERS:
            linears = (
                targets.find(encoder, targets.TEXT_ENCODER) if (encoder := getattr(pipe, place, None)) else {}
            )
            delta |= {
                f"{place}.{map_name}": (size * random(o, text_rank), random(text_rank, d) * d**-0.5)
                for map_name, (o, d) in ((n, linear.weight.shape) for n, linear in linears.items())
            }
    token = f"<{name}>"
    widths = [encoder.get_input_embeddings().weight.shape[1] for _, encoder in here.encoders]
    return Concept(
        name=name,
        kind="subject",
        noun=noun,
        base=here.fingerprint,
        base_name="pico",
        tokens={token: tuple(0.1 * random(vectors, width) for width in widths)},
        words={name: f"{token} {noun}" if noun else token},
        delta=delta,
        recipe={"method": "random", "seed": seed},
        provenance={},
    )


class Itself(AttnProcessor2_0):
    """Each place attends to itself alone: the attention map is the identity."""

    def __call__(self, attn, hidden_states, *_, **__):
        return attn.to_out[0](attn.to_v(hidden_states))


def perturbed(unet: UNet2DConditionModel, layer: str, *args, **more) -> torch.Tensor:
    """What the UNet predicts while all self-attention in layers named like `layer` is the identity."""
    before = unet.attn_processors
    exchanged = {
        name: Itself() if "attn1" in name and layer in name else kept for name, kept in before.items()
    }
    unet.set_attn_processor(exchanged)
    try:
        return unet(*args, **more).sample
    finally:
        unet.set_attn_processor(before)


def snapshot(pipe: DiffusionPipeline, prompt: str = "a photo of a dog") -> dict[str, Any]:
    """Everything about a pipeline that putting concepts on and off must leave as it was, bit for bit."""
    picture = draw(pipe, prompt).numpy().tobytes()  # first, because the first call sets attributes of its own
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    tokenizers = {name: part for name, part in pipe.components.items() if name.startswith("tokenizer")}
    return {
        "tokenizers": {name: (id(part), len(part), part.get_vocab()) for name, part in tokenizers.items()},
        "modules": {
            f"{name}.{path}": id(m) for name, part in parts.items() for path, m in part.named_modules()
        },
        "repr": {name: repr(part) for name, part in parts.items()},
        "state": {name: state_hash(part) for name, part in parts.items()},
        "tables": {
            name: tuple(part.get_input_embeddings().weight.shape)
            for name, part in parts.items()
            if "text" in name
        },
        "trained": {
            f"{name}.{p}": w.requires_grad for name, part in parts.items() for p, w in part.named_parameters()
        },
        "attributes": {name: set(vars(part)) for name, part in {"pipe": pipe, **parts}.items()},
        "configs": {
            name: dict(part.config) for name, part in {"pipe": pipe, "denoiser": denoiser_of(pipe)}.items()
        },
        "eos": {
            name: [getattr(m, "eos_token_id", None) for m in part.modules()] for name, part in parts.items()
        },
        "picture": picture,
    }


def state_hash(module: torch.nn.Module) -> str:
    """sha256 over names and bytes of the state."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(pipe: DiffusionPipeline, folder: str | Path) -> Path:
    """Write a pipeline as a diffusers folder."""
    pipe.save_pretrained(folder)
    return Path(folder)


def _quiet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe
