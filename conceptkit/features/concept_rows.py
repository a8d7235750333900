"""The contexts a concept's words are read in: prompts, where its words stand in them, and their features."""

from contextlib import nullcontext

import torch
from torch import Tensor

from conceptkit.base.added_tokens import add_tokens
from conceptkit.base.fingerprint import fingerprint_of
from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import TextFeatures, encode, positions, spell
from conceptkit.concepts.concept import Concept
from conceptkit.errors import ConceptError
from conceptkit.features.closed_form import Factor, principal_rows
from conceptkit.features.prompt_templates import context_prompts

MOST_ROWS = 8
ENERGY = 0.99


def word_features(concept: Concept, base: Base, split: str = "fit") -> tuple[TextFeatures, Tensor]:
    """Features of the concept's prompts, and where its own words stand in them: (n, T) bool.

    Its tokens are put on the pipeline meanwhile. Raises ConceptError when its words cannot be found again.
    """
    with add_tokens(base.pipe, concept.tokens) if concept.tokens else nullcontext():
        features = encode(base.pipe, context_prompts(concept, split))
        spelt = [spell(base.pipe, text) for text in concept.words.values()]
    own = torch.stack([positions(features.ids, ids) for ids in spelt]).any(dim=0)
    if not own.any():
        raise ConceptError(
            f"{base.name} does not read the words of {concept.name}; learn it again on {base.name}"
        )
    return features, own


def constraint_rows(concept: Concept, base: Base, metric: Factor) -> Tensor:
    """The concept's constraint rows (s, d): the ones it carries, or the principal features of its words.

    Modifier and noun positions over all fit prompts, k <= MOST_ROWS for each of its names by ENERGY in the
    metric of G^-1. Rows that it carries are features of the base it was learned on: on a relative of
    it, whose text encoder may read its words in another way, they are found anew.
    """
    rows = concept.rows if concept.base.same(fingerprint_of(base.pipe, own=True)) else None
    most = MOST_ROWS * max(1, len(concept.words))
    if rows is not None and len(rows) <= most:
        return rows.double()
    if rows is None:
        features, own = word_features(concept, base)
        rows = features.hidden[own]
    return principal_rows(rows, metric, energy=ENERGY, most=most)
