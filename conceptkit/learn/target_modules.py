"""Maps of a base that learn, and the rank of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conceptkit.base.pipeline import Base
from conceptkit.concepts.delta import ENCODERS
from conceptkit.learn.train_config import TrainConfig
from conceptkit.tuners.targets import TEXT_ENCODER, find

UNET = ""
"""The UNet as a part of a delta: its maps have plain names, those of a text encoder its name in front."""


@dataclass(frozen=True, eq=False)
class TargetMaps:
    """Maps of one part of a pipeline that learn, by the names they have without any tuner.

    rank: of the factors that a map has to itself; 0: full matrices.
    """

    maps: Mapping[str, Any]
    rank: int


def unet_maps(base: Base, preset: str, rank: int) -> dict[str, TargetMaps]:
    """The denoiser's maps in a preset of its architecture, under the name of the denoiser."""
    return {UNET: TargetMaps(find(base.denoiser, base.architecture.presets[preset]), rank)}


def text_encoder_maps(base: Base, rank: int) -> dict[str, TargetMaps]:
    """The maps of the text encoders' attention, by the encoders' names; {} at rank 0."""
    parts = [part for part in ENCODERS if part in base.architecture.lora_encoders] if rank else []
    present = {part: getattr(base.pipe, part, None) for part in parts}
    maps = {part: find(one, TEXT_ENCODER) for part, one in present.items() if one is not None}
    return {part: TargetMaps(found, rank) for part, found in maps.items() if found}


def notices(base: Base, recipe: TrainConfig) -> list[str]:
    """A sentence where the recipe asks for a LoRA on text encoders and the base has none that takes one."""
    rank = recipe.text_encoder_rank if recipe.max_train_steps else 0
    if not rank or text_encoder_maps(base, rank):
        return []
    kinds = " and ".join(dict.fromkeys(type(encoder).__name__ for _, encoder in base.encoders))
    return [
        f"text_encoder_rank = {rank} has no effect on {base.name}, whose text encoder ({kinds}) takes no "
        "LoRA; leave it out, or raise rank for more room to learn."
    ]
