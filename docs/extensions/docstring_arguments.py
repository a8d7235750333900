"""Docstrings for griffe: lines such as "rank: of the delta." become lists of arguments.

A docstring says `name: text` or `name, other: text` at the start of a line, where `name` is a parameter of
the function or a field of the class. Lines that are indented further go on with the text.
"""

import re
from collections.abc import Iterator
from typing import Any

from griffe import Class, Docstring, Extension, Function

ENTRY = re.compile(r"^(\w+(?:, \w+)*): (.*)$")
SENTENCE = re.compile(r"(?<=[.;]) (?=\w+(?:, \w+)*: )")


class DocstringArguments(Extension):
    """Rewrites entries to sections of Google's style, which griffe reads."""

    def on_function_instance(self, *, func: Function, **_: Any) -> None:
        """The parameters of a function."""
        if func.docstring:
            names = {parameter.name for parameter in func.parameters}
            func.docstring.value = "\n".join(_sections(func.docstring, names, "Args"))

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """The fields of a class."""
        if cls.docstring:
            names = {name for name, member in cls.members.items() if member.is_attribute}
            cls.docstring.value = "\n".join(_sections(cls.docstring, names, "Attributes"))


def _sections(docstring: Docstring, names: set[str], title: str) -> Iterator[str]:
    """The docstring's lines, entries gathered in one section per run of them."""
    inside = False
    for line in _one_entry_a_line(docstring.value, names):
        entry = ENTRY.match(line)
        if entry and names.issuperset(entry[1].split(", ")):
            if not inside:
                yield from ("", f"{title}:")
            inside = True
            first, *others = entry[1].split(", ")
            for name in others:
                yield f"    {name}: see `{first}`."
            yield f"    {first}: {entry[2]}"
        elif inside and line.strip():
            if line.startswith("    "):
                yield f"    {line}"
            else:
                inside = False
                yield from ("", line)
        else:
            inside = inside and not line.strip()
            yield line


def _one_entry_a_line(text: str, names: set[str]) -> Iterator[str]:
    """Lines in which every entry begins one; what follows an entry in its paragraph is indented below it."""
    for paragraph in text.split("\n\n"):
        inside = False
        for line in paragraph.split("\n"):
            for piece in SENTENCE.split(line):
                entry = ENTRY.match(piece)
                known = bool(entry and names.issuperset(entry[1].split(", ")))
                inside = inside or known
                goes_on = inside and not known and not piece.startswith((" ", "Raises ", "Returns "))
                inside = inside and not piece.startswith(("Raises ", "Returns "))
                yield f"    {piece}" if goes_on else piece
        yield ""
