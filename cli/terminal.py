"""What goes to the terminal: nothing in it can repaint the screen, and no cell of a table fills it."""

import re
from collections.abc import Sequence

import click

CELL = 72
"""Columns of one cell of a table; the longest name with its version fits."""
TEXT = 40
"""Columns of a cell with free text: a class, a base, tags."""
VALUE = 600
"""Columns of one fact about one concept."""

# control characters can repaint a terminal, bidirectional ones reorder a line, lone surrogates are no text
_LINES = "\t\n"
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


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
    cut = [tuple(clip(plain(cell), widest) for cell in row) for row in rows]
    widths = [max(map(width, column)) for column in zip(*cut, strict=True)]
    for row in cut:
        cells = (cell + " " * (size - width(cell)) for cell, size in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


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


def safe_json(text: str) -> str:
    """JSON whose strings hold no character that a terminal would obey; the same value."""
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def _escaped(letter: str, lines: bool) -> str:
    if lines and letter in _LINES:
        return letter
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"
