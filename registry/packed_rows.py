"""The rows of `blobs/packed.db` found in the bytes of the file, without SQLite, whatever became of the rest.

A row is never cut in two, and says its hash and its length: the SHA-256 of what follows proves it.
The layout is that of https://www.sqlite.org/fileformat2.html#record_format, for the table in `packed.py`:

    header: its length, 0 (id), 6 (added, 8 bytes), 1, 2, 3, 8 or 9 (bytes), 76 (hash), 12 + 2 n (data)
    body: added, bytes, hash (32 bytes), data (n bytes)
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

LONGEST = 1 << 15
"""Bytes of a row, at most: those of a page."""
PIECE = 16 << 20
"""Bytes looked through at once."""
_HEADER = re.compile(rb"\x00\x06([\x01\x02\x03\x08\x09])\x4c([\x80-\xff]{0,2}[\x00-\x7f])", re.DOTALL)
_WIDTHS = {1: 1, 2: 2, 3: 3, 8: 0, 9: 0}
"""Type of an integer -> its bytes."""
_ADDED, _HASH = 8, 32

_held: dict[tuple[int, int], int] = {}
"""Open handles by file. They are never closed: closing one would let go of all locks that SQLite has for this
process on that file."""

Row = tuple[str, bytes, float]
"""sha256, data, and when it was stored in seconds since 1970."""


def every(file: Path) -> Iterator[Row]:
    """Each row that is whole, also of such that were there before; one may come twice."""
    for piece in _pieces(file):
        for match in _HEADER.finditer(piece):
            if (found := _row(piece, match)) is not None:
                yield found


def find(file: Path, digest: str) -> bytes | None:
    """The data of the row of `digest`, or None when there is no whole one."""
    raw = bytes.fromhex(digest)
    for piece in _pieces(file):
        place = piece.find(raw)
        while place >= 0:
            before = max(0, place - 16)
            for match in _HEADER.finditer(piece, before, place):
                found = _row(piece, match)
                if found is not None and found[0] == digest:
                    return found[1]
            place = piece.find(raw, place + 1)
    return None


def _row(piece: bytes, match: re.Match[bytes]) -> Row | None:
    """The row whose header that is, if these bytes are one."""
    kind = 0
    for byte in match[2]:
        kind = kind << 7 | byte & 0x7F
    if kind < 12 or kind % 2:
        return None
    start = match.end() + _ADDED + _WIDTHS[match[1][0]] + _HASH
    data = piece[start : start + (kind - 12) // 2]
    digest = hashlib.sha256(data)
    whole = len(data) == (kind - 12) // 2 and digest.digest() == piece[start - _HASH : start]
    if not whole:
        return None
    added = int.from_bytes(piece[match.end() : match.end() + _ADDED], "big")
    return digest.hexdigest(), data, added / 1e6


def _pieces(file: Path) -> Iterator[bytes]:
    """The bytes of a file, the end of each piece again at the start of the next; none of one that is gone."""
    try:
        state = file.stat()
        if (key := (state.st_dev, state.st_ino)) not in _held:
            _held[key] = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return
    start = 0
    while piece := _read_at(_held[key], PIECE + LONGEST, start):
        yield piece
        start += PIECE


def _read_at(handle: int, most: int, start: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(handle, most, start)
    os.lseek(handle, start, os.SEEK_SET)
    return os.read(handle, most)
