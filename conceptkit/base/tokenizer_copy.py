"""A tokenizer's twin, which learns tokens that the tokenizer does not.

A vocabulary has tens of thousands of entries, and copying it takes most of a second. It is never written to,
so the twin reads the tokenizer's own; what adding tokens changes, it has for itself.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGE = 1000
"""Lists and mappings with more entries hold a vocabulary, and are shared."""
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def twin_of(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that reads as this one does; tokens added to either are not known to the other."""
    backend = getattr(tokenizer, "_tokenizer", None)
    kept: dict[int, Any] = {}
    if type(backend) is Tokenizer and (twin := _backend_twin(backend)) is not None:
        kept = {id(backend): twin} | {id(entries): entries for entries in _large(vars(tokenizer))}
    wider: Any = copy.deepcopy(tokenizer, kept)
    # CLIP's tokenizer patches the decoding of its own instance, which a copy loses.
    getattr(wider, "_wrap_decode_method_backend_tokenizer", lambda: None)()
    twin_tokenizer: PreTrainedTokenizerBase = wider
    return twin_tokenizer


def knows(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether a token has an id of its own."""
    backend = getattr(tokenizer, "_tokenizer", None)
    if isinstance(backend, Tokenizer):
        return backend.token_to_id(token) is not None
    return token in tokenizer.get_vocab()


def _backend_twin(backend: Tokenizer) -> Tokenizer | None:
    """A tokenizer over the same vocabulary; None where its added tokens would get other ids."""
    twin = Tokenizer(backend.model)
    for part in PARTS:
        if (value := getattr(backend, part)) is not None:
            setattr(twin, part, value)
    if backend.truncation is not None:
        twin.enable_truncation(**backend.truncation)
    if backend.padding is not None:
        twin.enable_padding(**backend.padding)
    twin.encode_special_tokens = backend.encode_special_tokens
    added = backend.get_added_tokens_decoder()
    for _, token in sorted(added.items()):
        (twin.add_special_tokens if token.special else twin.add_tokens)([token])
    return twin if twin.get_added_tokens_decoder() == added else None


def _large(held: Any) -> list[Any]:
    """The large lists and mappings in nested ones."""
    if not isinstance(held, dict | list | tuple):
        return []
    if len(held) > LARGE:
        return [held]
    inside = held.values() if isinstance(held, dict) else held
    return [entries for value in inside for entries in _large(value)]
