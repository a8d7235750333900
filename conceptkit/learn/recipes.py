"""Published recipes, a row for each method and family of bases, with their source beside them.

The rate, the number of steps and the loop of a row belong together: how a LoRA begins, how noise levels are
drawn, what is clipped and what decays. Rows of the storybook are with the methods themselves; they were tuned
on that base, which is a hundred times smaller than the others. A row's rate is what its source's script takes
after it has scaled it itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conceptkit.base.families import STORYBOOK
from conceptkit.learn.train_config import TrainConfig

USUAL = "stable-diffusion"
"""The family whose rows others go by that have none of their own."""


@dataclass(frozen=True)
class StepsRule:
    """Steps of the delta by the number of photos: `each` for one, at least `least`, at most `most`."""

    each: int
    least: int
    most: int
    source: str

    def steps(self, photos: int) -> int:
        """For so many photos."""
        return min(self.most, max(self.least, self.each * photos))


@dataclass(frozen=True)
class Row:
    """A recipe and where its numbers are from.

    why: what it has otherwise than the source, or than others have it. steps: where steps follow the number
    of photos, for their published number is for about five.
    """

    config: TrainConfig
    source: str
    why: str = ""
    steps: StepsRule | None = None


_EXAMPLES = "diffusers, examples"
_MODL = "modl, src/core/presets.rs"

_LOOP: dict[str, Any] = {
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "lr_scheduler": "constant",
    "augmentation": "crop",
    "random_flip": False,
    "sample_latents": True,
    "weighting_scheme": "none",
    "num_augmented_views": 24,
    "class_image_steps": 50,
    "class_image_guidance_scale": 7.5,
    "init_lora_weights": "gaussian",
    "learning_rate": 1e-4,
    "gated_lora_learning_rate": 1e-4,
    "full_learning_rate": 4e-5,
}
"""What diffusers' example scripts have in common, and rates of what can be asked for beside it."""

_DREAMBOOTH: dict[str, Any] = _LOOP | {
    "token_init": "rare",
    "token_train_steps": 0,
    "max_grad_norm": 1.0,
    "instance_prompt": "a photo of {}",
    "prior_batch_size": 1,
    "num_class_images": 200,
    "train_batch_size": 1,
}
_LORA: dict[str, Any] = _DREAMBOOTH | {
    "adapter": "lora",
    "target_modules": "attn",
    "rank": 4,
    "max_train_steps": 500,
    "prior_loss_weight": 0.0,
}
_LARGE: dict[str, Any] = _LORA | {
    "train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "prior_batch_size": 4,
    "adam_weight_decay": 1e-4,
}
"""Of the scripts for larger bases: a picture at a time, four for a step."""

_WARMUP = "the 100 steps of warm-up in the README have no effect with its constant schedule"
_FLUX_STEPS = StepsRule(50, 500, 1000, f"{_EXAMPLES}/dreambooth/README_flux.md; {_MODL}, 50 x 4 a photo")


def _dreambooth(name: str, **changes: Any) -> Row:
    why, steps = changes.pop("why", ""), changes.pop("steps", None)
    loop = _LARGE if "train_batch_size" not in changes else _LORA
    return Row(TrainConfig("dreambooth", **{**loop, **changes}), f"{_EXAMPLES}/dreambooth/{name}", why, steps)


_INVERSION: dict[str, Any] = _LOOP | {
    "token_init": "noun",
    "token_train_steps": 3000,
    "token_learning_rate": 2e-3,
    "max_train_steps": 0,
    "rank": 0,
    "train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "prior_loss_weight": 0.0,
    "random_flip": True,
}
_PIVOTAL: dict[str, Any] = _LORA | {
    "token_init": "random",
    "num_vectors": 2,
    "train_token_jointly": True,
    "train_text_encoder_ti_frac": 0.5,
    "optimizer": "prodigy",
    "learning_rate": 1.0,
    "token_learning_rate": 1.0,
    "rank": 8,
    "max_train_steps": 1000,
    "train_batch_size": 3,
    "prior_batch_size": 3,
    "adam_weight_decay": 1e-4,
}
_CUSTOM: dict[str, Any] = {
    "token_init": "noun",
    "token_init_noise": 1.0,
    "num_vectors": 3,
    "rank": 3,
    "class_noun_rows": 2,
    "gated_lora_rank": 4,
    "token_learning_rate": 0.2,
    "learning_rate": 8e-3,
    "full_learning_rate": 1.6e-3,
    "key_learning_rate": 1e-3,
    "gated_lora_learning_rate": 1.8e-2,
    "init_lora_weights": "unit",
    "relative_to_weights": True,
    "max_grad_norm": 1.0,
    "token_train_steps": 250,
    "max_train_steps": 500,
    "max_timestep_fraction": 0.8,
    "auto_caption": True,
    "sude_prompts": "states",
    "train_batch_size": 4,
    "prior_loss_weight": 0.0,
}

ROWS: Mapping[tuple[str, str], Row] = {
    ("dreambooth", "stable-diffusion"): _dreambooth(
        "README.md",
        train_batch_size=1,
        steps=StepsRule(100, 500, 2000, f"{_EXAMPLES}/dreambooth/README.md; {_MODL}, from 2000"),
    ),
    ("dreambooth", "sdxl"): _dreambooth("README_sdxl.md"),
    ("dreambooth", "kolors"): _dreambooth("README_sdxl.md", why="Kolors has SDXL's UNet, and no script"),
    ("dreambooth", "if"): _dreambooth(
        "README.md, IF stage I",
        train_batch_size=4,
        learning_rate=2e-5,
        max_train_steps=1200,
        prior_batch_size=4,
        instance_prompt="a {}",
        why="5e-6 times the batch of 4, as --scale_lr has it",
    ),
    ("dreambooth", "sd3"): _dreambooth(
        "README_sd3.md",
        learning_rate=4e-4,
        weighting_scheme="logit_normal",
        precondition_outputs=True,
        why="T5 reads 256 positions, as its pipeline does; the script has --max_sequence_length 77",
    ),
    ("dreambooth", "flux"): _dreambooth(
        "train_dreambooth_lora_flux.py",
        target_modules="attn+ff",
        why="AdamW at the script's own rate; its README has Prodigy, optimizer = prodigy",
        steps=_FLUX_STEPS,
    ),
    ("dreambooth", "flux2"): _dreambooth("README_flux2.md", why=_WARMUP, sample_latents=False),
    ("dreambooth", "qwen-image"): _dreambooth("README_qwen.md", learning_rate=2e-4),
    ("dreambooth", "z-image"): _dreambooth("README_z_image.md", why=_WARMUP, sample_latents=False),
    ("dreambooth", "sana"): _dreambooth("README_sana.md", sample_latents=False, target_modules="qkv"),
    ("dreambooth", "lumina2"): _dreambooth(
        "README_lumina2.md",
        why="noise levels as the base draws with them, mostly of much noise; the script takes those of the "
        "scheduler for shares of the picture, and so learns mostly at little noise",
    ),
    ("dreambooth", "chroma"): Row(
        TrainConfig(
            "dreambooth",
            **{
                **_LARGE,
                "rank": 16,
                "max_train_steps": 2000,
                "train_batch_size": 1,
                "gradient_accumulation_steps": 1,
                "prior_batch_size": 1,
            },
        ),
        "ai-toolkit, config/examples",
        "AdamW of 32 bits; optimizer = adamw8bit is the source's",
    ),
    ("dreambooth-full", "stable-diffusion"): Row(
        TrainConfig(
            "dreambooth-full",
            **{**_DREAMBOOTH, "full_learning_rate": 5e-6},
            adapter="full",
            rank=0,
            max_train_steps=800,
        ),
        f"{_EXAMPLES}/dreambooth/README.md",
        "convolutions and norms stand still, as a concept holds linear maps alone",
    ),
    ("textual-inversion", "stable-diffusion"): Row(
        TrainConfig("textual-inversion", **_INVERSION),
        f"{_EXAMPLES}/textual_inversion/README.md",
        "photos are cropped to a square, not squashed; 5e-4 times 4, as --scale_lr has it",
    ),
    ("textual-inversion", "sdxl"): Row(
        TrainConfig("textual-inversion", **{**_INVERSION, "token_train_steps": 500}),
        f"{_EXAMPLES}/textual_inversion/README_sdxl.md",
    ),
    ("custom-diffusion", "stable-diffusion"): Row(
        TrainConfig(
            "custom-diffusion",
            **{
                **_DREAMBOOTH,
                "adapter": "kv",
                "target_modules": "kv",
                "token_init": "rare",
                "initializer_token": "ktn",
                "train_token_jointly": True,
                "detach_bos": True,
                "rank": 0,
                "full_learning_rate": 4e-5,
                "token_learning_rate": 4e-5,
                "max_train_steps": 250,
                "train_batch_size": 2,
                "prior_batch_size": 2,
                "num_augmented_views": 96,
                "augmentation": "zoom",
                "random_flip": True,
                "masked_loss": "channel_sum",
                "instance_prompt": "photo of a {}",
            },
        ),
        f"{_EXAMPLES}/custom_diffusion/README.md",
        "1e-5 times the batch of 2 and 2 for the prior, as --scale_lr has it; class pictures are the base's "
        "own, as those of the README are from a server that is gone",
    ),
    ("vico", "stable-diffusion"): Row(
        TrainConfig(
            "vico",
            **{
                **_LOOP,
                "adapter": "image",
                "token_init": "noun",
                "token_train_steps": 0,
                "token_learning_rate": 5e-3,
                "train_token_jointly": True,
                "rank": 0,
                "full_learning_rate": 1e-5,
                "max_train_steps": 400,
                "train_batch_size": 4,
                "prior_loss_weight": 0.0,
                "attention_regularization_weight": 5e-4,
            },
        ),
        "ViCo, configs and main.py of the authors' program",
        "the loop is that of diffusers' scripts",
    ),
    ("pivotal-tuning", "stable-diffusion"): Row(
        TrainConfig("pivotal-tuning", **_PIVOTAL),
        f"{_EXAMPLES}/advanced_diffusion_training/README.md",
        "the numbers are those of SDXL without its snr_gamma, as the script for SD 1.5 has none",
    ),
    ("pivotal-tuning", "sdxl"): Row(
        TrainConfig("pivotal-tuning", **_PIVOTAL, snr_gamma=5.0),
        f"{_EXAMPLES}/advanced_diffusion_training/README.md",
    ),
    ("pivotal-tuning", "flux"): Row(
        TrainConfig(
            "pivotal-tuning",
            **{
                **_PIVOTAL,
                "target_modules": "attn+ff",
                "max_train_steps": 700,
                "train_batch_size": 1,
                "prior_batch_size": 1,
            },
        ),
        f"{_EXAMPLES}/advanced_diffusion_training/README_flux.md",
    ),
    ("custom", "stable-diffusion"): Row(
        TrainConfig("custom", **_CUSTOM),
        f"{_EXAMPLES}/dreambooth and textual_inversion, README.md, in units of Stable Diffusion's weights",
        "faster than these, as far as maps move no more than three times as far in as many steps "
        "(benchmarks.update_sizes); values and keys of text have the rates by which they do, "
        "and the LoRA begins small, so that what it reads is learned too",
    ),
}


def of_method(name: str) -> dict[str, TrainConfig]:
    """The published recipes of a method, by family."""
    return {family: row.config for (method, family), row in ROWS.items() if method == name}


def row_of(method: str, family: str) -> Row | None:
    """The row that a method goes by on a family of bases; None where its recipe is not a published one."""
    if family == STORYBOOK:
        return None
    return ROWS.get((method, family)) or ROWS.get((method, USUAL))
