"""The index in a file of its own, and back; and made anew from the concepts when nothing is left of it."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conceptkit.errors import BadBlob, BadName, ConceptError
from conceptkit.registry import blobs, headers, paths, troubles
from conceptkit.registry.entries import New, insert, now, refresh
from conceptkit.registry.index import STEPS, Index
from conceptkit.registry.keep import REFERENCES
from conceptkit.registry.names import check_name
from conceptkit.registry.store import Registry

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Restored:
    """before: the index as it was, kept; missing: blobs that the backup names and that are gone since."""

    before: str | None
    concepts: int
    missing: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Rebuilt:
    """whole: the index was readable, and only its search was made anew; else what came from the headers.

    others: blobs that are no concepts (pictures, prior sets, statistics); bad: names that are none.
    """

    whole: bool
    names: int
    versions: int
    others: int = 0
    bad: int = 0
    before: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def backup(registry: Registry, file: Path | None = None) -> Path:
    """Write the index to `file`, by default into `home/backups`, while others go on writing.

    The bytes of concepts are not in it. Raises ConceptError when `file` exists.
    """
    if file is None:
        folder = paths.make_private(registry.home / "backups")
        file = free(folder, f"index-{now()[:19].replace(':', '')}")
    if os.path.lexists(file):
        raise ConceptError(f"{file} is already there, and backups are not overwritten: choose another file.")
    with troubles.told(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        _copy(registry.index.conn, file)
    return file


def restore(home: Path, file: Path) -> Restored:
    """Take the index back from a backup; the one that was there is kept in `home/backups`.

    Raises ConceptError when `file` is no whole backup, or of a newer conceptkit. Nothing is changed then.
    """
    check(file)
    kept = None
    if (home / "index.db").exists():
        kept = _set_aside(home, "before-restore", copy=_readable(home / "index.db"))
    with troubles.told(home):
        paths.make_private(home / "blobs")
        conn = sqlite3.connect(home / "index.db", timeout=30.0)
        source = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
        try:
            os.chmod(home / "index.db", 0o600)
            source.backup(conn)  # one transaction of the target: whole or not at all
        finally:
            source.close()
            conn.close()
    with Registry(home) as registry:
        digests = {row[0] for row in registry.index.query(REFERENCES)}
        missing = sum(blobs.size(registry.blobs, digest) is None for digest in digests)
        ((count,),) = registry.index.query("select count(*) from names")
    return Restored(str(kept) if kept else None, count, missing)


def rebuild(home: Path, file: Path | None = None, tick: Tick = lambda done, total: None) -> Rebuilt:
    """Make the index anew from what the stored concepts say of themselves, upon the backup `file` if given.

    A readable index keeps all its rows, and only its search is made anew. One that is not is kept in
    `home/backups`. Not in the headers, and so lost since that backup: names given by renaming, numbers of
    versions (given again by the age of the files), tags, notes, favourites, history, previews, assets.
    """
    if file is None and _readable(home / "index.db"):
        with Registry(home) as registry:
            return _search_anew(registry)
    if file is not None:
        check(file)
    with troubles.told(home):
        paths.make_private(home / "blobs")
        fresh = home / "index.rebuilt.db"
        for left in home.glob("index.rebuilt.db*"):
            left.unlink()
        if file is not None:
            source = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
            _copy(source, fresh)
            source.close()
    index = Index(home, fresh.name)
    try:
        report = _from_headers(index, home / "blobs", tick)
    finally:
        index.close()
    kept = _set_aside(home, "damaged", copy=False) if (home / "index.db").exists() else None
    with troubles.told(home):
        os.replace(fresh, home / "index.db")
        paths.sync(home)
    return Rebuilt(False, *report, before=str(kept) if kept else None)


def check(file: Path) -> None:
    """ConceptError unless `file` is a whole index that this version can read."""
    if not file.is_file():
        raise ConceptError(f"There is no backup {file}: `conceptkit backup` writes one.")
    conn = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
    try:
        query = "select name from _sqlite_migrations where migration_set = 'conceptkit'"
        names = {row[0] for row in conn.execute(query)}
        whole = conn.execute("pragma integrity_check").fetchall() == [("ok",)]
    except sqlite3.Error as error:
        raise ConceptError(
            f"{file} is not a backup of conceptkit's index ({error}): choose another file."
        ) from error
    finally:
        conn.close()
    if not whole:
        raise ConceptError(f"The backup {file} is damaged: choose another one.")
    if names - set(STEPS):
        raise ConceptError(f"The backup {file} was written by a newer conceptkit: update conceptkit.")


def free(folder: Path, stem: str) -> Path:
    """`folder/stem.db`, or the next number when that exists."""
    path, number = folder / f"{stem}.db", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.db"
    return path


def _copy(source: sqlite3.Connection, file: Path) -> None:
    """An online copy: written beside, made durable, renamed. One file, without a log beside it."""
    part = file.with_name(f".{file.name.encode()[:64].decode(errors='ignore')}.{os.urandom(6).hex()}.part")
    os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        target = sqlite3.connect(part)
        try:
            source.backup(target)
            target.execute("pragma journal_mode = delete")
        finally:
            target.close()
        paths.sync(part)
        os.replace(part, file)
        paths.sync(file.parent)
    finally:
        for end in ("", "-journal", "-wal", "-shm"):
            part.with_name(part.name + end).unlink(missing_ok=True)


def _set_aside(home: Path, why: str, *, copy: bool) -> Path:
    """The index kept in `home/backups`: copied when it can be read, else its files are moved as they are."""
    with troubles.told(home):
        kept = free(paths.make_private(home / "backups"), why)
        if copy:
            conn = sqlite3.connect(home / "index.db")
            _copy(conn, kept)
            conn.close()
        else:
            for file in sorted(home.glob("index.db*"), reverse=True):  # the log first, the index itself last
                os.replace(file, kept.with_name(file.name.replace("index.db", kept.name)))
            paths.sync(kept.parent)
            paths.sync(home)
    return kept


def _readable(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    conn = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=30.0)
    try:
        known = {row[0] for row in conn.execute("select name from sqlite_master")}
        return "_sqlite_migrations" in known and conn.execute("pragma quick_check").fetchall() == [("ok",)]
    except sqlite3.Error:
        return False
    finally:
        conn.close()


def _search_anew(registry: Registry) -> Rebuilt:
    with registry.index.writing() as conn:
        conn.execute("delete from texts where id not in (select id from names)")
        for (number,) in registry.index.query("select id from names"):
            refresh(conn, number)
        for table in ("texts_fts", "names_fts"):
            conn.execute(f"insert into {table} ({table}) values ('rebuild')")
        ((names, versions),) = registry.index.query(
            "select (select count(*) from names), (select count(*) from versions)"
        )
    return Rebuilt(True, names, versions)


def _from_headers(index: Index, folder: Path, tick: Tick) -> tuple[int, int, int, int]:
    """(names, versions, others, bad) of the blobs that the index does not name, in the order of their age."""
    named = {row[0] for row in index.query(REFERENCES)}
    found = sorted(_dated(folder, named))
    names, versions, others, bad = set(), 0, 0, 0
    with index.writing() as conn:
        for done, (changed, digest, size) in enumerate(found, 1):
            try:
                header = headers.read_file(blobs.place(folder, digest))
                created = datetime.fromtimestamp(changed, UTC).isoformat(timespec="microseconds")
                new = New(check_name(header.name), b"", header.summary, created=created, event="rebuild")
                insert(conn, new, digest, header, size)
                names.add(header.name)
                versions += 1
            except BadName:
                bad += 1
            except BadBlob:
                others += 1
            tick(done, len(found))
    return len(names), versions, others, bad


def _dated(folder: Path, named: set[str]) -> Iterator[tuple[float, str, int]]:
    """(seconds since 1970, sha256, bytes) of the whole blobs that are not `named`."""
    for digest, file in blobs.walk(folder):
        if digest not in named and blobs.intact(file, digest):
            state = file.stat()
            yield state.st_mtime, digest, state.st_size
