"""Keyed deltas: values learn at the principal rows of the concept's own words."""

from __future__ import annotations

import torch
from torch import Tensor

from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import encode, positions, spell
from conceptkit.concepts.concept import Concept
from conceptkit.features.closed_form import Factor, closed_form, principal_rows
from conceptkit.features.concept_rows import ENERGY, MOST_ROWS
from conceptkit.features.prompt_templates import context_prompts
from conceptkit.learn.config import TrainConfig


def plain_rows(concept: Concept, base: Base, keys: Factor, most: int) -> Tensor:
    """Principal rows (s, d), s <= `most`, of the class noun by itself, in the prompts of the concept.

    A delta that is nothing there leaves pictures of the class alone, without having seen any.
    """
    if not most:
        return torch.zeros(0, base.width, dtype=torch.float64)
    (words,) = concept.words.values()
    read = encode(base.pipe, [text.replace(words, concept.noun or "") for text in context_prompts(concept)])
    there = positions(read.ids, spell(base.pipe, concept.noun or ""))
    return principal_rows(read.hidden[there], keys, energy=ENERGY, most=most)


def class_row_count(recipe: TrainConfig, concept: Concept, own: Tensor) -> int:
    """How many rows of its class there is room for beside a concept's own."""
    return min(recipe.hold, MOST_ROWS - len(own)) if recipe.rank and concept.noun else 0


def key_factor(rows: Tensor, held: Tensor, keys: Factor) -> Tensor:
    """The rows of M^-1 C G^-1 (s, d) that belong to `rows` (s, d), C being these and those `held` (h, d).

    It reads 1 at its own constraint row, 0 at the others and those held, little in ordinary captions.
    """
    both = torch.cat([rows, held])
    return closed_form(both, torch.zeros(len(both), 1), keys).down[: len(rows)]
