"""Reads the numbers of concepts of format 3, as they were coded before `symbols`: nothing writes them today.

Frequencies are in eighths of an octave of probability, steps and classes stand beside the tables.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import constriction
import numpy as np

from conceptkit.concepts.codec.symbols import ESCAPE, MOST_SIDE, MOST_VALUES, Vector, inflated

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
    ends = np.cumsum(sizes)
    whole = np.zeros(int(sizes.sum()), dtype=np.int64)
    owner = np.repeat(classes, sizes)
    for klass, table in enumerate(tables, 1):
        places = np.flatnonzero(owner == klass)
        if len(places):
            whole[places] = coder.decode(_model(table), len(places))
    escaped = np.flatnonzero(whole == ESCAPE)
    if len(escaped) != len(beyond):
        raise ValueError("the stream is damaged")
    whole[escaped] += beyond
    there = np.flatnonzero(whole)
    signs = np.unpackbits(np.frombuffer(data[start : start + sign_length], np.uint8))
    if len(signs) - len(there) not in range(8):
        raise ValueError("the stream is damaged")
    whole[there] *= 1 - 2 * signs[: len(there)].astype(np.int64)
    return [
        Vector(whole[end - size : end], int(step))
        for size, end, step in zip(sizes.tolist(), ends.tolist(), steps, strict=True)
    ]


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
