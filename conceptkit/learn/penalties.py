"""Penalties on what a delta does where it should do nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from conceptkit import metric
from conceptkit.base import Base, encode
from conceptkit.compose import gram
from conceptkit.concept import Concept
from conceptkit.contexts import context_prompts
from conceptkit.learn import adapters
from conceptkit.learn.lesson import Lesson


def of(
    taught: Lesson, concepts: Sequence[Concept], look: adapters.Look, shape: metric.Metric
) -> Callable[[], Tensor] | None:
    """What the delta does to captions without the concept, and where its own prompts begin and end."""
    recipe, base = taught.recipe, taught.base
    terms: list[tuple[float, Tensor, float]] = []
    if recipe.leak:
        moment = shape.gram.float().to(base.device)
        terms.append((recipe.leak, moment, adapters.ordinary(base, moment)))
    if recipe.edges:
        moment = _edges(base, concepts).float().to(base.device)
        terms.append((recipe.edges, moment, adapters.ordinary(base, moment)))
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
