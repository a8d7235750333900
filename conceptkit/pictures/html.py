"""Tables as HTML, for notebooks."""

from collections.abc import Mapping, Sequence
from html import escape


def facts(title: str, values: Mapping[str, object]) -> str:
    """A table of two columns under a title; empty values are left out."""
    return table(title, (), [(name, value) for name, value in values.items() if value not in (None, "", ())])


def table(title: str, head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table under a title; every cell is escaped."""
    top = "<tr>" + "".join(f"<th>{escape(str(cell))}</th>" for cell in head) + "</tr>" if head else ""
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><caption>{escape(title)}</caption>{top}{body}</table>"
