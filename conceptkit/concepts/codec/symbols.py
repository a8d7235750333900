"""Vectors of whole numbers as a range-coded stream, and back: exact, and the same bytes on every machine.

Vectors that are alike in size share a table of frequencies. Of a number its magnitude is range coded
(`constriction`, after Martin 1979), its sign is a bit of its own. Tables are written in
eighths of an octave of probability, and read by multiplications alone, so that no machine's logarithm decides
what is read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import constriction
import numpy as np

MOST_CLASSES = 12
"""Tables of frequencies in one stream, at most; how many are worth their bytes is found out."""
ESCAPE = 120
"""Magnitudes from here on are written as this one, with what is beyond it behind the tables."""
MOST_VALUES = 1 << 26
MOST_SIDE = 1 << 26
"""Bytes that tables and steps may take when they are inflated."""
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
_QUARTERS = np.array([1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429])
_SWEEPS = 12


@dataclass(frozen=True)
class Vector:
    """values (n,) of whole numbers, of which one is worth 2^(step / 4)."""

    values: np.ndarray
    step: int


def encode(vectors: Sequence[Vector]) -> bytes:
    """The vectors as bytes: the length of the tables, the tables, the signs, the range-coded magnitudes."""
    numbers = [np.abs(vector.values.astype(np.int64)) for vector in vectors]
    capped = [np.minimum(values, ESCAPE) for values in numbers]
    classes, tables = _classes(capped)
    beyond = np.concatenate([values[values >= ESCAPE] - ESCAPE for values in numbers] or [_none()])
    steps = _steps(vectors, classes)
    side = bytearray(struct.pack("<BI", len(tables), len(beyond)))
    for table in tables:
        side += bytes([len(table), *table])
    side += _differences(steps) + classes.astype(np.uint8).tobytes() + _groups(beyond)
    packed = deflated(bytes(side))
    coder = constriction.stream.queue.RangeEncoder()
    for klass, table in enumerate(tables, 1):
        chosen = [values for values, own in zip(capped, classes, strict=True) if own == klass]
        coder.encode(np.concatenate(chosen).astype(np.int32), _model(table))
    everything = np.concatenate([vector.values for vector in vectors] or [_none()])
    signs = np.packbits(everything[everything != 0] < 0).tobytes()
    words = coder.get_compressed().astype("<u4").tobytes()
    return struct.pack("<II", len(packed), len(signs)) + packed + signs + words


def decode(data: bytes, lengths: Sequence[int]) -> list[Vector]:
    """The vectors in these bytes, which have these lengths. Raises ValueError for other bytes."""
    if sum(lengths) > MOST_VALUES:
        raise ValueError(f"{sum(lengths):,} values are too many")
    side_length, sign_length = struct.unpack_from("<II", data)
    start = 8 + side_length
    if start + sign_length > len(data) or (len(data) - start - sign_length) % 4:
        raise ValueError("the stream is cut")
    steps, classes, tables, beyond = _read_side(inflated(data[8:start], MOST_SIDE), len(lengths))
    words = np.frombuffer(data[start + sign_length :], "<u4").astype(np.uint32)
    coder = constriction.stream.queue.RangeDecoder(words)
    sizes = np.array(lengths, dtype=np.int64)
    pieces: list[np.ndarray] = [_none()] * len(sizes)
    for klass, table in [(0, b""), *enumerate(tables, 1)]:
        own = np.flatnonzero(classes == klass)
        count = int(sizes[own].sum())
        coded = bool(klass and count)
        values = coder.decode(_model(table), count) if coded else np.zeros(count, dtype=np.int32)
        for i, piece in zip(own.tolist(), np.split(values, np.cumsum(sizes[own])[:-1]), strict=False):
            pieces[i] = piece
    whole = np.concatenate(pieces or [_none()]).astype(np.int64)
    _add_beyond(whole, beyond)
    _add_signs(whole, np.unpackbits(np.frombuffer(data[start : start + sign_length], np.uint8)))
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    return [Vector(part, step) for part, step in zip(parts, steps.tolist(), strict=False)]


def _add_beyond(whole: np.ndarray, beyond: np.ndarray) -> None:
    """To the magnitudes that are written as ESCAPE, what is beyond it. Raises ValueError."""
    escaped = np.flatnonzero(whole == ESCAPE)
    if len(escaped) != len(beyond):
        raise ValueError("the stream is damaged")
    whole[escaped] += beyond


def _add_signs(whole: np.ndarray, signs: np.ndarray) -> None:
    """To the magnitudes that are not zero, their signs, one bit each. Raises ValueError."""
    there = np.flatnonzero(whole)
    if len(signs) - len(there) not in range(8):
        raise ValueError("the stream is damaged")
    whole[there] *= 1 - 2 * signs[: len(there)].astype(np.int64)


def worths(steps: Sequence[int]) -> np.ndarray:
    """2^(step / 4) of each, by exact powers of two and constants."""
    octaves, quarters = np.divmod(np.array(steps, dtype=np.int64), 4)
    return np.ldexp(_QUARTERS[quarters], octaves)


def worth(step: int) -> float:
    """The same of one."""
    return float(worths([step])[0])


def bits(vectors: Sequence[Vector]) -> list[float]:
    """Bits of each vector's symbols by the frequencies of its class, signs included; of all it is the
    entropy."""
    capped = [np.minimum(np.abs(vector.values.astype(np.int64)), ESCAPE) for vector in vectors]
    classes, tables = _classes(capped)
    costs = {}
    for klass in range(1, len(tables) + 1):
        chosen = [values for values, own in zip(capped, classes, strict=True) if own == klass]
        counts = np.bincount(np.concatenate(chosen), minlength=ESCAPE + 1)
        costs[klass] = -np.log2(np.maximum(counts, 1) / counts.sum())
    return [
        float(costs[klass][values].sum() + (values > 0).sum()) if klass else 0.0
        for values, klass in zip(capped, classes, strict=True)
    ]


def _classes(capped: Sequence[np.ndarray]) -> tuple[np.ndarray, list[list[int]]]:
    """Which table each vector is coded by, from 1 on, 0 for zeros alone; and the tables that cost least."""
    classes = np.zeros(len(capped), dtype=np.int64)
    alive = [i for i, values in enumerate(capped) if values.any()]
    if not alive:
        return classes, []
    counts = np.stack([np.bincount(capped[i], minlength=ESCAPE + 1) for i in alive]).astype(float)
    best: tuple[float, np.ndarray] | None = None
    for number in sorted({1, 2, 3, 4, 6, 8, MOST_CLASSES}):
        if number > len(alive):
            break
        own = _grouped(counts, number)
        cost = _cost(counts, own)
        if best is None or cost < best[0]:
            best = cost, own
    assert best is not None
    used = np.unique(best[1])
    classes[alive] = np.searchsorted(used, best[1]) + 1
    return classes, [_table(counts[best[1] == klass].sum(0)) for klass in used]


def _grouped(counts: np.ndarray, number: int) -> np.ndarray:
    """Rows of counts in at most so many groups whose frequencies suit them: Lloyd's iteration on code
    length."""
    mean = counts @ np.arange(counts.shape[1]) / counts.sum(1)
    own = np.searchsorted(np.quantile(mean, np.arange(1, number) / number), mean)
    for _ in range(_SWEEPS):
        sums = np.stack([counts[own == k].sum(0) for k in range(number)]) + 0.02
        bits = -counts @ np.log2(sums / sums.sum(1, keepdims=True)).T
        again = bits.argmin(1)
        if np.array_equal(again, own):
            break
        own = again
    return own


def _cost(counts: np.ndarray, own: np.ndarray) -> float:
    """Bits of the magnitudes, their tables and the numbers of the tables."""
    total = 0.0
    for klass in np.unique(own):
        sums = counts[own == klass].sum(0)
        table = _table(sums)
        share = _frequencies(table)
        total += 8 * (1 + len(table)) - float((sums[: len(share)] * np.log2(share)).sum())
        total -= (own == klass).sum() * float(np.log2((own == klass).mean()))
    return total


def _table(counts: np.ndarray) -> list[int]:
    """-8 log2 of each frequency relative to the largest, rounded, up to the last magnitude that occurs."""
    counts = counts[: int(np.flatnonzero(counts).max()) + 1]
    share = np.maximum(counts, 0.05) / counts.max()
    return [int(level) for level in np.clip(np.round(-8 * np.log2(share)), 0, 255)]


def _frequencies(table: Sequence[int]) -> np.ndarray:
    octaves, eighths = np.divmod(np.array(list(table), dtype=np.int64), 8)
    share = np.ldexp(_EIGHTHS[eighths], -octaves)
    return share / share.sum()


def _model(table: Sequence[int]) -> constriction.stream.model.Categorical:
    """Magnitudes 0 to len(table) - 1; one alone has another beside it that does not occur."""
    levels = [*table, 255] if len(table) == 1 else list(table)
    octaves, eighths = np.divmod(np.array(levels, dtype=np.int64), 8)
    weights = np.maximum(np.floor(np.ldexp(_EIGHTHS[eighths], 20 - octaves)), 1.0)
    return constriction.stream.model.Categorical(weights, perfect=False)


def _read_side(side: bytes, count: int) -> tuple[np.ndarray, np.ndarray, list[bytes], np.ndarray]:
    number, escapes = struct.unpack_from("<BI", side)
    place, tables = 5, []
    for _ in range(number):
        length = side[place]
        table = side[place + 1 : place + 1 + length]
        if not 0 < len(table) == length <= ESCAPE + 1:
            raise ValueError("a table is cut")
        tables.append(table)
        place += 1 + length
    steps = np.cumsum(np.frombuffer(side, "<i2", count, place))
    place += 2 * count
    classes = np.frombuffer(side, np.uint8, count, place).astype(np.int64)
    place += count
    beyond = np.frombuffer(side, "<u4", escapes, place).astype(np.int64)
    if (
        place + 4 * escapes != len(side)
        or (count and classes.max() > number)
        or np.abs(steps).max(initial=0) > 800
    ):
        raise ValueError("the tables are damaged")
    return steps, classes, tables, beyond


def _steps(vectors: Sequence[Vector], classes: np.ndarray) -> np.ndarray:
    """The vectors' steps; zeros need none, and have that of the vector before."""
    steps, last = [], 0
    for vector, klass in zip(vectors, classes, strict=True):
        last = vector.step if klass else last
        steps.append(last)
    return np.array(steps, dtype=np.int64)


def _differences(steps: np.ndarray) -> bytes:
    return np.diff(steps, prepend=0).astype("<i2").tobytes()


def _groups(beyond: np.ndarray) -> bytes:
    return beyond.astype("<u4").tobytes()


def _none() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


def deflated(data: bytes, dictionary: bytes = b"") -> bytes:
    """Raw deflate of the bytes, which begins from a dictionary that the reader must have too."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, dictionary)
    return packer.compress(data) + packer.flush()


def inflated(data: bytes, most: int, dictionary: bytes = b"") -> bytes:
    """What raw deflate made of at most so many bytes. Raises ValueError for other bytes."""
    reader = zlib.decompressobj(-15, dictionary)
    try:
        found = reader.decompress(data, most)
    except zlib.error as error:
        raise ValueError("a part is damaged") from error
    if not reader.eof or reader.unused_data:
        raise ValueError("a part is damaged")
    return found
