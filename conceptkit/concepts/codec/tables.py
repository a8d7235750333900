"""Tables of frequencies for a range coder: how likely each magnitude is, in eighths of an octave.

A table is written as [length] [levels], or, where magnitudes fall off like a Laplacian or a Gaussian, as
[FALLING] [power] [rate, two bytes] [length]. It is read by whole numbers and multiplications alone, so that
no machine's logarithm decides what is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import constriction
import numpy as np

FALLING = 255
"""Where a length stands: what follows says how fast the levels grow."""
_RATE = struct.Struct("<BBHB")
_EXPLICIT = 8
"""Levels up to which a table is always written out."""
_EIGHTHS = np.array(
    [
        1.0,
        0.9170040432046712,
        0.8408964152537145,
        0.7711054127039704,
        0.7071067811865476,
        0.6484197773255048,
        0.5946035575013605,
        0.5452538663326288,
    ]
)


def table(counts: np.ndarray) -> bytes:
    """The written table that codes these counts in fewest bits, its own among them."""
    counts = counts[: int(np.flatnonzero(counts).max()) + 1]
    share = np.maximum(counts, 0.05) / counts.max()
    levels = np.clip(np.round(-8 * np.log2(share)), 0, 255).astype(int).tolist()
    written = [bytes([len(levels), *levels])]
    if len(levels) > _EXPLICIT:
        written += _falling(counts)
    return min(written, key=lambda one: cost(one, counts))


def cost(written: bytes, counts: np.ndarray) -> float:
    """Bits of a table and of what it codes."""
    share = frequencies(levels_of(written))
    return 8 * len(written) - float((counts[: len(share)] * np.log2(share)).sum())


def levels_of(written: bytes) -> list[int]:
    """-8 log2 of each frequency relative to the largest, or nearly so. Raises ValueError."""
    if written[0] != FALLING:
        return list(written[1:])
    _, power, rate, length = _RATE.unpack(written)
    if power not in (1, 2):
        raise ValueError("a table is damaged")
    grown = (np.arange(length, dtype=np.int64) ** power * rate) >> 8
    grown[:1] += 8  # a magnitude has two signs, and zero has none
    levels: list[int] = np.minimum(grown, 255).tolist()
    return levels


def length_of(side: bytes, place: int) -> int:
    """How many bytes the table there takes."""
    return _RATE.size if side[place] == FALLING else 1 + side[place]


def frequencies(levels: Sequence[int]) -> np.ndarray:
    """What the levels say, as shares of 1."""
    octaves, eighths = np.divmod(np.array(list(levels), dtype=np.int64), 8)
    share = np.ldexp(_EIGHTHS[eighths], -octaves)
    return share / share.sum()


def model(levels: Sequence[int]) -> constriction.stream.model.Categorical:
    """Magnitudes 0 to len(levels) - 1; one alone has another beside it that does not occur."""
    levels = [*levels, 255] if len(levels) == 1 else list(levels)
    octaves, eighths = np.divmod(np.array(levels, dtype=np.int64), 8)
    weights = np.maximum(np.floor(np.ldexp(_EIGHTHS[eighths], 20 - octaves)), 1.0)
    return constriction.stream.model.Categorical(weights, perfect=False)


def _falling(counts: np.ndarray) -> Iterator[bytes]:
    """Tables of the two kinds at rates about that of the counts' own moments."""
    sizes = np.arange(len(counts))
    for power in (1, 2):
        moment = float((counts * sizes**power).sum() / counts.sum())
        for factor in (0.8, 0.9, 1.0, 1.1, 1.25):
            rate = round(256 * 8 * 1.4427 * factor / (power * max(moment, 1e-3)))
            yield _RATE.pack(FALLING, power, max(1, min(rate, 65535)), len(counts))
