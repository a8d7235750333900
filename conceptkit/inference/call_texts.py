"""Which arguments of a denoiser's call are text: what `encode_prompt` gave is found again by its numbers.

Families differ in what they call their features, pooled features and masks, and in which of them there are.
Each tensor that was encoded of a prompt stands somewhere in the call, row by row, as it was or cast; in the
same place stands that of another prompt where the call is to read that one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conceptkit.base.architectures.architecture import Batch
from conceptkit.errors import ConceptError
from conceptkit.inference.token_owners import ROUNDED

if TYPE_CHECKING:
    from conceptkit.base.architectures import Architecture

Rows = Mapping[int, int]
"""Row of a batch -> the picture whose prompt it reads."""
CACHED = 4
"""Batches of features whose rows are known; both halves of guidance may have one each."""


class Unreadable(ConceptError):
    """A call of the denoiser in which the prompt is not found again."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """What one call of `encode_prompt` gave: of the prompts of P pictures, and of others in their place."""

    plain: tuple[Any, ...]
    variants: dict[Hashable, tuple[Any, ...]] = field(default_factory=dict)


class CallTexts:
    """The texts of one drawing of so many pictures of so many prompts.

    hidden: the features of the prompt of each picture, (P, T, d) or a list of (T, d).
    """

    def __init__(self, architecture: Architecture, prompts: int, pictures: int) -> None:
        self._architecture, self._prompts, self._pictures = architecture, prompts, pictures
        self._encoded: list[Encoded] = []
        self.hidden: Any = None
        self._known: deque[tuple[Any, Rows]] = deque(maxlen=CACHED)

    def note(self, encoded: Sequence[Any], variants: Mapping[Any, Sequence[Any]]) -> None:
        """What `encode_prompt` gave of the prompts, and of each of their variants."""
        kind = self._architecture
        kept = {key: self._expanded(kind.in_calls(given)) for key, given in variants.items()}
        self._encoded.append(Encoded(self._expanded(kind.in_calls(encoded)), kept))
        hidden = kind.halves(encoded)[0]
        if hidden is not None:
            (self.hidden,) = self._expanded([hidden])

    def rows(self, hidden: Batch) -> Rows:
        """Which rows of a call that reads `hidden`, (B, T, d) or a list of (T, d), read which prompt."""
        for known, rows in self._known:
            if known is hidden or (isinstance(known, list) and _all_are(known, hidden)):
                return rows
        found = {
            b: b % self._pictures
            for b, row in enumerate(hidden)
            if _same(row, self.hidden[b % self._pictures])
        }
        self._known.append((hidden, found))
        return found

    def reworded(self, arguments: Mapping[str, Any], rows: Rows, key: Hashable) -> dict[str, Any]:
        """The arguments of a call whose rows read the variant `key`.

        Raises Unreadable where a tensor of the prompt is nowhere, or other rows want another length.
        """
        changed = dict(arguments)
        for encoded in self._encoded:
            variant = encoded.variants[key]
            for before, after in zip(encoded.plain, variant, strict=True):
                if _told(before) and _told(after) and not _equal(before, after):
                    for name in _places(arguments, before, rows):
                        changed[name] = _put(arguments[name], before, after, rows)
            if len(rows) == len(next(iter(arguments.values()))):
                changed = self._architecture.reworded(changed, variant)
        return changed

    def _expanded(self, encoded: Sequence[Any]) -> tuple[Any, ...]:
        """Lists of a row for each prompt with one for each picture, as pipelines repeat them later."""
        each = self._pictures // self._prompts
        return tuple(
            [row for row in part for _ in range(each)]
            if isinstance(part, list) and len(part) == self._prompts
            else part
            for part in encoded
        )


def rows_of(arguments: Mapping[str, Any], rows: Sequence[int], count: int) -> dict[str, Any]:
    """The arguments of a call for these rows of its batch of `count`."""
    return {name: _taken(value, rows, count) for name, value in arguments.items()}


def _taken(value: Any, rows: Sequence[int], count: int) -> Any:
    if isinstance(value, Tensor) and value.ndim and len(value) == count:
        return value[list(rows)]
    if isinstance(value, list) and len(value) == count:
        return [value[b] for b in rows]
    if isinstance(value, dict):
        return {name: _taken(part, rows, count) for name, part in value.items()}
    return value


def _told(part: Any) -> bool:
    """Whether a part of what was encoded is features or a mask."""
    if isinstance(part, list):
        return bool(part) and all(isinstance(row, Tensor) for row in part)
    return isinstance(part, Tensor) and part.ndim > 1


def _all_are(known: Sequence[Any], given: Any) -> bool:
    return len(known) == len(given) and all(a is b for a, b in zip(known, given, strict=True))


def _equal(before: Any, after: Any) -> bool:
    if len(before) != len(after):
        return False
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _same(row: Tensor, known: Tensor) -> bool:
    """Whether a row (T, ...) of a call is a known one, but for the rounding of a cast."""
    if row.shape != known.shape:
        return False
    known = known.to(row)
    if torch.equal(row, known):
        return True
    return row.is_floating_point() and float((row - known).norm()) <= ROUNDED * float(row.norm())


def _places(arguments: Mapping[str, Any], before: Any, rows: Rows) -> list[str]:
    """The arguments whose rows are those of `before`; if there is none, those whose rows begin so."""

    def holds(value: Any, begin: bool) -> bool:
        if not _told(value) or isinstance(value, list) != isinstance(before, list) or max(rows) >= len(value):
            return False
        cut = [
            (value[b][: len(before[p])] if begin else value[b], before[p])
            for b, p in rows.items()
            if p < len(before)
        ]
        return len(cut) == len(rows) and all(_same(row, known) for row, known in cut)

    for begin in (False, True):
        found = [name for name, value in arguments.items() if holds(value, begin)]
        if found:
            return found
    raise Unreadable("What the prompt was encoded to does not stand in the denoiser's call")


def _put(value: Any, before: Any, after: Any, rows: Rows) -> Any:
    """An argument that begins with `before` in its rows, with their pictures' rows of `after` there."""
    if isinstance(value, list):
        return [after[rows[b]].to(row) if b in rows else row for b, row in enumerate(value)]
    cut = before.shape[1]
    fresh = {b: torch.cat([after[p].to(value), value[b, cut:]]) for b, p in rows.items()}
    if after.shape[1] != cut and len(rows) < len(value):
        raise Unreadable("Prompts of several lengths do not go in one batch of the denoiser")
    return torch.stack([fresh.get(b, row) for b, row in enumerate(value)])
