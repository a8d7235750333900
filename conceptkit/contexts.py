"""The contexts a concept's words are read in: prompts, where its words stand in them, and their features."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from conceptkit.base import Base, Features, encode, encoders, token_ids
from conceptkit.compose import Factor, principal_rows
from conceptkit.concept import Concept
from conceptkit.errors import ConceptError
from conceptkit.tokens import add_tokens

MOST_ROWS = 8
ENERGY = 0.99

# What words mean moves with their context, so rows are fitted on many; those they are judged on are others.
SUBJECTS = {
    "fit": """
        a {}
        photo of a {}
        a photo of a {}
        a picture of a {}
        the {}
        a {} in the snow
        a {} on the beach
        photo of a {} in a forest
        a photo of a {} in the city
        a picture of a {} in the mountains
        a far away {} in the desert
        a zoomed in {}
        photo of a close up {}
        a very small {} in a meadow
        a red {} in the kitchen
        a blue {} on the grass
        a {} wearing a hat
        a photo of a {} wearing sunglasses in the library
        a {} running in the woods
        a {} sitting on the moon
        a {} next to a house
        photo of a {} in front of a tree
        a chair and a {}
        a cat next to a {}
        a pencil drawing of a {}
        a watercolour painting of a {} in the city
    """,
    "held-out": """
        this is a {}
        photo of the {} in a kitchen
        a {} at the seaside
        a golden {} on the moon
        photo of a {} wearing a scarf in the snow
        a green {} jumping in the desert
        a {} sleeping in the library
        a {} in front of a car
        a picture of a teapot next to a {} in the forest
        a far away {} on the grass
        pixel art of a {}
        a close up {} in front of mountains
    """,
}
STYLES = {
    "fit": """
        a picture in {}
        a dog in {}
        a red car in {}
        a house in the snow in {}
        a cat sitting in the kitchen in {}
        a tree by a lake, in {}
        a woman wearing a hat, in {}
        a chair next to a candle in {}
        the city at night in {}
        a boat on the beach in {}
        a flower in {}
        {}, a bird in a forest
    """,
    "held-out": """
        a rabbit in {}
        a teapot on a table in {}
        a gate in front of mountains in {}
        a man reading in the library, in {}
        a blue fish in {}
        {}, a house in the desert
    """,
}


def context_prompts(concept: Concept, split: str = "fit") -> list[str]:
    """Prompts that hold the concept's words, tokens written out; `split` is "fit" or "held-out"."""
    return [
        template.strip().format(text)
        for text in concept.words.values()
        for template in _templates(concept, text)[split].strip().splitlines()
    ]


def word_features(concept: Concept, base: Base, split: str = "fit") -> tuple[Features, Tensor]:
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


def positions(ids: Tensor, words: Tensor) -> Tensor:
    """Where the ids `words` (k,) stand in ids (n, T): (n, T) bool, all k places of each occurrence."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    k = len(words)
    starts = (ids.unfold(1, k, 1) == words).all(dim=2)
    for i in range(k):
        found[:, i : i + starts.shape[1]] |= starts
    return found


def constraint_rows(concept: Concept, base: Base, metric: Factor) -> Tensor:
    """The concept's constraint rows (s, d): the ones it carries, or the principal features of its words.

    Modifier and noun positions over all fit prompts, k <= MOST_ROWS for each of its names by ENERGY in the
    metric of G^-1. Rows that it carries are features of the base it was learned on: on a relative of
    it, whose text encoder may read its words in another way, they are found anew.
    """
    rows = concept.rows if concept.base.exact == base.fingerprint.exact else None
    most = MOST_ROWS * max(1, len(concept.words))
    if rows is not None and len(rows) <= most:
        return rows.double()
    if rows is None:
        features, own = word_features(concept, base)
        rows = features.hidden[own]
    return principal_rows(rows, metric, energy=ENERGY, most=most)


def _templates(concept: Concept, text: str) -> dict[str, str]:
    return STYLES if concept.kind == "style" or text.endswith(" style") else SUBJECTS


def spell(pipe: Any, text: str) -> Tensor:
    """The ids of a text alone, without those of beginning and end."""
    tokenizer = encoders(pipe)[0][0]
    (ids,) = token_ids(pipe, tokenizer, [text])
    end = int((ids == tokenizer.eos_token_id).int().argmax())
    return ids[1:end]
