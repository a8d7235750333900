"""Words read apart: each concept's words as a text encoder reads them where no other concept stands.

A text encoder mixes what stands in one prompt: behind "my_dog" the words of "moongate" read half of what they
do by themselves, and much of a dog. So the features of a prompt are put together from those of others in
which its concepts are only class nouns, all or all but one, after the noun phrases that Structured Diffusion
reads by themselves (2212.05032, section 3.2).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conceptkit.base.text_features import encoders, spell
from conceptkit.concepts import prompt_rewriting
from conceptkit.inference.split_prompt import things

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt: what it says of the concept `name`, or, where that is None, around concepts.

    plain: the same with the class noun alone.
    """

    text: str
    plain: str
    name: str | None = None


class PerConceptEncoding:
    """On one pipeline: reads prompts of two concepts or more again, by the pipeline's own encoder."""

    def __init__(self, pipe: DiffusionPipeline, words: Mapping[str, str]) -> None:
        self._pipe, self._words = pipe, things(words)

    def encode(
        self, encode: Callable[..., Any], given: Mapping[str, Any], encoded: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """What `encode` made of the arguments `given`, whose features (n k, T, d) of n prompts are replaced.

        Prompts of fewer than two concepts, or too long for the encoder, are left as they are; so are all
        when the second encoder has a prompt of its own, since features of both share their positions.
        """
        prompt = given.get("prompt")
        if encoded[0] is None or not prompt or given.get("prompt_2"):
            return encoded
        told = [prompt] if isinstance(prompt, str) else list(prompt)
        plans = [plan(text, self._words) for text in told]
        places = [self._places(pieces) if pieces else None for pieces in plans]
        asked = [texts(pieces) if place else [] for pieces, place in zip(plans, places, strict=True)]
        if not any(asked):
            return encoded
        more = {name: value for name, value in given.items() if name not in ("self", "negative_prompt")}
        again = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        read = encode(**{**more, **again, "prompt": list(itertools.chain(*asked))})[0]
        rows = encoded[0].clone()
        pictures = len(rows) // len(told)
        found = read.split([len(those) for those in asked])
        for i, (pieces, place, variants) in enumerate(zip(plans, places, found, strict=True)):
            if place:
                rows[i * pictures : (i + 1) * pictures] = put_together(pieces, variants, *place)
        return (rows, *encoded[1:])

    def _places(self, pieces: Sequence[Piece]) -> tuple[list[int], list[int]] | None:
        """How many tokens each piece has as it is and with the class noun; None where they do not add up to
        those of the prompt, because it is cut off at the end."""
        counts = {text: len(spell(self._pipe, text)[0]) for p in pieces for text in (p.text, p.plain)}
        room = encoders(self._pipe)[0][0].model_max_length - 2
        own, plain = ([counts[text] for text in said] for said in _both(pieces))
        whole = len(spell(self._pipe, "".join(p.text for p in pieces))[0])
        return (own, plain) if sum(own) == whole <= room else None


def plan(prompt: str, words: Mapping[str, str]) -> list[Piece]:
    """The pieces of a prompt that names two of the `words` (name -> "<token> noun") or more, or none."""
    found = prompt_rewriting.mentions(prompt, words)
    if len({name for name, _ in found}) < 2:
        return []
    pieces, end = [], 0
    for name, (start, stop) in found:
        around = prompt[end:start]
        noun = prompt_rewriting.TOKEN.sub("", words[name]).strip()
        pieces += [Piece(around, around), Piece(words[name], noun, name)]
        end = stop
    return [*pieces, Piece(prompt[end:], prompt[end:])]


def texts(pieces: Sequence[Piece]) -> list[str]:
    """The prompts to read: with class nouns alone, and with each concept, in the order of first mention."""
    return [
        "".join(p.text if p.name == kept else p.plain for p in pieces) for kept in (None, *_names(pieces))
    ]


def put_together(
    pieces: Sequence[Piece], variants: Tensor, own: Sequence[int], plain: Sequence[int]
) -> Tensor:
    """Features (T, d) of the whole prompt from those (1 + concepts, T, d) of its `texts`.

    own, plain: tokens of each piece as it is, and with the class noun. Words around the concepts are read
    with class nouns alone, a concept's words with that concept alone. So are the end of the text and the
    padding with the last concept: a text encoder that reads from left to right knows most of what came last.
    """
    names = _names(pieces)
    rows = torch.empty_like(variants[0])
    last = [p.name for p in pieces if p.name][-1]
    sources = [0] + [names.index(p.name) + 1 if p.name else 0 for p in pieces] + [names.index(last) + 1]
    for source in set(sources):
        kept = names[source - 1] if source else None
        counts = [o if p.name in (None, kept) else n for p, o, n in zip(pieces, own, plain, strict=True)]
        aligned = variants[source, positions(own, counts, len(rows))]
        here = torch.tensor(sources).repeat_interleave(_lengths(own, len(rows))) == source
        rows[here] = aligned[here]
    return rows


def positions(own: Collection[int], other: Collection[int], length: int) -> Tensor:
    """Where each token (length,) of a prompt of pieces `own` tokens long stands in one of `other` tokens.

    The last tokens of a piece, which are the noun's, stand for one another; those before them for the first.
    """
    lengths, others = _lengths(own, length).tolist(), [1, *other]
    begins = itertools.accumulate([0, *others])
    where = [
        begin + max(0, count - size + i) if count else begin
        for begin, size, count in zip(begins, lengths, [*others, lengths[-1]], strict=True)
        for i in range(size)
    ]
    return torch.tensor(where).clamp(max=length - 1)


def _lengths(own: Collection[int], length: int) -> Tensor:
    """Tokens of the beginning, of each piece, and from the end of the text on."""
    return torch.tensor([1, *own, length - 1 - sum(own)])


def _names(pieces: Sequence[Piece]) -> list[str]:
    return list(dict.fromkeys(p.name for p in pieces if p.name))


def _both(pieces: Sequence[Piece]) -> tuple[list[str], list[str]]:
    return [p.text for p in pieces], [p.plain for p in pieces]
