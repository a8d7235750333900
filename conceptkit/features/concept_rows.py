"""The contexts a concept's words are read in: prompts, where its words stand in them, and their features."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from conceptkit.base.added_tokens import add_tokens
from conceptkit.base.fingerprint import Fingerprint, fingerprint_of
from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import positions, spell
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.recipe_fields import recipe_field
from conceptkit.errors import ConceptError
from conceptkit.features.closed_form import Factor, principal_rows
from conceptkit.features.prompt_sample import (
    SampledFeatures,
    read_each,
    read_prompts,
    samples_padding,
)
from conceptkit.features.prompt_templates import context_prompts

MOST_ROWS = 8
ENERGY = 0.99
TEMPLATE_STEP = 2
"""With a large text encoder merges read every second template. On the storybook base that moves what merges
keep of a concept by 0.06 at most, and ordinary captions by 0.06 of how far they move."""
SPLITS = ("fit", "held-out")
WordFeatures = tuple[SampledFeatures, Tensor]
"""Features of a concept's prompts, and where its own words stand in them: (n, T) bool."""


def word_features(concept: Concept, base: Base, split: str = "fit") -> WordFeatures:
    """Features of the concept's prompts, and where its own words stand in them: (n, T) bool.

    Its tokens are put on the pipeline meanwhile. Raises ConceptError when its words cannot be found again.
    """
    with add_tokens(base.pipe, concept.tokens) if concept.tokens else nullcontext():
        features = read_prompts(base.pipe, context_prompts(concept, split))
        return features, _own_words(concept, base, features)


def word_features_of_all(concepts: Sequence[Concept], base: Base) -> list[tuple[WordFeatures, WordFeatures]]:
    """What `word_features` gives, to fit on and held out, of concepts whose tokens are on the pipeline.

    With a large text encoder only one template in TEMPLATE_STEP is read.
    """
    step = TEMPLATE_STEP if samples_padding(base.pipe) else 1
    asked = [(concept, split) for concept in concepts for split in SPLITS]
    lists = [context_prompts(concept, split)[::step] for concept, split in asked]
    read = read_each(base.pipe, lists)
    found = [(features, _own_words(concepts[i // 2], base, features)) for i, features in enumerate(read)]
    return list(zip(found[::2], found[1::2], strict=True))


def _own_words(concept: Concept, base: Base, features: SampledFeatures) -> Tensor:
    spelt = [spell(base.pipe, text) for text in concept.words.values()]
    own = torch.stack([positions(features.ids, ids) for ids in spelt]).any(dim=0)
    if not own.any():
        raise ConceptError(
            f"{base.name} does not read the words of {concept.name}; learn it again on {base.name}"
        )
    return own


def constraint_rows(
    concept: Concept,
    base: Base,
    metric: Factor,
    now: Fingerprint | None = None,
    read: WordFeatures | None = None,
) -> Tensor:
    """The concept's constraint rows (s, d): the ones it carries, or the principal features of its words.

    Modifier and noun positions over all fit prompts, k <= MOST_ROWS for each of its names by ENERGY in the
    metric of G^-1. Rows that it carries are features of the base it was learned on: on a relative of
    it, whose text encoder may read its words in another way, they are found anew.

    now: what the base is now, with attached concepts; read: `word_features` to fit on. None: worked out here.
    """
    rows = concept.rows
    if rows is not None and not concept.base.same(now or fingerprint_of(base.pipe, own=True)):
        rows = None
    most = MOST_ROWS * max(1, len(concept.words))
    if rows is not None and len(rows) <= most:
        return rows.double()
    if rows is not None:
        return principal_rows(rows, metric, energy=ENERGY, most=most)
    features, own = read or word_features(concept, base)
    found = principal_rows(features.hidden[own], metric, energy=ENERGY, most=most)
    shrunk = concept.recipe.get("shrunk")
    if not isinstance(shrunk, dict) or "kept" not in shrunk or len(concept.words) != 1:
        return found
    # It has left out the rows that it learned at, to take fewer bytes: its words and noun give them again.
    fields = ("rank", "class_noun_rows")
    ranks, wanted = (int(str(recipe_field(concept.recipe, field) or 0)) for field in fields)
    found = found[:ranks] if ranks and wanted else found
    held = min(wanted, MOST_ROWS - len(found)) if ranks and concept.noun else 0
    return torch.cat([found, class_noun_rows(concept, base, metric, held)])


def class_noun_rows(concept: Concept, base: Base, metric: Factor, most: int) -> Tensor:
    """Principal rows (s, d), s <= `most`, of the class noun by itself, in the prompts of the concept.

    A delta that is nothing there leaves pictures of the class alone, without having seen any.
    """
    if not most:
        return torch.zeros(0, base.width, dtype=torch.float64)
    (words,) = concept.words.values()
    plain = [text.replace(words, concept.noun or "") for text in context_prompts(concept)]
    read = read_prompts(base.pipe, plain)
    there = positions(read.ids, spell(base.pipe, concept.noun or ""))
    return principal_rows(read.hidden[there], metric, energy=ENERGY, most=most)
