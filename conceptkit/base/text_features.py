"""What the denoiser reads of prompts: text features, token ids, and where words stand in them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conceptkit.base.architectures import Segment, architecture_of
from conceptkit.base.architectures.architecture import stacked

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


WORD, BEGIN, END, PADDING, UNREAD = range(5)
"""What stands at a position: a word; the beginning of a text; its end; what fills up the room behind it; what
nothing reads."""
EMPTY, TEMPLATE = -1, -2
"""The ids at positions that no tokenizer spells, and before a prompt in its template."""
APART = 1 << 24
"""Between the ids of one tokenizer and those of the next, in one table."""
Spelling = tuple[Tensor, ...]
"""The ids of a text alone, (k,) by each tokenizer that the features are spelt by."""


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """What the text site reads of some prompts: hidden (n, T, d) float32 on the CPU, ids (n, T), see
    `token_ids`, and roles (n, T): WORD, BEGIN, END, PADDING or UNREAD, where the features are 0."""

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


def depth(config: PretrainedConfig) -> int:
    """How many layers a text encoder has, by its configuration; ChatGLM has another name for them."""
    name = "num_layers" if config.model_type == "chatglm" else "num_hidden_layers"
    return int(getattr(config, name))


@torch.no_grad()
def encode(pipe: DiffusionPipeline, prompts: Sequence[str], batch: int = 32) -> TextFeatures:
    """Text features of prompts as the text site reads them: one road for all architectures."""
    hidden, ids = [], []
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        hidden.append(site_features(pipe, chunk))
        ids.append(token_ids(pipe, chunk))
    tokens = stacked(ids, EMPTY)
    role, features = roles(pipe, tokens), stacked(hidden)
    if (role == UNREAD).any():
        features = features * (role != UNREAD).unsqueeze(2)
    return TextFeatures(features, tokens, role)


@torch.no_grad()
def site_features(pipe: DiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """(n, T, d) float32 on the CPU: what the text site reads of prompts that go through the encoder at once,
    also at positions that nothing reads."""
    kind = architecture_of(pipe)
    converts = hasattr(pipe, "maybe_convert_prompt")
    said = list(prompts) if converts else spelt_out(pipe, encoders(pipe)[0][0], prompts)
    return kind.site_features(getattr(pipe, kind.denoiser), kind.encode(pipe, said)).float().cpu()


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
    told = spelt_out(pipe, segment.tokenizer, prompts)
    if architecture_of(pipe).lower_case:
        told = [text.lower().strip() for text in told]
    ids: Tensor = segment.tokenizer(
        [f"{segment.before}{text}{segment.after}" for text in told],
        padding=True if segment.trimmed else "max_length",
        max_length=segment.length + segment.skipped,
        truncation=True,
        return_tensors="pt",
    ).input_ids[:, segment.skipped :]
    begin, _ = _template(segment)
    ids[:, :begin] = TEMPLATE
    return ids


def _template(segment: Segment) -> tuple[int, int]:
    """Positions before a prompt's words, as far as they are features, and after them."""
    if not (segment.before or segment.after):
        return 0, 0
    tokenizer = segment.tokenizer
    # A space before a word belongs to the word.
    first, last = (
        len(tokenizer(text, add_special_tokens=False).input_ids) if text else 0
        for text in (segment.before.rstrip(" "), segment.after)
    )
    return first + (_begin(tokenizer) != EMPTY) - segment.skipped, last


def spelt_out(
    pipe: DiffusionPipeline, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> list[str]:
    """Prompts in which tokens of several vectors have all of them, as "<x> <x>_1".

    By the pipeline's own rule, or where it has none by the same one.
    """
    if hasattr(pipe, "maybe_convert_prompt"):
        return list(pipe.maybe_convert_prompt(list(prompts), tokenizer))
    added = tokenizer.get_added_vocab()
    several = [token for token in added if f"{token}_1" in added]
    found = []
    for text in prompts:
        for token in several:
            count = next(k for k in itertools.count(1) if f"{token}_{k}" not in added)
            whole = " ".join([token, *(f"{token}_{k}" for k in range(1, count))])
            alone = rf"{re.escape(token)}(?!_\d| {re.escape(token)}_1)"
            text = whole.join(re.split(alone, text))
        found.append(text)
    return found


def roles(pipe: DiffusionPipeline, ids: Tensor) -> Tensor:
    """(n, T) what stands where, for ids (n, T) of `token_ids`."""
    found, start = [], 0
    segments = architecture_of(pipe).segments(pipe)
    for number, segment in enumerate(segments):
        whole = ids.shape[1] if segment.trimmed else segment.length
        own = ids[:, start : start + whole] - number * APART
        start += whole
        found.append(_roles(segment, own))
    return torch.cat(found, dim=1)


def _roles(segment: Segment, ids: Tensor) -> Tensor:
    """Of one segment's own ids (n, length)."""
    behind = UNREAD if segment.masked or segment.trimmed else PADDING
    role = torch.full_like(ids, PADDING)
    if (tokenizer := segment.tokenizer) is None:
        return role
    place = torch.arange(ids.shape[1]).expand_as(ids)
    if segment.left:
        count = (ids == tokenizer.pad_token_id).int().cumprod(dim=1).sum(dim=1, keepdim=True)
        begin = len(tokenizer("").input_ids)
        return torch.where(place < count, PADDING, torch.where(place < count + begin, BEGIN, WORD))
    if segment.before or segment.after:
        begin, last = _template(segment)
        filled = (ids == tokenizer.pad_token_id) | (ids == EMPTY)
        # A template's own end may look like padding: what fills up is the last run of it.
        count = ids.shape[1] - filled.flip(1).int().cumprod(dim=1).sum(dim=1, keepdim=True)
        role = torch.where(place < begin, BEGIN, torch.where(place < count - last, WORD, END))
        return torch.where(place >= count, behind, role)
    ends = _ends(tokenizer, ids).unsqueeze(1)
    role = torch.where(place < ends, WORD, torch.where(place == ends, END, behind))
    role[:, 0] = torch.where(ids[:, 0] == _begin(tokenizer), BEGIN, role[:, 0])
    return role


def _ends(tokenizer: Any, ids: Tensor) -> Tensor:
    """(n,): where the text ends: at the first end-of-text token, or else at the first that only fills up."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    marks = torch.zeros_like(ids, dtype=torch.bool) if end is None else ids == end
    if tokenizer.pad_token_id is not None:
        marks = torch.where(marks.any(dim=1, keepdim=True), marks, ids == tokenizer.pad_token_id)
    return torch.where(marks.any(dim=1), marks.int().argmax(dim=1), ids.shape[1])


def _begin(tokenizer: Any) -> int:
    """The id that a tokenizer puts before all texts; EMPTY where it puts none."""
    empty = tokenizer("").input_ids
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    return int(begin) if begin is not None and empty and empty[0] == begin else EMPTY


def has_beginning(pipe: DiffusionPipeline) -> bool:
    """Whether the first position of the features is the same for all prompts."""
    return bool(roles(pipe, token_ids(pipe, [""]))[0, 0] == BEGIN)


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
    """The ids of a text alone, without those of beginning and end, as `token_ids` has them.

    Where a tokenizer reads a word differently behind a space, both ways.
    """
    segments = architecture_of(pipe).segments(pipe)
    if any(segment.trimmed or segment.before for segment in segments):
        return tuple(
            number * APART + ids
            for number, segment in enumerate(segments)
            for ids in _both_ways(pipe, segment.tokenizer, text)
        )
    (ids,) = token_ids(pipe, [text])
    role = roles(pipe, ids.unsqueeze(0))[0]
    lengths = [segment.length for segment in segments]
    parts = zip(ids.split(lengths), role.split(lengths), strict=True)
    return tuple(own[at == WORD] for own, at in parts)


def _both_ways(pipe: DiffusionPipeline, tokenizer: Any, text: str) -> list[Tensor]:
    if tokenizer is None:
        return []
    (whole,) = spelt_out(pipe, tokenizer, [text])
    alone, behind = (tokenizer(part, add_special_tokens=False).input_ids for part in (whole, f" {whole}"))
    same = behind[len(behind) - len(alone) :] == alone  # a space beside a new token is a token of its own
    return [torch.tensor(ids) for ids in ([alone] if same else [alone, behind])]
