"""DreamBooth (2208.12242): a rare word that stays, and a UNet that learns: by a LoRA, or in full."""

from __future__ import annotations

from conceptkit.base.pipeline import Base
from conceptkit.errors import BadRecipe
from conceptkit.learn import recipes
from conceptkit.learn.methods.base import Adapter
from conceptkit.learn.methods.table import register_method
from conceptkit.learn.target_modules import TargetMaps, text_encoder_maps, unet_maps
from conceptkit.learn.train_config import TrainConfig


class LoRA(Adapter):
    """A LoRA (2106.09685) with alpha = rank on `target_modules`, and on the text encoders."""

    name = "lora"
    has_target_modules = True

    def check_recipe(self, recipe: TrainConfig) -> None:
        """It has a rank."""
        if recipe.max_train_steps and not recipe.rank:
            raise BadRecipe(
                "A LoRA of rank 0 holds nothing; give --rank 1 or more, or the adapter kv or full"
            )


class FullUNet(Adapter):
    """Every linear map of the UNet, in full."""

    name = "full"

    def check_recipe(self, recipe: TrainConfig) -> None:
        """It has no rank."""
        if recipe.rank:
            raise BadRecipe(
                f"The adapter full learns full matrices, so rank {recipe.rank} means nothing; "
                f"use extract_rank = {recipe.rank} to cut what it has learned"
            )

    def target_modules(self, base: Base, recipe: TrainConfig) -> dict[str, TargetMaps]:
        """All linear maps."""
        return unet_maps(base, "linear", recipe.rank) | text_encoder_maps(base, recipe.text_encoder_rank)


DREAMBOOTH = register_method(
    "dreambooth",
    LoRA(),
    TrainConfig(
        "dreambooth",
        adapter="lora",
        target_modules="attn",
        token_init="rare",
        token_train_steps=0,
        rank=4,
        text_encoder_rank=4,
        max_train_steps=330,
        learning_rate=3e-3,
        train_batch_size=4,
        prior_batch_size=2,
    ),
    recipes.of_method("dreambooth"),
)
DREAMBOOTH_FULL = register_method(
    "dreambooth-full",
    FullUNet(),
    TrainConfig(
        "dreambooth-full",
        adapter="full",
        token_init="rare",
        token_train_steps=0,
        rank=0,
        max_train_steps=250,
        full_learning_rate=1e-4,
    ),
    recipes.of_method("dreambooth-full"),
)
