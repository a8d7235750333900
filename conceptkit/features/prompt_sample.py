"""Prompts as statistics need them: with a large text encoder most are read only as far as their text goes.

CLIP reads from left to right, so what stands at a word, and at the end of a text, does not depend on the
padding behind it. A caption has about ten words and 77 positions: nearly all that its features cost is
padding. Here every word is read, and of the padding a sample: the first position of each prompt, which tells
what its padding is like, and of captions some whole, which tell how padding goes on.

Measured on the storybook base (`benchmarks.first_use`): merges move ordinary captions up to 1.1 times as
far as with all padding read, and keep as much of their concepts, to 0.06. Fewer captions, each whole, are
worse: with a sixth of them merges move captions 1.4 times as far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conceptkit.base.text_features import (
    PADDING,
    UNREAD,
    TextFeatures,
    encode,
    encoders,
    roles,
    site_features,
    token_ids,
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


LARGE = 30e6
"""Parameters of a text encoder beside its token table from which on padding is sampled: CLIP-L has 85
million. Smaller encoders read hundreds of captions whole in seconds."""
WHOLE = 10
"""One caption in so many is read with all of its padding."""
NEAR = 1
"""Positions of padding that are read of the others."""
NEAR_SHARE = 0.5
"""Of the padding that is not read, what these stand for; whole prompts stand for the rest."""
BATCH = 32
SMALL, MIXED = 8, 1.5
"""A batch of fewer prompts takes in some that are up to MIXED times as long: another pass costs more than
their padding."""


@dataclass(frozen=True, eq=False)
class SampledFeatures(TextFeatures):
    """Features of prompts; positions that have not been read have the role UNREAD and features 0.

    counts: (n, T), how many positions each of those that were read stands for; 0 where none was.
    """

    counts: Tensor


def samples_padding(pipe: DiffusionPipeline) -> bool:
    """Whether padding is sampled on this pipeline: its text encoders are CLIP's, and one of them is large."""
    pairs = encoders(pipe)
    causal = all(
        getattr(encoder.config, "model_type", "") == "clip_text_model" and tokenizer.padding_side == "right"
        for tokenizer, encoder in pairs
    )
    return causal and any(_size(encoder) >= LARGE for _, encoder in pairs)


def read_prompts(pipe: DiffusionPipeline, prompts: Sequence[str], whole: int = 0) -> SampledFeatures:
    """Text features of prompts: of all positions, or of those that `samples_padding` asks for.

    whole: one prompt in so many, and at least one, is then read with all of its padding; 0: none is.
    """
    (found,) = read_each(pipe, [prompts], whole)
    return found


def read_each(
    pipe: DiffusionPipeline, lists: Sequence[Sequence[str]], whole: int = 0
) -> list[SampledFeatures]:
    """The same of several lists of prompts; where padding is sampled they go through the encoder together."""
    if not samples_padding(pipe):
        return [_all(encode(pipe, prompts)) for prompts in lists]
    ids = [token_ids(pipe, prompts) for prompts in lists]
    role = [roles(pipe, each) for each in ids]
    counts = [_counts(each == PADDING, whole) for each in role]
    lengths = torch.cat([(each > 0).sum(dim=1) for each in counts])
    hidden = _encoded(pipe, [text for prompts in lists for text in prompts], lengths, ids[0].shape[1])
    parts = hidden.split([len(each) for each in ids])
    return [
        SampledFeatures(
            torch.where((count > 0).unsqueeze(2), features, 0.0),
            each,
            torch.where(count > 0, at, UNREAD),
            count,
        )
        for features, each, at, count in zip(parts, ids, role, counts, strict=True)
    ]


def _all(features: TextFeatures) -> SampledFeatures:
    read = (features.roles != UNREAD).float()
    return SampledFeatures(features.hidden, features.ids, features.roles, read)


def _counts(padding: Tensor, whole: int) -> Tensor:
    """How many positions each one stands for, (n, T), from where padding is."""
    n = len(padding)
    chosen = torch.zeros(n, 1, dtype=torch.bool)
    if whole:
        chosen[min(whole, n) // 2 :: whole] = True
    near = padding & ~chosen & (padding.cumsum(dim=1) <= NEAR)
    every = padding & chosen
    far = (padding.sum(dim=1, keepdim=True) - near.sum(dim=1, keepdim=True)) * ~chosen  # (n, 1) not read
    share = NEAR_SHARE if every.any() else 1.0
    counts = (~padding | every | near).float()
    counts += near * share * far / near.sum(dim=1, keepdim=True).clamp(min=1)
    return counts + every * (1 - share) * far.sum() / every.sum().clamp(min=1)


def _encoded(pipe: DiffusionPipeline, prompts: Sequence[str], lengths: Tensor, most: int) -> Tensor:
    """Features (n, most, d) of prompts, each right at least up to its own of lengths (n,); like with like."""
    order = lengths.argsort(stable=True)
    parts = []
    for picks in _batches(order, lengths):
        longest = int(lengths[picks].max())
        with _longest(pipe, longest):
            hidden = site_features(pipe, [prompts[k] for k in picks.tolist()])
        room = hidden.new_zeros(len(hidden), most - hidden.shape[1], hidden.shape[2])
        parts.append(torch.cat([hidden, room], dim=1))
    return torch.cat(parts)[order.argsort()]


def _batches(order: Tensor, lengths: Tensor) -> list[Tensor]:
    """`order` in batches of prompts of one length; a small one takes in others up to 1.5 times as long."""
    batches: list[list[int]] = []
    for k in order.tolist():
        shortest = lengths[batches[-1][0]] if batches else 0
        full = not batches or len(batches[-1]) == BATCH
        if full or lengths[k] > (shortest if len(batches[-1]) >= SMALL else MIXED * shortest):
            batches.append([])
        batches[-1].append(k)
    return [torch.tensor(batch) for batch in batches]


@contextmanager
def _longest(pipe: DiffusionPipeline, length: int) -> Iterator[None]:
    """Let the tokenizers fill prompts up to so many positions only."""
    before: list[tuple[Any, int]] = [
        (tokenizer, tokenizer.model_max_length) for tokenizer, _ in encoders(pipe)
    ]
    try:
        for tokenizer, most in before:
            tokenizer.model_max_length = min(length, most)
        yield
    finally:
        for tokenizer, most in before:
            tokenizer.model_max_length = most


def _size(encoder: Any) -> int:
    """Parameters beside the token table."""
    table = encoder.get_input_embeddings().weight
    return sum(p.numel() for p in encoder.parameters() if p.data_ptr() != table.data_ptr())
