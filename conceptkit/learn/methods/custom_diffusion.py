"""Custom Diffusion (2212.04488): a rare word and maps of cross-attention learn together."""

from __future__ import annotations

from conceptkit.learn import recipes
from conceptkit.learn.methods.base import Adapter
from conceptkit.learn.methods.table import register_method
from conceptkit.learn.train_config import TrainConfig


class CrossAttention(Adapter):
    """A delta on `target_modules`; rank 0: full matrices, as published."""

    name = "kv"
    sude_weight = 2.0
    split_by_rows = True
    has_target_modules = True


CUSTOM_DIFFUSION = register_method(
    "custom-diffusion",
    CrossAttention(),
    TrainConfig(
        "custom-diffusion",
        adapter="kv",
        target_modules="cross",  # the paper: "kv"; its authors' code can teach all of it
        token_init="rare",
        token_train_steps=0,
        train_token_jointly=True,
        detach_bos=True,
        rank=8,  # full matrices, as the paper has them, come less near in as many steps
        max_train_steps=330,
        learning_rate=2e-3,
        full_learning_rate=4e-4,
        max_timestep_fraction=0.8,
        train_batch_size=4,
        prior_batch_size=2,
        num_class_images=48,
        caption_preservation_weight=0.3,  # else low rank changes other captions by half
    ),
    recipes.of_method("custom-diffusion"),
)
