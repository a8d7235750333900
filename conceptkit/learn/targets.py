"""Which maps of a base learn: presets by name, as a table of patterns."""

from __future__ import annotations

import re
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from conceptkit.base import Base
from conceptkit.kv_delta import ENCODERS
from conceptkit.recipes import Recipe

UNET = ""
"""The places of a delta: maps of the UNet have plain names, those of a text encoder its name in front."""

_ATTENTION = r"\battn[12]\.to_(?:q|k|v|out\.0)"
PRESETS = {
    "kv": r"\battn2\.to_[kv]",
    "cross": r"\battn2\.to_(?:q|k|v|out\.0)",
    "attn": _ATTENTION,
    "attn+ff": rf"(?:{_ATTENTION}|\bff\.net\.(?:0\.proj|2))",
    "linear": r"",
    "text": r"\bself_attn\.(?:q|k|v|out)_proj",
}
READS_TEXT = re.compile(PRESETS["kv"] + "$")


def preset(recipe: Recipe) -> str:
    """The name of the UNet maps that the recipe teaches."""
    if wide(recipe):
        return "attn"
    return "linear" if recipe.adapter == "unet" else recipe.targets


def rank(recipe: Recipe, place: str) -> int:
    """Of factors that a map has to itself; a keyed delta shares its keys."""
    if place:
        return recipe.text_rank
    return wide(recipe) or recipe.rank


def wide(recipe: Recipe) -> int:
    """The rank of the LoRA beside a keyed delta; 0 where there is none."""
    return recipe.wide if recipe.adapter == "keyed" and recipe.rank else 0


def places(base: Base, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Place -> its maps that learn, by the names they have without any tuner."""
    found = {} if recipe.adapter == "image" else {UNET: find(base.unet, preset(recipe))}
    if recipe.text_rank:
        for place in ENCODERS:
            if (encoder := getattr(base.pipe, place, None)) is not None:
                found[place] = find(encoder, "text")
    return found


def find(module: nn.Module, name: str) -> dict[str, Any]:
    """Linear maps of a module that a preset names; one under a tuner is its tuner layer."""
    pattern = re.compile(f".*{PRESETS[name]}")
    found: dict[str, Any] = {}
    tuned: tuple[str, ...] = ()
    for path, layer in module.named_modules():
        if tuned and path.startswith(tuned):
            continue
        linear = layer
        if isinstance(layer, BaseTunerLayer):
            tuned, linear = (*tuned, f"{path}."), layer.get_base_layer()
        if isinstance(linear, nn.Linear) and pattern.fullmatch(path):
            found[path] = layer
    return found
