"""Vectors of whole numbers as a range-coded stream, and back: exact, and the same bytes on every machine.

Vectors that are alike in size share a table of frequencies. Of a number its magnitude is range coded
(`constriction`, after Martin 1979), its sign is a bit of its own. Which table a vector has, and its step, are
range coded before them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import constriction
import numpy as np

from conceptkit.concepts.codec import tables

MOST_CLASSES = 12
"""Tables of frequencies in one stream, at most; how many are worth their bytes is found out."""
ESCAPE = 120
"""Magnitudes from here on are written as this one, with what is beyond it behind the tables."""
MOST_VALUES = 1 << 26
MOST_SIDE = 1 << 26
"""Bytes that tables and steps may take when they are inflated."""
_QUARTERS = np.array([1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429])
_SWEEPS = 12
MOST_STEP = 400
"""Of a step and of the difference from the one before, in quarters of an octave."""
_RATES = tuple(range(1, 17))


@dataclass(frozen=True)
class Vector:
    """values (n,) of whole numbers, of which one is worth 2^(step / 4)."""

    values: np.ndarray
    step: int


def encode(vectors: Sequence[Vector]) -> bytes:
    """The vectors as bytes: lengths, tables, signs, and range coded their classes, steps and magnitudes."""
    numbers = [np.abs(vector.values.astype(np.int64)) for vector in vectors]
    capped = [np.minimum(values, ESCAPE) for values in numbers]
    classes, written = _classes(capped)
    beyond = np.concatenate([values[values >= ESCAPE] - ESCAPE for values in numbers] or [_none()])
    own = [vector.step for vector, klass in zip(vectors, classes, strict=True) if klass]
    steps = np.diff(np.array(own, dtype=np.int64), prepend=0)
    of_steps = _steps_table(steps)
    of_classes = (
        tables.table(np.bincount(classes, minlength=len(written) + 1)) if len(classes) else b"\x01\x00"
    )
    side = struct.pack("<BI", len(written), len(beyond)) + bytes([of_steps]) + of_classes
    packed = deflated(side + b"".join(written) + beyond.astype("<u4").tobytes())
    coder = constriction.stream.queue.RangeEncoder()
    _encode(coder, classes, tables.levels_of(of_classes))
    _encode(coder, steps + MOST_STEP, _steps_levels(of_steps))
    for klass, table in enumerate(written, 1):
        chosen = [values for values, own in zip(capped, classes, strict=True) if own == klass]
        _encode(coder, np.concatenate(chosen), tables.levels_of(table))
    everything = np.concatenate([vector.values for vector in vectors] or [_none()])
    signs = np.packbits(everything[everything != 0] < 0).tobytes()
    words = coder.get_compressed().astype("<u4").tobytes()
    return struct.pack("<II", len(packed), len(signs)) + packed + signs + words


def decode(data: bytes, lengths: Sequence[int]) -> list[Vector]:
    """The vectors in these bytes, which have these lengths. Raises ValueError for other bytes."""
    side, signs, coder = split_stream(data, lengths)
    of_steps, of_classes, written, beyond = _read_side(side)
    sizes = np.array(lengths, dtype=np.int64)
    classes = _decode(coder, len(sizes), tables.levels_of(of_classes))
    if classes.max(initial=0) > len(written):
        raise ValueError("the tables are damaged")
    steps = _read_steps(coder, classes, of_steps)
    pieces: list[np.ndarray] = [_none()] * len(sizes)
    for klass in range(len(written) + 1):
        own = np.flatnonzero(classes == klass)
        count = int(sizes[own].sum())
        levels = tables.levels_of(written[klass - 1]) if klass else []
        values = _decode(coder, count, levels) if klass else np.zeros(count, dtype=np.int32)
        for i, piece in zip(own.tolist(), np.split(values, np.cumsum(sizes[own])[:-1]), strict=False):
            pieces[i] = piece
    whole = np.concatenate(pieces or [_none()]).astype(np.int64)
    add_beyond(whole, beyond)
    add_signs(whole, signs)
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    return [Vector(part, step) for part, step in zip(parts, steps.tolist(), strict=False)]


def split_stream(
    data: bytes, lengths: Sequence[int]
) -> tuple[bytes, np.ndarray, constriction.stream.queue.RangeDecoder]:
    """What stands beside the magnitudes, the bits of the signs, and the decoder. Raises ValueError."""
    if sum(lengths) > MOST_VALUES:
        raise ValueError(f"{sum(lengths):,} values are too many")
    side_length, sign_length = struct.unpack_from("<II", data)
    start = 8 + side_length
    if start + sign_length > len(data) or (len(data) - start - sign_length) % 4:
        raise ValueError("the stream is cut")
    signs = np.unpackbits(np.frombuffer(data[start : start + sign_length], np.uint8))
    words = np.frombuffer(data[start + sign_length :], "<u4").astype(np.uint32)
    coder = constriction.stream.queue.RangeDecoder(words)
    return inflated(data[8:start], MOST_SIDE), signs, coder


def add_beyond(whole: np.ndarray, beyond: np.ndarray) -> None:
    """To the magnitudes that are written as ESCAPE, what is beyond it. Raises ValueError."""
    escaped = np.flatnonzero(whole == ESCAPE)
    if len(escaped) != len(beyond):
        raise ValueError("the stream is damaged")
    whole[escaped] += beyond


def add_signs(whole: np.ndarray, signs: np.ndarray) -> None:
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
    classes, written = _classes(capped)
    costs = {}
    for klass in range(1, len(written) + 1):
        chosen = [values for values, own in zip(capped, classes, strict=True) if own == klass]
        counts = np.bincount(np.concatenate(chosen), minlength=ESCAPE + 1)
        costs[klass] = -np.log2(np.maximum(counts, 1) / counts.sum())
    return [
        float(costs[klass][values].sum() + (values > 0).sum()) if klass else 0.0
        for values, klass in zip(capped, classes, strict=True)
    ]


def side_bits(vectors: Sequence[Vector]) -> float:
    """The entropy of what is coded beside the magnitudes and signs: each vector's class and step."""
    classes, _ = _classes([np.minimum(np.abs(vector.values.astype(np.int64)), ESCAPE) for vector in vectors])
    own = [vector.step for vector, klass in zip(vectors, classes, strict=True) if klass]
    total = 0.0
    for values in (classes, np.diff(np.array(own, dtype=np.int64), prepend=0)):
        counts = np.unique(values, return_counts=True)[1]
        total -= float((counts * np.log2(counts / max(counts.sum(), 1))).sum())
    return total


def _classes(capped: Sequence[np.ndarray]) -> tuple[np.ndarray, list[bytes]]:
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
    return classes, [tables.table(counts[best[1] == klass].sum(0)) for klass in used]


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
        total += tables.cost(tables.table(sums), sums)
        total -= (own == klass).sum() * float(np.log2((own == klass).mean()))
    return total


def _encode(coder: constriction.stream.queue.RangeEncoder, values: np.ndarray, levels: Sequence[int]) -> None:
    if len(values):
        coder.encode(values.astype(np.int32), tables.model(levels))


def _decode(coder: constriction.stream.queue.RangeDecoder, count: int, levels: Sequence[int]) -> np.ndarray:
    values: np.ndarray = coder.decode(tables.model(levels), count) if count else _none().astype(np.int32)
    return values


def _steps_table(steps: np.ndarray) -> int:
    """How fast differences of steps become unlikely, in eighths of an octave: what costs least."""
    costs = [
        -float(np.log2(tables.frequencies(_steps_levels(rate))[steps + MOST_STEP]).sum()) for rate in _RATES
    ]
    return int(_RATES[int(np.argmin(costs))])


def _steps_levels(rate: int) -> list[int]:
    levels: list[int] = np.minimum(rate * np.abs(np.arange(-MOST_STEP, MOST_STEP + 1)), 255).tolist()
    return levels


def _read_steps(coder: constriction.stream.queue.RangeDecoder, classes: np.ndarray, rate: int) -> np.ndarray:
    """Steps of all vectors; zeros alone have that of the vector before. Raises ValueError."""
    alive = classes > 0
    found = np.cumsum(_decode(coder, int(alive.sum()), _steps_levels(rate)).astype(np.int64) - MOST_STEP)
    if np.abs(found).max(initial=0) > MOST_STEP:
        raise ValueError("a step is beyond all that are written")
    return np.concatenate([np.zeros(1, dtype=np.int64), found])[np.cumsum(alive)]


def _read_side(side: bytes) -> tuple[int, bytes, list[bytes], np.ndarray]:
    """The rate of the steps, the table of the classes, those of the magnitudes, what is beyond ESCAPE."""
    number, escapes, rate = struct.unpack_from("<BIB", side)
    place, found = 6, []
    for _ in range(1 + number):
        length = tables.length_of(side, place)
        table = side[place : place + length]
        if len(table) != length or not 0 < len(tables.levels_of(table)) <= ESCAPE + 1:
            raise ValueError("a table is cut")
        found.append(table)
        place += length
    beyond = np.frombuffer(side, "<u4", escapes, place).astype(np.int64)
    if place + 4 * escapes != len(side) or rate not in _RATES:
        raise ValueError("the tables are damaged")
    return rate, found[0], found[1:], beyond


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
