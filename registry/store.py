"""The registry: names point at versions, versions at blobs; nothing is ever overwritten.

A blob is made durable first and becomes visible in one transaction after that, so a concept is there
whole or not at all, whatever is killed when.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlite_utils import Database

from conceptkit.errors import BadBlob, ConceptError, NameTaken, UnknownConcept
from conceptkit.registry import blobs, paths
from conceptkit.registry.migrations import migrations
from conceptkit.registry.names import check_name, split_version, unknown

PATIENCE = 30.0
"""Seconds to wait for another process that is writing."""


@dataclass(frozen=True)
class Entry:
    """One version of one concept in the index."""

    name: str
    version: int
    hash: str  # sha256 of the blob, hex
    bytes: int  # size of the blob
    created: str  # UTC, ISO 8601
    summary: dict[str, Any] = field(default_factory=dict)
    preview: str | None = None  # sha256 of a PNG

    @property
    def ref(self) -> str:
        """`my_dog@2`, which reads this version for good."""
        return f"{self.name}@{self.version}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Entries = list[Entry]


class Registry:
    """The concepts on this machine, under `home` (by default `paths.home()`). Usable as a context manager."""

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self.home = Path(home).expanduser().absolute() if home is not None else paths.home()
        self._blobs = self.home / "blobs"
        try:
            paths.make_private(self._blobs)
            self._db = _open(self.home / "index.db")
        except (OSError, sqlite3.Error) as error:
            raise ConceptError(
                f"The registry in {self.home} cannot be opened ({error}): "
                "set CONCEPTKIT_HOME to a folder that you may write to."
            ) from error

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "Registry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # concepts

    def check_free(self, name: str, *, new_version: bool = False) -> None:
        """Raise now what `add` would raise later: BadName, or NameTaken unless `new_version`."""
        check_name(name)
        if not new_version and (taken := self._versions(name)):
            raise _taken(taken[-1])

    def add(self, name: str, data: bytes, summary: Mapping[str, Any], *, new_version: bool = False) -> Entry:
        """Store `data` under `name`, durably when this returns.

        Raises BadName, and NameTaken when the name exists and `new_version` was not asked for.
        """
        self.check_free(name, new_version=new_version)
        digest = blobs.put(self._blobs, data)
        with self._writing():
            blobs.put(self._blobs, data)  # a removal may have dropped the same bytes just before the lock
            taken = self._versions(name)
            if taken and not new_version:
                raise _taken(taken[-1])
            entry = Entry(
                name,
                taken[-1].version + 1 if taken else 1,
                digest,
                len(data),
                _now(),
                json.loads(json.dumps(dict(summary))),
            )
            self._table("versions").insert({**asdict(entry), "summary": json.dumps(entry.summary)})
            self._table("names").upsert({"name": name, "version": entry.version}, pk="name")
        return entry

    def get(self, name: str, version: int | None = None) -> Entry:
        """The newest version of `name`, or the one asked for as `version` or as `"my_dog@2"`.

        Raises UnknownConcept, with the nearest name or the versions there are.
        """
        bare, written = split_version(name)
        version = written if version is None else version
        if not (found := self._versions(bare)):
            raise unknown(bare, (row["name"] for row in self._db.query("select name from names")))
        if version is None:
            (head,) = self._db.query("select version from names where name = ?", [bare])
            version = head["version"]
        for entry in found:
            if entry.version == version:
                return entry
        numbers = ", ".join(str(entry.version) for entry in found)
        raise UnknownConcept(f"{bare!r} has no version {version}: ask for one of {numbers}.")

    def read(self, entry: Entry | str) -> bytes:
        """The bytes of an entry or a name, verified; BadBlob when the disk no longer holds them."""
        entry = self.get(entry) if isinstance(entry, str) else entry
        try:
            return blobs.get(self._blobs, entry.hash)
        except BadBlob as error:
            raise BadBlob(
                f"{entry.ref} cannot be read, because {_inside(error)}: "
                f"remove it with `conceptkit rm {entry.ref}` and add it again."
            ) from error

    def list(self) -> Entries:
        """The entry that each name points at, by name."""
        query = """select versions.* from names join versions using (name, version)
                   order by name collate nocase, name"""
        return [_entry(row) for row in self._db.query(query)]

    def versions(self, name: str) -> Entries:
        """All versions of `name`, oldest first; UnknownConcept when there are none."""
        return self._versions(self.get(name).name)

    def remove(self, name: str) -> Entries:
        """Forget `name` with all its versions, or only `"my_dog@2"`; returns what was removed.

        Raises UnknownConcept. Bytes that nothing else points at are deleted.
        """
        bare, version = split_version(name)
        with self._writing():
            gone = [self.get(name)] if version is not None else self.versions(bare)
            for entry in gone:
                self._table("versions").delete((entry.name, entry.version))
            if left := self._versions(bare):
                self._table("names").upsert({"name": bare, "version": left[-1].version}, pk="name")
            else:
                self._table("names").delete(bare)
        self._drop_unused(*(entry.hash for entry in gone), *(entry.preview for entry in gone))
        return gone

    # what belongs to a concept, or to many

    def set_preview(self, name: str, version: int, png: bytes) -> None:
        """Keep a picture of that version; UnknownConcept when there is no such version."""
        old = self.get(name, version).preview
        with self._writing():
            self.get(name, version)
            digest = blobs.put(self._blobs, png)
            self._table("versions").update((name, version), {"preview": digest})
        self._drop_unused(old)

    def preview(self, entry: Entry | str) -> bytes | None:
        """The PNG kept for an entry or a name, or None; BadBlob when it is damaged."""
        entry = self.get(entry) if isinstance(entry, str) else entry
        return blobs.get(self._blobs, entry.preview) if entry.preview else None

    def put_asset(self, key: str, data: bytes) -> str:
        """Keep bytes that many concepts share under `key`, replacing an older one; returns their sha256."""
        old = [row["hash"] for row in self._db.query("select hash from assets where key = ?", [key])]
        with self._writing():
            digest = blobs.put(self._blobs, data)
            row = {"key": key, "hash": digest, "bytes": len(data), "created": _now()}
            self._table("assets").upsert(row, pk="key")
        self._drop_unused(*old)
        return digest

    def get_asset(self, key: str) -> bytes | None:
        """The bytes kept under `key`, or None. A damaged asset is None too: it can be made again."""
        for row in self._db.query("select hash from assets where key = ?", [key]):
            try:
                return blobs.get(self._blobs, row["hash"])
            except BadBlob:
                return None
        return None

    def _table(self, name: str) -> Any:
        return self._db[name]

    def _versions(self, name: str) -> Entries:
        query = "select * from versions where name = ? order by version"
        return [_entry(row) for row in self._db.query(query, [name])]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction that holds the write lock from its first line, rolled back on any exception."""
        self._db.conn.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._db.rollback()
            raise
        self._db.commit()

    def _drop_unused(self, *digests: str | None) -> None:
        """Delete the bytes that no row names. Under the lock, so that nobody begins to use them meanwhile."""
        query = """select 1 from versions where ? in (hash, preview)
                   union all select 1 from assets where hash = ?"""
        with self._writing():
            for digest in {digest for digest in digests if digest}:
                if not list(self._db.query(query, [digest, digest])):
                    blobs.drop(self._blobs, digest)


def _open(path: Path) -> Database:
    """The index, brought to the newest schema; several processes may do this at once."""
    db = Database(sqlite3.connect(path, timeout=PATIENCE))
    deadline = time.monotonic() + PATIENCE
    while db.execute("pragma journal_mode").fetchone()[0] != "wal":
        try:
            db.conn.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError:  # this one pragma does not wait for its turn
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    if migrations.pending(db):
        db.conn.execute("begin immediate")
        migrations.apply(db)
        db.commit()
    return db


def _entry(row: Mapping[str, Any]) -> Entry:
    return Entry(**{**row, "summary": json.loads(row["summary"])})


def _taken(newest: Entry) -> NameTaken:
    return NameTaken(
        f"{newest.name!r} is already in the registry (version {newest.version}): choose another name, "
        "or keep both with --new-version (in Python new_version=True)."
    )


def _inside(error: Exception) -> str:
    """A sentence as part of another one."""
    text = str(error).rstrip(".")
    return text[:1].lower() + text[1:]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
