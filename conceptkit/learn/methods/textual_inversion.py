"""Textual Inversion (2208.01618): the word alone."""

from __future__ import annotations

from conceptkit.learn import recipes
from conceptkit.learn.methods.custom import CUSTOM
from conceptkit.learn.methods.table import register_method
from conceptkit.learn.train_config import TrainConfig

TEXTUAL_INVERSION = register_method(
    "textual-inversion",
    CUSTOM.adapter,
    TrainConfig(
        "textual-inversion",
        token_init="noun",
        token_train_steps=400,
        token_learning_rate=5e-3,
        max_train_steps=0,
        rank=0,
        train_batch_size=5,
        prior_loss_weight=0.0,
        sude_prompts="states",
    ),
    recipes.of_method("textual-inversion"),
)
