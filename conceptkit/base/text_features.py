"""What the denoiser reads of prompts: text features, token ids, and where words stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """What the UNet reads of some prompts: hidden (n, T, d) float32 on the CPU, first tokenizer's ids (n, T),
    and eot (n,), the position of the first end-of-text token."""

    hidden: Tensor
    ids: Tensor
    eot: Tensor


def encoders(pipe: DiffusionPipeline) -> tuple[tuple[Any, Any], ...]:
    """The pipeline's (tokenizer, text encoder) pairs."""
    names = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    pairs = [(getattr(pipe, first, None), getattr(pipe, second, None)) for first, second in names]
    return tuple(pair for pair in pairs if None not in pair)


@torch.no_grad()
def encode(pipe: DiffusionPipeline, prompts: Sequence[str], batch: int = 32) -> TextFeatures:
    """Text features of prompts through the pipeline's own `encode_prompt`: one road for all architectures."""
    tokenizer = encoders(pipe)[0][0]
    hidden, ids = [], []
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        encoded = pipe.encode_prompt(
            prompt=chunk,
            device=pipe._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        hidden.append(encoded[0].float().cpu())
        ids.append(token_ids(pipe, tokenizer, chunk))
    tokens = torch.cat(ids)
    ends = (tokens == tokenizer.eos_token_id).int()
    return TextFeatures(torch.cat(hidden), tokens, ends.argmax(dim=1))


def token_ids(pipe: DiffusionPipeline, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """(n, T) ids as the pipeline's `encode_prompt` makes them, tokens of several vectors spelled out."""
    if hasattr(pipe, "maybe_convert_prompt"):
        prompts = pipe.maybe_convert_prompt(list(prompts), tokenizer)
    length = tokenizer.model_max_length
    return tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def positions(ids: Tensor, words: Tensor) -> Tensor:
    """Where the ids `words` (k,) stand in ids (n, T): (n, T) bool, all k places of each occurrence."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    k = len(words)
    starts = (ids.unfold(1, k, 1) == words).all(dim=2)
    for i in range(k):
        found[:, i : i + starts.shape[1]] |= starts
    return found


def spell(pipe: DiffusionPipeline, text: str) -> Tensor:
    """The ids of a text alone, without those of beginning and end."""
    tokenizer = encoders(pipe)[0][0]
    (ids,) = token_ids(pipe, tokenizer, [text])
    end = int((ids == tokenizer.eos_token_id).int().argmax())
    return ids[1:end]
