"""Rare tokens of a vocabulary: words that mean next to nothing to a base, for DreamBooth to give a meaning.

A byte-pair vocabulary is in the order in which its pairs were merged, the commonest first, so that the place
of a token in it tells how rare it is. DreamBooth (2208.12242, section 3.2) takes tokens of at most three
characters without spaces; made-up strings will not do, for they fall into letters with strong meanings.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conceptkit.base.text_features import encoders
from conceptkit.errors import BadRecipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


LONGEST = 3
RAREST = 0.25
"""An identifier is taken from this share of the candidates."""


@dataclass(frozen=True)
class Candidate:
    """text: as it is written in a prompt. ids: one per text encoder.

    rarity: the share of the vocabulary that is commoner, 0 to 1. seen: how often the base's captions have it.
    """

    text: str
    ids: tuple[int, ...]
    rarity: float
    seen: int


def candidates(pipe: DiffusionPipeline, captions: Sequence[str], longest: int = LONGEST) -> list[Candidate]:
    """Whole words of at most `longest` letters that are one token in every tokenizer, the rarest first."""
    tokenizers = [tokenizer for tokenizer, _ in encoders(pipe)]
    first = tokenizers[0]
    pieces = any(entry.startswith("##") for entry in first.get_vocab())
    counts = Counter(word for text in captions for word in text.lower().split())
    found = []
    for entry, number in first.get_vocab().items():
        if not _whole_word(entry, pieces) or number in first.all_special_ids:
            continue
        text = first.decode([number]).strip()
        if not (0 < len(text) <= longest and text.isalpha() and text == text.lower()):
            continue
        ids = tuple(_one(tokenizer, text) for tokenizer in tokenizers)
        if None not in ids and ids[0] == number:
            rarity = number / max(1, first.vocab_size - 1)
            found.append(Candidate(text, ids, rarity, counts[text]))  # type: ignore[arg-type]
    return sorted(found, key=lambda one: (one.seen, -one.rarity, one.text))


def choose(
    pipe: DiffusionPipeline, captions: Sequence[str], seed: int, count: int = 1, taken: Collection[str] = ()
) -> list[Candidate]:
    """`count` rare tokens, none of those `taken`, different ones for different seeds.

    Raises BadRecipe when there are too few.
    """
    unseen = [one for one in candidates(pipe, captions) if not one.seen and one.text not in taken]
    if len(unseen) < count:
        raise BadRecipe(
            f"The vocabulary has {len(unseen)} rare tokens of up to {LONGEST} letters, not {count}; "
            "begin the token at its noun instead (begin = noun)"
        )
    rarest = unseen[: max(count, round(RAREST * len(unseen)))]
    return random.Random(seed).sample(rarest, count)


def _whole_word(entry: str, pieces: bool) -> bool:
    """Whether an entry of a vocabulary is a word, and no part of one: CLIP marks where words end, unigram and
    byte-level vocabularies where they begin, and those of BERT's kind, `pieces`, what goes on."""
    if pieces:
        return not entry.startswith("##")
    return entry.endswith("</w>") or entry.startswith(("▁", "Ġ"))


def _one(tokenizer: Any, text: str) -> int | None:
    for written in (f" {text}", text):  # where the two differ, prompts have it behind a space
        ids = tokenizer(written, add_special_tokens=False).input_ids
        if len(ids) == 1:
            return int(ids[0])
    return None
