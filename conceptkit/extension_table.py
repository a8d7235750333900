"""Tables that other packages can add rows to: by a call, or by an entry point of their own.

A package names its rows in its pyproject.toml, and conceptkit reads them when a table is first asked:

    [project.entry-points."conceptkit.families"]
    my_family = "my_package.family:FAMILY"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Generic, TypeVar

from conceptkit.errors import ConceptError
from conceptkit.registry.names import choose

Row = TypeVar("Row")


class ExtensionTable(Mapping[str, Row], Generic[Row]):
    """Rows by name, in the order in which they were registered.

    what: what a row is, for sentences: "merge method".
    group: the group of entry points that other packages add rows by: "conceptkit.merge_methods". A point is
        a row, or a module that registers rows when it is imported.
    """

    def __init__(self, what: str, group: str) -> None:
        self.what, self.group = what, group
        self._rows: dict[str, Row] = {}
        self._waiting: list[EntryPoint] | None = None

    def register(self, name: str, row: Row) -> Row:
        """Add a row and return it. Raises ConceptError when another row has that name."""
        if self._rows.get(name, row) is not row:
            raise ConceptError(f"There are two {self.what}s called {name!r}; give one of them another name")
        self._rows[name] = row
        return row

    def find(self, name: str) -> Row:
        """The row of that name. Raises ConceptError that lists the known ones."""
        if name not in self:
            raise ConceptError(f"There is no {self.what} {name!r}; {choose(name, list(self))}")
        return self[name]

    def __getitem__(self, name: str) -> Row:
        if name not in self._rows:
            self._load()
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._rows:
            self._load()
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(tuple(self._rows))

    def __len__(self) -> int:
        self._load()
        return len(self._rows)

    def _load(self) -> None:
        """Read the entry points, once. A point that cannot be loaded is an error that names its package."""
        if self._waiting is None:
            self._waiting = list(entry_points(group=self.group))
        while self._waiting:
            point = self._waiting.pop()
            try:
                found = point.load()
            except Exception as error:
                package = point.dist.name if point.dist else "another package"
                raise ConceptError(
                    f"The {self.what} {point.name!r} of {package} cannot be loaded ({error}); "
                    "mend or uninstall that package"
                ) from error
            if not isinstance(found, ModuleType):
                self.register(point.name, found)
