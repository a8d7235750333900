"""Penalties on what a delta does where it should do nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import encode
from conceptkit.concepts.concept import Concept
from conceptkit.features import caption_statistics
from conceptkit.features.closed_form import gram
from conceptkit.features.prompt_templates import context_prompts
from conceptkit.learn import trainable_delta
from conceptkit.learn.training_step import TrainingContext


def regularizers_for(
    taught: TrainingContext,
    concepts: Sequence[Concept],
    look: trainable_delta.TrainableDelta,
    shape: caption_statistics.CaptionStatistics,
) -> Callable[[], Tensor] | None:
    """What the delta does to captions without the concept, and where its own prompts begin and end."""
    recipe, base = taught.recipe, taught.base
    terms: list[tuple[float, Tensor, float]] = []
    if recipe.leak:
        moment = shape.gram.float().to(base.device)
        terms.append((recipe.leak, moment, trainable_delta.ordinary(base, moment)))
    if recipe.edges:
        moment = _edges(base, concepts).float().to(base.device)
        terms.append((recipe.edges, moment, trainable_delta.ordinary(base, moment)))
    if not terms:
        return None

    def more() -> Tensor:
        return torch.stack([weight * look.spilt(moment) / size for weight, moment, size in terms]).sum()

    return more


def _edges(base: Base, concepts: Sequence[Concept]) -> Tensor:
    """Second moment (d, d) of what stands at BOS, EOT and padding of the concepts' own prompts."""
    features = encode(base.pipe, [text for concept in concepts for text in context_prompts(concept)])
    place = torch.arange(features.ids.shape[1]).expand_as(features.ids)
    return gram(features.hidden, ((place == 0) | (place >= features.eot.unsqueeze(1))).float())
