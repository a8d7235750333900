"""Which maps of a base a configuration trains, and at which rank."""

from __future__ import annotations

from typing import Any

from conceptkit.base.pipeline import Base
from conceptkit.concepts.delta import ENCODERS
from conceptkit.learn.config import TrainConfig
from conceptkit.tuners.targets import find

UNET = ""
"""The places of a delta: maps of the UNet have plain names, those of a text encoder its name in front."""


def preset(recipe: TrainConfig) -> str:
    """The name of the UNet maps that the recipe teaches."""
    if gated_lora_rank(recipe):
        return "attn"
    return "linear" if recipe.adapter == "unet" else recipe.targets


def rank(recipe: TrainConfig, place: str) -> int:
    """Of factors that a map has to itself; a keyed delta shares its keys."""
    if place:
        return recipe.text_rank
    return gated_lora_rank(recipe) or recipe.rank


def gated_lora_rank(recipe: TrainConfig) -> int:
    """The rank of the LoRA beside a keyed delta; 0 where there is none."""
    return recipe.wide if recipe.adapter == "keyed" and recipe.rank else 0


def components(base: Base, recipe: TrainConfig) -> dict[str, dict[str, Any]]:
    """Place -> its maps that learn, by the names they have without any tuner."""
    found = {} if recipe.adapter == "image" else {UNET: find(base.unet, preset(recipe))}
    if recipe.text_rank:
        for place in ENCODERS:
            if (encoder := getattr(base.pipe, place, None)) is not None:
                found[place] = find(encoder, "text")
    return found
