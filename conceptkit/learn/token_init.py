"""Where a modifier token begins: at words, beside them, or as a rare token of the vocabulary."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from conceptkit.base.pipeline import Base
from conceptkit.base.rare_tokens import Candidate, choose
from conceptkit.base.text_features import encoders
from conceptkit.features.captions import captions
from conceptkit.learn.subject import Subject
from conceptkit.learn.train_config import TrainConfig
from conceptkit.rng import hash_of

FAR = 6.0
"""Lengths aside of its noun for a token that was to begin at a word, where none says more than the noun:
tokens beside one and the same noun must not be alike."""


def init_token(
    base: Base,
    subject: Subject,
    recipe: TrainConfig,
    seed: int,
    look: str | None = None,
    taken: Collection[str] = (),
) -> tuple[tuple[Tensor, ...], dict[str, str]]:
    """The token's first rows, per text encoder (k, d), and what there is to say of their origin.

    look: a word that describes the photos, for recipes that begin there. taken: rare tokens that are others'.
    """
    number = hash_of(seed, subject.name, subject.photos.digest)
    if recipe.initializer_token:
        begun = init_rows(base, recipe.initializer_token, 0.0, number)
        repeated = tuple(row.repeat(recipe.num_vectors, 1) for row in begun)
        return repeated, {"initializer": recipe.initializer_token}
    if recipe.token_init == "random":
        return _random(base, recipe.num_vectors, number), {}
    if recipe.token_init == "rare":
        chosen = choose(base.pipe, captions(base.family.name), number, recipe.num_vectors, taken)
        return _copied(base, chosen), {"identifier": " ".join(candidate.text for candidate in chosen)}
    aside = {
        "noun": 0.0,
        "aside": recipe.token_init_noise,
        "described": recipe.token_init_noise if look else FAR,
    }[recipe.token_init]
    numbers = [number, *(hash_of(number, k) for k in range(1, recipe.num_vectors))]
    rows = [init_rows(base, look or subject.noun, aside, number) for number in numbers]
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True)), {"look": look} if look else {}


def init_rows(base: Base, word: str | None, aside: float, seed: int) -> tuple[Tensor, ...]:
    """One row per text encoder (1, d): `aside` lengths of a word away from it.

    The direction is random, so that no two concepts share it: what the text encoder makes of it is the key by
    which a delta finds its own words, and keys that point apart can be merged without loss.
    """
    rows = []
    for tokenizer, encoder in encoders(base.pipe):
        table = encoder.get_input_embeddings().weight.detach().float().cpu()
        ids = tokenizer(word or "thing", add_special_tokens=False).input_ids
        away = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(seed))
        near = table[ids].mean(0)
        rows.append((near + aside * near.norm() * away / away.norm()).unsqueeze(0))
    return tuple(rows)


def _random(base: Base, count: int, seed: int) -> tuple[Tensor, ...]:
    """Rows (count, d) per text encoder, as far from zero as words are spread."""
    dice, rows = torch.Generator().manual_seed(seed), []
    for _, encoder in encoders(base.pipe):
        table = encoder.get_input_embeddings().weight.detach().float().cpu()
        rows.append(table.std() * torch.randn(count, table.shape[1], generator=dice))
    return tuple(rows)


def _copied(base: Base, taken: list[Candidate]) -> tuple[Tensor, ...]:
    tables = [encoder.get_input_embeddings().weight.detach().float().cpu() for _, encoder in base.encoders]
    return tuple(table[[candidate.ids[k] for candidate in taken]].clone() for k, table in enumerate(tables))
