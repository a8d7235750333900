"""Reads the numbers of concepts of format 3, as they were coded before `symbols`: nothing writes them today.

Frequencies are in eighths of an octave of probability, steps and classes stand beside the tables.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from conceptkit.concepts.codec import tables
from conceptkit.concepts.codec.symbols import ESCAPE, Vector, add_beyond, add_signs, split_stream


def decode(data: bytes, lengths: Sequence[int]) -> list[Vector]:
    """The vectors in these bytes, which have these lengths. Raises ValueError for other bytes."""
    side, signs, coder = split_stream(data, lengths)
    steps, classes, written, beyond = _read_side(side, len(lengths))
    sizes = np.array(lengths, dtype=np.int64)
    ends = np.cumsum(sizes)
    whole = np.zeros(int(sizes.sum()), dtype=np.int64)
    owner = np.repeat(classes, sizes)
    for klass, table in enumerate(written, 1):
        places = np.flatnonzero(owner == klass)
        if len(places):
            whole[places] = coder.decode(tables.model(table), len(places))
    add_beyond(whole, beyond)
    add_signs(whole, signs)
    return [
        Vector(whole[end - size : end], int(step))
        for size, end, step in zip(sizes.tolist(), ends.tolist(), steps, strict=True)
    ]


def _read_side(side: bytes, count: int) -> tuple[np.ndarray, np.ndarray, list[bytes], np.ndarray]:
    number, escapes = struct.unpack_from("<BI", side)
    place, found = 5, []
    for _ in range(number):
        length = side[place]
        table = side[place + 1 : place + 1 + length]
        if not 0 < len(table) == length <= ESCAPE + 1:
            raise ValueError("a table is cut")
        found.append(table)
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
    return steps, classes, found, beyond
