"""Penalties on what a delta does where it should do nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import UNREAD, WORD, encode
from conceptkit.concepts.concept import Concept
from conceptkit.features.caption_statistics import CaptionStatistics
from conceptkit.features.closed_form import gram
from conceptkit.features.prompt_templates import context_prompts
from conceptkit.learn.train_config import TrainConfig
from conceptkit.learn.trainable_delta import TrainableDelta, ordinary


def regularizers_for(
    base: Base,
    recipe: TrainConfig,
    concepts: Sequence[Concept],
    delta: TrainableDelta,
    statistics: CaptionStatistics,
) -> Callable[[], Tensor] | None:
    """What the delta does to captions without the concept, and where its own prompts begin and end."""
    terms: list[tuple[float, Tensor, float]] = []
    if recipe.caption_preservation_weight:
        moment = statistics.gram.float().to(base.device)
        terms.append((recipe.caption_preservation_weight, moment, ordinary(base, moment)))
    if recipe.special_token_preservation_weight:
        moment = _edges(base, concepts).float().to(base.device)
        terms.append((recipe.special_token_preservation_weight, moment, ordinary(base, moment)))
    if not terms:
        return None

    def penalty() -> Tensor:
        return torch.stack([weight * delta.leak(moment) / size for weight, moment, size in terms]).sum()

    return penalty


def _edges(base: Base, concepts: Sequence[Concept]) -> Tensor:
    """Second moment (d, d) of what stands at BOS, EOT and padding of the concepts' own prompts."""
    features = encode(base.pipe, [text for concept in concepts for text in context_prompts(concept)])
    return gram(features.hidden, ((features.roles != WORD) & (features.roles != UNREAD)).float())
