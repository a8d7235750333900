"""The registry: names point at versions, versions at blobs; nothing is ever overwritten.

A blob is made durable first and becomes visible in one transaction after that, so a concept is there
whole or not at all, whatever is killed when. Blobs are deleted only under the write lock, and only those that
no row names; whoever is about to name one looks, under the same lock, whether it is still there.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

from conceptkit.registry import (
    concept_header,
    merge_recipe,
    odd_files,
    paths,
    spelling,
    storage_errors,
    swap,
    trash_files,
)
from conceptkit.registry.blob_store import BlobStore, holds_any
from conceptkit.registry.entries import (
    COLUMNS,
    HEADS,
    POINTS,
    Batch,
    Entry,
    New,
    from_row,
    insert,
    now,
    record,
    refresh,
)
from conceptkit.registry.errors import BadBlob, ConceptError, NameTaken, UnknownConcept
from conceptkit.registry.index import Index, gone, has_index, has_stray_log
from conceptkit.registry.names import check_name, split_version, unknown
from conceptkit.registry.sources import Source, is_digest

__all__ = ["Entries", "Entry", "New", "Registry"]

Entries = list[Entry]
Digests = list[str]


class Registry:
    """The concepts on this machine, under `home` (by default `paths.home()`). Usable as a context manager.

    Any number of threads may use one, and a program may open several on one home. After `close`, which waits
    for what other threads are doing, every use is a ConceptError. One that is forgotten is closed too.
    Every method may raise ConceptError, when the disk is full, read-only, damaged or without locks.
    """

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self.home = paths.expanded(home).absolute() if home is not None else paths.home()
        self.blobs = self.home / "blobs"
        swap.finish(self.home)
        with storage_errors.told(self.home):
            if (not has_index(self.home) and holds_any(self.home)) or has_stray_log(self.home):
                raise ConceptError(gone(self.home))
            paths.make_private(self.blobs)
        self.index = Index(self.home)
        self.blob_store = BlobStore(self.home)

    def close(self) -> None:
        """Let go of the index and of packed blobs, in all threads; more than once does no harm."""
        self.index.close()
        self.blob_store.close()

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

    def spelled(self, name: str) -> str:
        """The name in the registry that differs from this one at most by case, or else `name` itself."""
        query = "select name from names where name = ? collate nocase order by name <> ? limit 1"
        rows = self.index.query(query, [name, name])
        return str(rows[0][0]) if rows else name

    def add(
        self,
        name: str,
        data: bytes,
        summary: Mapping[str, Any],
        *,
        new_version: bool = False,
        uses: Mapping[str, bytes | str] | None = None,
    ) -> Entry:
        """Store `data` under `name`, durably when this returns; `uses` as in `New`.

        Raises BadName, and NameTaken when the name exists and `new_version` was not asked for.
        """
        return self.add_many([New(name, data, summary, uses or {})], new_version=new_version)[0]

    def add_many(
        self,
        news: Sequence[New],
        *,
        new_version: bool = False,
        also: Callable[[sqlite3.Connection, Entries], object] | None = None,
    ) -> Entries:
        """Store all of them or none, durably when this returns; they wait for the disk only once.

        also: what else is to become visible with them, in the same transaction. Raises what `add` raises.
        """
        for new in news:
            self.check_free(new.name, new_version=new_version)
        datas = [data for new in news for data in _datas(new)]
        every = self._store(datas)
        stored = iter(every)
        hashes = [[next(stored) for _ in _datas(new)] for new in news]
        batch, added = Batch(), []
        with self.index.writing() as conn:
            self._still_there(dict(zip(every, datas, strict=True)))
            for new, digests in zip(news, hashes, strict=True):
                if not new_version and (taken := self._versions(new.name)):
                    raise _taken(taken[-1])
                header = concept_header.read_if_any(new.data) if new.summary.get("parents") else None
                added.append(insert(conn, new, digests[0], header, batch=batch))
                used = iter(digests[1:])
                given = {r: next(used) if isinstance(b, bytes) else b for r, b in new.uses.items()}
                self._set_uses(added[-1], given)
                if new.preview is not None:
                    added[-1] = self._show(added[-1], digests[-1])
            batch.finish(conn)
            if also:
                also(conn, added)
        return added

    def get(self, name: str, version: int | None = None) -> Entry:
        """The version that `name` points at, or the one asked for as `version` or as `"my_dog@2"`.

        Raises UnknownConcept, with the nearest name or the versions there are, or how to take back what was
        removed.
        """
        bare, written = split_version(name)
        version = written if version is None else version
        if version is None:
            rows = self.index.query(f"select {COLUMNS} from {HEADS} where n.name = ?", [bare])
        else:
            query = f"select {COLUMNS} from versions v where v.name = ? and v.version = ?"
            rows = self.index.query(query, [bare, version])
        if rows:
            return from_row(rows[0])
        if others := self._versions(bare):
            numbers = ", ".join(str(other.version) for other in others)
            advice = trash_files.advice(self.home, bare, version) or f"ask for one of {numbers}."
            raise UnknownConcept(f"{bare!r} has no version {version}: {advice}")
        if back := trash_files.advice(self.home, bare, version):
            raise UnknownConcept(f"There is no concept named {bare[:80]!r}: {back}")
        raise unknown(bare, spelling.likely(self.index, bare))

    def read(self, entry: Entry | str) -> bytes:
        """The bytes of an entry or a name, verified; BadBlob when the disk no longer holds them."""
        entry = self.get(entry) if isinstance(entry, str) else entry
        with self._explained(entry):
            return self._blob(entry.hash)

    def source(self, entry: Entry | str) -> Source:
        """The same bytes to be read piece by piece, verified now; raises what `read` raises."""
        entry = self.get(entry) if isinstance(entry, str) else entry
        with self._explained(entry), storage_errors.told(self.home):
            return self.blob_store.source(entry.hash)

    def has(self, name: str) -> bool:
        """Whether a name is in the registry."""
        return bool(self.index.query("select 1 from names where name = ?", [split_version(name)[0]]))

    def list(self) -> Entries:
        """The entry that each name points at, by name; `search.page` gives them in pages."""
        query = f"select {COLUMNS} from {HEADS} order by n.name collate nocase, n.name"
        return [from_row(row) for row in self.index.query(query)]

    def versions(self, name: str) -> Entries:
        """All versions of `name`, oldest first; UnknownConcept when there are none."""
        return self._versions(self.get(name).name)

    def remove(self, name: str) -> Entries:
        """Forget `name` with all its versions and checkpoint, or only `"my_dog@2"`; returns what was removed.

        Raises UnknownConcept, and ConceptError for a part that a merge stored as its recipe needs. Bytes that
        nothing else points at are deleted.
        """
        bare, version = split_version(name)
        self.blob_store.check_writable()
        with self.index.writing() as conn:
            gone = [self.get(name)] if version is not None else self.versions(bare)
            merge_recipe.check_unneeded(self, gone)
            digests: set[str | None] = {entry.preview for entry in gone}
            ((number, head),) = self.index.query("select id, version from names where name = ?", [bare])
            for entry in gone:
                digests |= {entry.hash, *self.used(entry).values()}
                for table in ("uses", "parents"):
                    conn.execute(f"delete from {table} where version_id = {_ID}", [bare, entry.version])
                conn.execute("delete from versions where name = ? and version = ?", [bare, entry.version])
                record(conn, number, bare, "remove", entry.version, entry.hash)
            if not (left := self._versions(bare)):
                for table, key in (
                    ("names", "id"),
                    ("texts", "id"),
                    ("tags", "name_id"),
                    ("notes", "name_id"),
                ):
                    conn.execute(f"delete from {table} where {key} = ?", [number])
            elif all(entry.version != head for entry in left):
                version = self._pointed_at(number, left)
                conn.execute("update names set version = ? where id = ?", [version, number])
                refresh(conn, number)
        self.drop_unused(*digests)
        if version is None and (checkpoint := odd_files.checkpoint_of(self.home, bare)):
            with storage_errors.told(self.home):
                checkpoint.unlink(missing_ok=True)
        return gone

    # what belongs to a concept, or to many

    def set_preview(self, name: str, version: int, png: bytes | Source) -> None:
        """Keep a picture of that version; UnknownConcept when there is no such version."""
        old = self.get(name, version).preview
        (digest,) = self._store([png])
        with self.index.writing() as conn:
            self.get(name, version)
            self._still_there({digest: png})
            conn.execute(
                "update versions set preview = ? where name = ? and version = ?", [digest, name, version]
            )
        self.drop_unused(old)

    def preview(self, entry: Entry | str) -> bytes | None:
        """The PNG kept for an entry or a name, or None; BadBlob when it is damaged."""
        entry = self.get(entry) if isinstance(entry, str) else entry
        return self._blob(entry.preview) if entry.preview else None

    def preview_source(self, entry: Entry) -> Source | None:
        """The same picture to be read piece by piece, verified now; raises what `preview` raises."""
        with storage_errors.told(self.home):
            return self.blob_store.source(entry.preview) if entry.preview else None

    def put_asset(self, key: str, data: bytes) -> str:
        """Keep bytes that many concepts share under `key`, replacing an older one; returns their sha256."""
        old = [digest for (digest,) in self.index.query("select hash from assets where key = ?", [key])]
        (digest,) = self._store([data])
        with self.index.writing() as conn:
            self._still_there({digest: data})
            row = [key, digest, len(data), now()]
            conn.execute("insert or replace into assets (key, hash, bytes, created) values (?, ?, ?, ?)", row)
        self.drop_unused(*old)
        return digest

    def get_asset(self, key: str) -> bytes | None:
        """The bytes kept under `key`, or None. A damaged asset is None too: it can be made again."""
        for (digest,) in self.index.query("select hash from assets where key = ?", [key]):
            try:
                return self._blob(digest)
            except BadBlob:
                return None
        return None

    def use(self, entry: Entry, uses: Mapping[str, bytes | str]) -> dict[str, str]:
        """Keep further blobs with a version, by role, as in `New`; returns their sha256s."""
        datas = [data for data in uses.values() if isinstance(data, bytes)]
        stored = iter(self._store(datas))
        given = {role: next(stored) if isinstance(data, bytes) else data for role, data in uses.items()}
        with self.index.writing():
            self.get(entry.name, entry.version)
            self._still_there({given[role]: data for role, data in uses.items() if isinstance(data, bytes)})
            self._set_uses(entry, given)
        return given

    def used(self, entry: Entry) -> dict[str, str]:
        """The sha256s of the further blobs of a version, by role."""
        query = f"select role, hash from uses where version_id = {_ID} order by role"
        return dict(self.index.query(query, [entry.name, entry.version]))

    def read_used(self, entry: Entry, role: str) -> bytes | None:
        """The bytes in that role, verified, or None; BadBlob when they are damaged."""
        digest = self.used(entry).get(role)
        return self._blob(digest) if digest else None

    def drop_unused(self, *digests: str | None) -> int:
        """Delete those bytes that no row names, and count them; under the lock, so that nobody begins to."""
        wanted = {digest for digest in digests if digest and is_digest(digest)}
        if not wanted:
            return 0
        with self.index.writing():
            unused = [digest for digest in wanted if not self.index.query(NAMED, [digest] * 4)]
            return self.blob_store.drop(unused)

    def pack(self, *digests: str) -> int:
        """Move small blobs that have files of their own into `packed.db`, and count them; under the lock."""
        with self.index.writing():
            return self.blob_store.pack(digests)

    def _show(self, entry: Entry, digest: str) -> Entry:
        """Give a version its preview, which is stored; in a transaction."""
        query = "update versions set preview = ? where name = ? and version = ?"
        self.index.conn.execute(query, [digest, entry.name, entry.version])
        return replace(entry, preview=digest)

    def _versions(self, name: str) -> Entries:
        query = f"select {COLUMNS} from versions v where v.name = ? order by v.version"
        return [from_row(row) for row in self.index.query(query, [name])]

    def _pointed_at(self, number: int, left: Entries) -> int:
        """The version among these that a name pointed at last, or else the one that was made last."""
        query = f"select version from history where name_id = ? and {POINTS} order by id desc"
        there = {entry.version for entry in left}
        trail = (version for (version,) in self.index.query(query, [number]) if version in there)
        aside = "select version from history where name_id = ? and event like '% aside'"
        others = {version for (version,) in self.index.query(aside, [number])}
        return next(trail, max(left, key=lambda e: (e.version not in others, e.created, e.version)).version)

    @contextmanager
    def _explained(self, entry: Entry) -> Iterator[None]:
        """Say of a version that its bytes cannot be read, and what to do about that."""
        try:
            yield
        except BadBlob as error:
            if not self.index.query("select 1 from versions where hash = ?", [entry.hash]):
                raise UnknownConcept(f"{entry.ref} has just been removed: add it again.") from error
            raise BadBlob(
                f"{entry.ref} cannot be read, because {_inside(error)}: "
                f"remove it with `conceptkit rm {entry.ref}` and add it again."
            ) from error

    def _blob(self, digest: str) -> bytes:
        with storage_errors.told(self.home):
            return self.blob_store.get(digest)

    def _store(self, datas: Sequence[bytes | Source]) -> Digests:
        if self.index.read_only:
            with self.index.writing():  # says so
                pass
        with storage_errors.told(self.home):
            return self.blob_store.put_many(datas)

    def _still_there(self, datas: Mapping[str, bytes | Source]) -> None:
        """Store again what somebody has removed since it was stored; under the lock, so that it stays."""
        lacking = self.blob_store.lacking({digest: Source.of(data).size for digest, data in datas.items()})
        if lacking:
            self.blob_store.put_many([datas[digest] for digest in lacking])

    def _set_uses(self, entry: Entry, given: Mapping[str, str]) -> None:
        for role, digest in given.items():
            if self.blob_store.size(digest) is None:
                raise ConceptError(
                    f"{entry.ref} cannot use {digest[:80]!r}, which is not stored: store it first."
                )
            query = f"insert or replace into uses values ({_ID}, ?, ?)"
            with self.index.using() as conn:
                conn.execute(query, [entry.name, entry.version, role, digest])


NAMED = """select 1 from versions where hash = ? union all select 1 from versions where preview = ?
           union all select 1 from assets where hash = ? union all select 1 from uses where hash = ?"""

_ID = "(select id from versions where name = ? and version = ?)"


def _datas(new: New) -> list[bytes | Source]:
    shown = [] if new.preview is None else [new.preview]
    return [new.data, *(data for data in new.uses.values() if isinstance(data, bytes)), *shown]


def _taken(newest: Entry) -> NameTaken:
    return NameTaken(
        f"{newest.name!r} is already in the registry (version {newest.version}): choose another name, "
        "or keep both with --new-version (in Python new_version=True)."
    )


def _inside(error: Exception) -> str:
    """A sentence as part of another one."""
    text = str(error).rstrip(".")
    return text[:1].lower() + text[1:]
