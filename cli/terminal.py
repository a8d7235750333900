"""What goes to the terminal: nothing in it can repaint the screen, and no cell of a table fills it."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click

CELL = 72
"""Columns of one cell of a table; the longest name with its version fits."""
TEXT = 40
"""Columns of a cell with free text: a class, a base, tags."""
VALUE = 600
"""Columns of one fact about one concept."""

# control characters can repaint a terminal, bidirectional ones reorder a line, lone surrogates are no text
_LINES = "\t\n"
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def plain(text: object, *, lines: bool = False) -> str:
    """The text with every character that a terminal would obey written as its escape, `\\x1b`.

    lines: line breaks and tabs stay.
    """
    return _UNSAFE.sub(lambda match: _escaped(match[0], lines), str(text))


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a text of our own, of one or more lines, in which there may be somebody else's."""
    click.echo(plain(text, lines=True), err=err)


def echo_table(rows: Sequence[tuple[str, ...]], widest: int = CELL) -> None:
    """Rows of equal length as aligned columns; a cell wider than `widest` is cut."""
    from tabulate import tabulate

    cut = [tuple(clip(plain(cell), widest) for cell in row) for row in rows]
    text = tabulate(cut, tablefmt="plain", disable_numparse=True, preserve_whitespace=True)
    for line in text.splitlines():
        click.echo(line.rstrip())


def clip(text: str, columns: int) -> str:
    """The text itself if it fits into so many columns, else its beginning and an ellipsis."""
    if len(text) <= columns and width(text) <= columns:
        return text
    from rich.cells import set_cell_size

    return set_cell_size(text[:columns], columns - 1).rstrip() + "…"


def width(text: str) -> int:
    """Columns that the text takes: two for a wide letter, none for a combining one."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def local(moment: str) -> str:
    """A moment in UTC, ISO 8601, by the clock on the wall: "2026-01-31 14:05:00 +0100"."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def star() -> str:
    """The mark of a favourite, in letters that the output's encoding has."""
    return "★" if _fits("★", sys.stdout) else "*"


@contextmanager
def any_text() -> Iterator[None]:
    """Meanwhile a letter that the output's encoding lacks is written as its escape, `\\u2192`."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        if stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=errors)


def _fits(text: str, stream: Any) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def safe_json(text: str) -> str:
    """JSON whose strings hold no character that a terminal would obey; the same value."""
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def _escaped(letter: str, lines: bool) -> str:
    if lines and letter in _LINES:
        return letter
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"
