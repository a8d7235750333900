"""Words read apart: each concept's words as a text encoder reads them where no other concept stands.

A text encoder mixes what stands in one prompt: behind "my_dog" the words of "moongate" read half of what they
read by themselves, and half of a dog. So the features of a prompt are put together from those of others in
which its concepts are only class nouns, all or all but one, after the noun phrases that Structured Diffusion
reads by themselves (2212.05032, section 3.2).
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conceptkit import prompts
from conceptkit.base import encoders
from conceptkit.contexts import spell
from conceptkit.steering.clauses import clause_of_each, things


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt: what it says of the concept `name`, or, where that is None, around concepts.

    plain: the same with the class noun alone.
    """

    text: str
    plain: str
    name: str | None = None


class Apart:
    """On one pipeline: reads prompts of two concepts or more again, by the pipeline's own encoder."""

    def __init__(self, pipe: Any, words: Mapping[str, str]) -> None:
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
        plans = [self._fitting(plan(text, self._words)) for text in told]
        asked = [[*texts(pieces), *clauses(pieces)] if pieces else [] for pieces in plans]
        if not any(asked):
            return encoded
        more = {name: value for name, value in given.items() if name not in ("self", "negative_prompt")}
        again = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        read = encode(**{**more, **again, "prompt": list(itertools.chain(*asked))})[0]
        rows = encoded[0].clone()
        pictures = len(rows) // len(told)
        found = read.split([len(those) for those in asked])
        for i, (pieces, those, variants) in enumerate(zip(plans, asked, found, strict=True)):
            if pieces:
                ends = [1 + self._length(text) for text in those]
                sizes = [(self._length(p.text), self._length(p.plain)) for p in pieces]
                rows[i * pictures : (i + 1) * pictures] = put_together(pieces, variants, sizes, ends)
        return (rows, *encoded[1:])

    def _fitting(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces, or none where their tokens are not those of the prompt, because it is cut off."""
        room = encoders(self._pipe)[0][0].model_max_length - 2
        whole = self._length("".join(p.text for p in pieces))
        return pieces if sum(self._length(p.text) for p in pieces) == whole <= room else []

    def _length(self, text: str) -> int:
        return len(spell(self._pipe, text))


def plan(prompt: str, words: Mapping[str, str]) -> list[Piece]:
    """The pieces of a prompt that names two of the `words` (name -> "<token> noun") or more, or none."""
    found = prompts.mentions(prompt, words)
    if len({name for name, _ in found}) < 2:
        return []
    pieces, end = [], 0
    for name, (start, stop) in found:
        around = prompt[end:start]
        noun = prompts.TOKEN.sub("", words[name]).strip()
        pieces += [Piece(around, around), Piece(words[name], noun, name)]
        end = stop
    return [*pieces, Piece(prompt[end:], prompt[end:])]


def texts(pieces: Sequence[Piece]) -> list[str]:
    """The prompts to read: with class nouns alone, and with each concept, in the order of first mention."""
    kept = (None, *_names(pieces))
    return ["".join(p.text if p.name == name else p.plain for p in pieces) for name in kept]


def clauses(pieces: Sequence[Piece]) -> tuple[str, str]:
    """What the prompt says of its last concept, with the concept and with the class noun."""
    of = {p.text: p.plain for p in pieces if p.name}
    last = _last(pieces)
    prompt = "".join(p.text for p in pieces)
    own = clause_of_each(prompt, {p.name: p.text for p in pieces if p.name})[last]
    plain = own
    for text, noun in of.items():
        plain = plain.replace(text, noun)
    return own, plain


def put_together(
    pieces: Sequence[Piece], variants: Tensor, sizes: Sequence[tuple[int, int]], ends: Sequence[int]
) -> Tensor:
    """Features (T, d) of the whole prompt from those (n, T, d) of its `texts` and its `clauses`.

    sizes: tokens of each piece as it is and with the class noun. ends: where each of the n texts ends. Words
    around the concepts are read with class nouns alone, a concept's words with that concept alone. The end of
    the text and the padding are those of the last concept, as a text encoder that reads from left to right
    knows most of what came last: the mean of its end in the prompt, and of what it changes by itself.
    """
    names = _names(pieces)
    own = [size for size, _ in sizes]
    rows = torch.empty_like(variants[0])
    sources = [0] + [names.index(p.name) + 1 if p.name else 0 for p in pieces]
    source_of = torch.tensor(sources).repeat_interleave(torch.tensor([1, *own]))
    for source in set(sources):
        kept = names[source - 1] if source else None
        counts = [o if p.name == kept else n for p, (o, n) in zip(pieces, sizes, strict=True)]
        here = (source_of == source).nonzero().flatten()
        rows[here] = variants[source, positions(own, counts)[here]]
    rest = len(rows) - len(source_of)
    plain, in_place, alone, noun = (
        torch.cat([variants[k, ends[k] :], variants[k, -1:].expand(ends[k], -1)])[:rest]
        for k in (0, names.index(_last(pieces)) + 1, -2, -1)
    )
    rows[len(source_of) :] = (in_place + plain + alone - noun) / 2
    return rows


def positions(own: Collection[int], other: Collection[int]) -> Tensor:
    """Where each token of a prompt of pieces `own` tokens long, up to its end, stands in one of `other`.

    The last tokens of a piece, which are the noun's, stand for one another; those before them for the first.
    """
    begins = itertools.accumulate([1, *other])
    where = [
        begin + max(0, count - size + i)
        for begin, size, count in zip(begins, own, other, strict=False)
        for i in range(size)
    ]
    return torch.tensor([0, *where])


def _names(pieces: Sequence[Piece]) -> list[str]:
    return list(dict.fromkeys(p.name for p in pieces if p.name))


def _last(pieces: Sequence[Piece]) -> str:
    return [p.name for p in pieces if p.name][-1]
