"""Which names may have been meant by one that is not there, also among a million."""

import string
from collections.abc import Iterator

from conceptkit.registry.index import Index

ALL = 2000
"""Up to so many names are simply compared one by one."""

FOUND = 200
"""Names taken from one look into the trigrams."""

_LETTERS = string.ascii_lowercase + string.digits + "_-"


def likely(index: Index, name: str) -> list[str]:
    """Names to compare `name` with: all of them if they are few, else those that are nearest in spelling.

    One slip away is found exactly; further away through what is left of the name when it is cut into pieces
    (n slips leave one of n + 1 pieces whole). Never empty unless there are no names.
    """
    some = [row[0] for row in index.query(f"select name from names limit {ALL + 1}")]
    if len(some) <= ALL:
        return some
    slips = sorted({*_one_slip(name.lower()[:64])})
    marks = ", ".join("?" * len(slips))
    query = f"select name from names where name collate nocase in ({marks}) limit {FOUND}"
    if near := [row[0] for row in index.query(query, slips)]:
        return near
    found = {row[0] for match in _pieces(name.lower()[:64]) for row in index.query(_MATCH, [match, FOUND])}
    return sorted(found) or some[:1]


_MATCH = """select names.name from names_fts join names on names.id = names_fts.rowid
            where names_fts match ? limit ?"""


def _one_slip(name: str) -> Iterator[str]:
    """All names that one wrong, missing, additional or swapped letter away from `name`, and itself."""
    yield name
    for i in range(len(name) + 1):
        head, tail = name[:i], name[i:]
        yield from (head + letter + tail for letter in _LETTERS)
        if tail:
            yield head + tail[1:]
            yield from (head + letter + tail[1:] for letter in _LETTERS)
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]


def _pieces(name: str) -> Iterator[str]:
    """Queries for names that share two of three pieces with `name`, then one of two; narrow ones first."""
    thirds, halves = _cut(name, 3), _cut(name, 2)
    if len(thirds) == 3:
        for i in range(3):
            yield " AND ".join(_quoted(piece) for j, piece in enumerate(thirds) if j != i)
    yield from (
        _quoted(piece) for piece in (*halves, *(() if len(halves) == 2 else (name,))) if len(piece) > 2
    )


def _cut(name: str, count: int) -> list[str]:
    """`name` in `count` pieces of at least a trigram each, or nothing when it is too short."""
    width = len(name) // count
    if width < 3:
        return []
    return [name[i * width : (i + 1) * width if i + 1 < count else None] for i in range(count)]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
