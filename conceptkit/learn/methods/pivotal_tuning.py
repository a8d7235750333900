"""Pivotal tuning: a word learns beside a LoRA, and stands still in the end.

Textual Inversion finds the word, as an image is inverted before a generator is tuned around it (2106.05744);
diffusers' advanced scripts do both in one run.
"""

from __future__ import annotations

from conceptkit.learn import recipes
from conceptkit.learn.methods.dreambooth import DREAMBOOTH
from conceptkit.learn.methods.table import register_method
from conceptkit.learn.train_config import TrainConfig

PIVOTAL_TUNING = register_method(
    "pivotal-tuning",
    DREAMBOOTH.adapter,
    TrainConfig(
        "pivotal-tuning",
        adapter="lora",
        target_modules="attn",
        token_init="noun",
        token_train_steps=0,
        train_token_jointly=True,
        train_text_encoder_ti_frac=0.5,
        num_vectors=2,
        optimizer="prodigy",
        token_learning_rate=1.0,
        learning_rate=1.0,
        rank=4,
        max_train_steps=330,
        train_batch_size=4,
        prior_loss_weight=0.0,
    ),
    recipes.of_method("pivotal-tuning"),
)
