"""What the denoiser reads of prompts: text features, token ids, and where words stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conceptkit.base.architectures import Segment, architecture_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


WORD, BEGIN, END, PADDING = range(4)
"""What stands at a position: a word; the beginning of a text; its end; what fills up the room behind it."""
EMPTY = -1
"""The id at positions that no tokenizer spells."""
APART = 1 << 24
"""Between the ids of one tokenizer and those of the next, in one table."""
Spelling = tuple[Tensor, ...]
"""The ids of a text alone, (k,) by each tokenizer that the features are spelt by."""


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """What the text site reads of some prompts: hidden (n, T, d) float32 on the CPU, ids (n, T), see
    `token_ids`, and roles (n, T): WORD, BEGIN, END or PADDING."""

    hidden: Tensor
    ids: Tensor
    roles: Tensor


def encoders(pipe: DiffusionPipeline) -> tuple[tuple[Any, Any], ...]:
    """The pipeline's (tokenizer, text encoder) pairs."""
    pairs = [
        (getattr(pipe, f"tokenizer{number}", None), getattr(pipe, f"text_encoder{number}", None))
        for number in ("", "_2", "_3")
    ]
    return tuple(pair for pair in pairs if None not in pair)


@torch.no_grad()
def encode(pipe: DiffusionPipeline, prompts: Sequence[str], batch: int = 32) -> TextFeatures:
    """Text features of prompts as the text site reads them: one road for all architectures."""
    kind = architecture_of(pipe)
    denoiser = getattr(pipe, kind.denoiser)
    hidden, ids = [], []
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        encoded = kind.encode(pipe, chunk).hidden
        hidden.append(kind.site_input(denoiser, encoded).float().cpu())
        ids.append(token_ids(pipe, chunk))
    tokens = torch.cat(ids)
    return TextFeatures(torch.cat(hidden), tokens, roles(pipe, tokens))


def token_ids(pipe: DiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """(n, T) ids as the pipeline's `encode_prompt` makes them, tokens of several vectors spelled out.

    Where several tokenizers spell one stretch after another, the ids of each are APART from those before.
    """
    parts = []
    for number, segment in enumerate(architecture_of(pipe).segments(pipe)):
        if segment.tokenizer is None:
            parts.append(torch.full((len(prompts), segment.length), EMPTY))
        else:
            parts.append(number * APART + _ids(pipe, segment, prompts))
    return torch.cat(parts, dim=1)


def _ids(pipe: DiffusionPipeline, segment: Segment, prompts: Sequence[str]) -> Tensor:
    told = list(prompts)
    if hasattr(pipe, "maybe_convert_prompt"):
        told = pipe.maybe_convert_prompt(told, segment.tokenizer)
    ids: Tensor = segment.tokenizer(
        told, padding="max_length", max_length=segment.length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def roles(pipe: DiffusionPipeline, ids: Tensor) -> Tensor:
    """(n, T) what stands where, for ids (n, T) of `token_ids`."""
    found, start = [], 0
    for number, segment in enumerate(architecture_of(pipe).segments(pipe)):
        own = ids[:, start : start + segment.length] - number * APART
        start += segment.length
        role = torch.full_like(own, PADDING)
        if segment.tokenizer is not None:
            tokenizer = segment.tokenizer
            ends = _ends(tokenizer, own).unsqueeze(1)
            place = torch.arange(segment.length).expand_as(own)
            role = torch.where(place < ends, WORD, torch.where(place == ends, END, PADDING))
            role[:, 0] = torch.where(own[:, 0] == _begin(tokenizer), BEGIN, role[:, 0])
        found.append(role)
    return torch.cat(found, dim=1)


def _ends(tokenizer: Any, ids: Tensor) -> Tensor:
    """(n,): where the text ends: at the first end-of-text token, or else at the first that only fills up."""
    marks = ids == tokenizer.eos_token_id
    if tokenizer.pad_token_id is not None:
        marks = torch.where(marks.any(dim=1, keepdim=True), marks, ids == tokenizer.pad_token_id)
    return torch.where(marks.any(dim=1), marks.int().argmax(dim=1), ids.shape[1])


def _begin(tokenizer: Any) -> int:
    """The id that a tokenizer puts before all texts; EMPTY where it puts none."""
    empty = tokenizer("").input_ids
    begin = tokenizer.bos_token_id
    return int(begin) if begin is not None and empty and empty[0] == begin else EMPTY


def positions(ids: Tensor, words: Spelling) -> Tensor:
    """Where a spelling stands in ids (n, T): (n, T) bool, all places of each occurrence, by any tokenizer."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for word in words:
        k = len(word)
        if not k:
            continue
        starts = (ids.unfold(1, k, 1) == word).all(dim=2)
        for i in range(k):
            found[:, i : i + starts.shape[1]] |= starts
    return found


def spell(pipe: DiffusionPipeline, text: str) -> Spelling:
    """The ids of a text alone, without those of beginning and end, as `token_ids` has them."""
    (ids,) = token_ids(pipe, [text])
    role = roles(pipe, ids.unsqueeze(0))[0]
    lengths = [segment.length for segment in architecture_of(pipe).segments(pipe)]
    parts = zip(ids.split(lengths), role.split(lengths), strict=True)
    return tuple(own[at == WORD] for own, at in parts)
