"""The files of other programs that were found on this machine: a table of its own beside the index.

They stay where they are. The table may be thrown away: scanning makes it anew, but for the tags.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conceptkit.registry import paths
from conceptkit.registry.errors import ConceptError, UnknownConcept
from conceptkit.registry.library.describe import SUFFIXES, Described, describe

FILE = "library.db"
SAVED_EVERY = 64
"""Files after which a scan keeps what it has found, so that one that is stopped goes on from there."""
COPIES = 16
"""Files with the same bytes among which one that was moved is looked for."""
SORTS = {
    "name": "name collate nocase, path",
    "date": "modified desc, path",
    "size": "bytes desc, path",
    "added": "added desc, path",
}
_SCHEMA = """
pragma journal_mode = wal;
pragma synchronous = normal;
create table if not exists files (
    path text primary key, name text not null, bytes integer not null, modified integer not null,
    added integer not null, kind text not null, family text, words text not null, sha256 text not null,
    tensors text not null, preview text, tags text not null default '[]');
create index if not exists files_name on files (name);
create index if not exists files_sha256 on files (sha256);
create index if not exists files_tensors on files (tensors);
"""
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Found:
    """A file that was found. modified: nanoseconds since 1970."""

    path: Path
    name: str
    bytes: int
    modified: int
    about: Described
    tags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        told = {"path": str(self.path), "name": self.name, "bytes": self.bytes, "modified": self.modified}
        return told | self.about.to_json() | {"tags": list(self.tags)}


@dataclass
class Scan:
    """What a scan came to: counts, and sentences about files that could not be read."""

    files: int = 0
    new: int = 0
    changed: int = 0
    moved: int = 0
    gone: int = 0
    duplicates: int = 0
    problems: list[str] = field(default_factory=list)


class Library:
    """The table under a home. Usable as a context manager. Raises ConceptError when it cannot be opened."""

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self.home = paths.home() if home is None else paths.expanded(home).absolute()
        paths.make_private(self.home)
        file = self.home / FILE
        try:
            self._conn = sqlite3.connect(file, timeout=30)
            self._conn.executescript(_SCHEMA)
            os.chmod(file, 0o600)
        except sqlite3.Error as error:
            raise ConceptError(
                f"{file} cannot be read ({error}); move it elsewhere, and scan again"
            ) from error

    def close(self) -> None:
        """Let go of the table."""
        self._conn.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scan(self, folder: Path, tick: Tick = lambda done, total: None) -> Scan:
        """Find the files below a folder; those that are known and unchanged are not read again.

        A file that was moved is known by its hash and keeps its tags. What is stopped goes on from there at
        the next call. Raises ConceptError when there is no such folder.
        """
        root = folder.expanduser().absolute()
        if not root.is_dir():
            raise ConceptError(f"{folder} is no folder; name the one that your LoRAs are in")
        done = Scan()
        there = sorted(_walk(root, done.problems))
        known = {row[0]: row[1:] for row in self._rows("select path, bytes, modified from files")}
        present = {path for path, _, _ in there}
        lost = {path for path in known if _below(path, root) and path not in present}
        with self._told():
            for number, (path, size, modified) in enumerate(there, 1):
                if known.get(path) != (size, modified):
                    self._take(path, size, modified, path in known, lost, done)
                if number % SAVED_EVERY == 0:
                    self._conn.commit()
                tick(number, len(there))
            self._conn.executemany("delete from files where path = ?", [[path] for path in lost])
            self._conn.commit()
        done.files, done.gone = len(there), len(lost)
        done.duplicates = sum(len(group) - 1 for group in self.duplicates() if _inside(group, root))
        return done

    def search(self, words: Sequence[str] = (), *, sort: str = "name", **only: str | None) -> list[Found]:
        """Files whose name, words, tags or path have all `words`, in the order of a key of SORTS.

        only: kind, family or tag, of which the files must be.
        """
        condition: list[str] = []
        values: list[str | None] = []
        for word in words:
            condition.append("instr(lower(name || ' ' || words || ' ' || tags || ' ' || path), ?)")
            values.append(word.lower())
        for column in ("kind", "family"):
            if only.get(column):
                condition.append(f"{column} = ? collate nocase")
                values.append(only[column])
        if only.get("tag"):
            condition.append("exists (select 1 from json_each(tags) where value = ?)")
            values.append(only["tag"])
        where = f"where {' and '.join(condition)}" if condition else ""
        return [_found(row) for row in self._rows(f"{_SELECT} {where} order by {SORTS[sort]}", values)]

    def duplicates(self) -> list[list[Found]]:
        """Files whose tensors are the same, whatever they are called and whatever their headers say."""
        rows = self._rows(
            f"{_SELECT} where tensors in (select tensors from files group by tensors having count(*) > 1) "
            "order by tensors, path"
        )
        groups: dict[str, list[Found]] = {}
        for found in map(_found, rows):
            groups.setdefault(found.about.tensors, []).append(found)
        return list(groups.values())

    def get(self, name: str) -> Found:
        """The file of that name, path or hash. Raises UnknownConcept, ConceptError when several are meant."""
        text = name.lower()
        rows = self._rows(
            f"{_SELECT} where name = ? or path = ? or (length(?) >= 8 and sha256 like ? || '%') "
            "order by path",
            [name, str(Path(name).expanduser().absolute()), text, text if text.isalnum() else "-"],
        )
        found = [_found(row) for row in rows]
        if not found:
            raise UnknownConcept(f"No file {name[:80]!r} was found; scan its folder with `conceptkit scan`")
        if len({one.about.tensors for one in found}) > 1:
            listed = ", ".join(str(one.path) for one in found[:5])
            raise ConceptError(f"{len(found)} files are called {name}: {listed}; name one by its path")
        return next((one for one in found if one.path.is_file()), found[0])

    def tag(self, found: Iterable[Found], add: Sequence[str] = (), remove: Sequence[str] = ()) -> int:
        """Put tags on files, or take them off, all in one; returns how many files those are."""
        count = 0
        with self._told():
            for one in found:
                tags = [tag for tag in dict.fromkeys([*one.tags, *add]) if tag not in remove]
                row = [json.dumps(tags, ensure_ascii=False), str(one.path)]
                self._conn.execute("update files set tags = ? where path = ?", row)
                count += 1
            self._conn.commit()
        return count

    def _take(self, path: str, size: int, modified: int, known: bool, lost: set[str], done: Scan) -> None:
        try:
            about = describe(Path(path))
        except OSError as error:
            done.problems.append(f"{path} cannot be read ({error.strerror}); it is left out.")
            return
        if about.kind == "damaged":
            done.problems.append(f"{path} is no whole file; it may be copied by half, fetch it again.")
        tags = "[]"
        own = self._rows("select path, tags from files where path = ? and sha256 = ?", [path, about.sha256])
        query = f"select path, tags from files where sha256 = ? limit {COPIES}"
        same = self._rows(query, [about.sha256]) if not own else []
        before = own or [row for row in same if row[0] in lost or not os.path.lexists(row[0])]
        if before:
            tags = before[0][1]
        if before and not known:
            lost.discard(before[0][0])
            self._conn.execute("delete from files where path = ?", [before[0][0]])
            done.moved += 1
        elif known:
            done.changed += 1
        else:
            done.new += 1
        name = Path(path).stem
        words = json.dumps(list(about.words), ensure_ascii=False)
        told = [about.kind, about.family, words, about.sha256, about.tensors, about.preview, tags]
        query = f"insert or replace into files values ({', '.join('?' * 12)})"
        self._conn.execute(query, [path, name, size, modified, modified, *told])

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._told():
            return self._conn.execute(query, values).fetchall()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._conn.rollback()
            raise ConceptError(
                f"{self.home / FILE} cannot be used ({error}); move it elsewhere, and scan again"
            ) from error


_SELECT = "select path, name, bytes, modified, kind, family, words, sha256, tensors, preview, tags from files"


def _found(row: Sequence[Any]) -> Found:
    path, name, size, modified, kind, family, words, sha256, tensors, preview, tags = row
    about = Described(kind, family, tuple(json.loads(words)), sha256, tensors, preview)
    return Found(Path(path), name, size, modified, about, tuple(json.loads(tags)))


def _walk(root: Path, problems: list[str]) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, modified) of the files below a folder that may hold concepts; links are not followed."""
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                        state = entry.stat()
                        yield entry.path, state.st_size, state.st_mtime_ns
        except OSError as error:
            problems.append(f"{error.filename or folder} cannot be read ({error.strerror}); it is left out.")


def _below(path: str, root: Path) -> bool:
    return path.startswith(f"{root}{os.sep}")


def _inside(group: Iterable[Found], root: Path) -> bool:
    return any(_below(str(one.path), root) for one in group)
