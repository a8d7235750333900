"""The index in a file of its own, and back; and made anew from the concepts when nothing is left of it."""

import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from conceptkit.registry import (
    atomic_files,
    odd_files,
    packed_repair,
    paths,
    salvage,
    storage_errors,
    swap,
)
from conceptkit.registry.blob_store import BlobStore
from conceptkit.registry.database import PATIENCE
from conceptkit.registry.entries import New, insert, now, refresh
from conceptkit.registry.errors import BadBlob, BadName, ConceptError
from conceptkit.registry.index import MARKS, STEPS, Index
from conceptkit.registry.maintenance import REFERENCES, wrong_rows
from conceptkit.registry.names import check_name
from conceptkit.registry.sources import is_digest
from conceptkit.registry.store import Registry

Tick = Callable[[int, int], None]

LOCK = "rebuild.lock"
"""What keeps restoring and rebuilding out of each other's way."""

_TAKEN = "select name from _sqlite_migrations where migration_set = 'conceptkit'"


@dataclass(frozen=True)
class Restored:
    """before: the index as it was, kept; missing: blobs that the backup names and that are gone since."""

    before: str | None
    concepts: int
    missing: int

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Rebuilt:
    """whole: the index was readable, and only its search was made anew; else what came from the headers.

    others: blobs that are no concepts (pictures, prior sets, statistics); bad: names that are none.
    rows: versions whose rows could be read, in the damaged index or in the backup.
    packed: what became of `packed.db`, where it was damaged. missing: blobs that the index names and that are
    not stored.
    """

    whole: bool
    names: int
    versions: int
    others: int = 0
    bad: int = 0
    before: str | None = None
    rows: int = 0
    packed: packed_repair.Repaired | None = None
    missing: int = 0

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


def backup(registry: Registry, file: Path | None = None) -> Path:
    """Write the index to `file`, by default into `home/backups`, while others go on writing.

    The bytes of concepts are not in it. Raises ConceptError when `file` exists.
    """
    with registry.index.using() as conn:
        if file is None:
            with storage_errors.told(registry.home):
                folder = paths.make_private(registry.home / "backups")
                return _copy_to_free(conn, folder, f"index-{now()[:19].replace(':', '')}")
        try:
            with storage_errors.told(file.parent, FileExistsError):
                file.parent.mkdir(parents=True, exist_ok=True)
                _copy(conn, file)
        except FileExistsError:
            raise ConceptError(
                f"{file} is already there, and backups are not overwritten: choose another file."
            ) from None
    return file


def restore(home: Path, file: Path) -> Restored:
    """Take the index back from a backup; the one that was there is kept in `home/backups`.

    Others may go on reading and writing meanwhile: they wait for the moment in which one becomes the other,
    and whatever they had stored until then is in the one that is kept.
    Raises ConceptError when `file` is no whole backup, or of a newer conceptkit. Nothing is changed then.
    """
    check(file)
    _check_place(home)
    with ExitStack() as until_then:
        until_then.enter_context(atomic_files.turn(home, LOCK))
        swap.finish(home)
        with storage_errors.told(home):
            paths.make_private(home / "blobs")
            fresh = _fresh(home)
            source = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
            try:
                _copy(source, fresh)
            finally:
                source.close()
        Index(home, fresh.name).close()  # brings it to the newest schema
        if state(home) == "sound":
            kept: Path | None = _replace_rows(home, fresh)
            _drop(fresh)
        else:
            with storage_errors.told(home):
                kept = _set_aside(home, "before-restore", until_then)
            swap.swap_in(home, fresh)
    with Registry(home) as registry:
        missing = _missing(registry)
        ((count,),) = registry.index.query("select count(*) from names")
    return Restored(str(kept) if kept else None, count, missing)


def _missing(registry: Registry) -> int:
    """How many blobs that the index names are not stored."""
    digests = {row[0] for row in registry.index.query(REFERENCES)}
    return sum(not is_digest(d) or registry.blob_store.size(d) is None for d in digests)


def rebuild(home: Path, file: Path | None = None, tick: Tick = lambda done, total: None) -> Rebuilt:
    """Make the index anew: from the rows of it that can be read, the backup `file` if given, and the headers.

    Before that, a damaged `packed.db` is made anew from what is whole in it.

    An index in which nothing is wrong keeps all its rows, and only its search is made anew. Any other is kept
    in `home/backups`. What no row says any more comes from what the stored concepts say of themselves, where
    these are not: names given by renaming, numbers of versions (given again by the age of the files), tags,
    notes, favourites, history, previews, assets.
    Raises ConceptError when another program uses the index, and nothing is changed then.
    """
    _check_place(home)
    if file is not None:
        check(file)
    with ExitStack() as until_then:
        until_then.enter_context(atomic_files.turn(home, LOCK))
        swap.finish(home)
        repaired = packed_repair.repair(home)
        condition = state(home)
        if file is None and condition == "sound" and (found := _search_anew(home)):
            return replace(found, packed=repaired)
        if condition == "sound":
            until_then.enter_context(_alone(home))
        with storage_errors.told(home):
            paths.make_private(home / "blobs")
            kept = _set_aside(home, "damaged", until_then)
            fresh = _fresh(home)
        index = Index(home, fresh.name)
        store = until_then.enter_context(BlobStore(home))
        try:
            good = salvage.schema(index.conn)
            old = kept if condition != "missing" else None  # a log alone has no rows that can be read
            first = salvage.read(_scratch(home, old), good) if old else salvage.Rows()
            second = salvage.read(_scratch(home, file), good) if file else salvage.Rows()
            with index.writing() as conn:
                filled = salvage.fill(conn, first, second, store)
            report = _from_headers(index, store, tick)
            with index.writing() as conn:
                salvage.say_again(conn, filled)
        finally:
            index.close()
            _drop(_scratch_file(home))
        swap.swap_in(home, fresh)
    return Rebuilt(False, *report, before=str(kept) if kept else None, rows=filled.versions, packed=repaired)


def state(home: Path) -> str:
    """ "missing", "sound" or "damaged"; ConceptError for an index of a newer conceptkit, or one in use."""
    path = home / "index.db"
    if not path.exists() or path.stat().st_size == 0:
        return "damaged" if path.exists() else "missing"
    conn = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=PATIENCE)
    try:
        names = {row[0] for row in conn.execute(_TAKEN)}
        if names - set(STEPS):
            raise ConceptError(f"The index {path} was written by a newer conceptkit: update conceptkit.")
        whole = conn.execute("pragma quick_check").fetchall() == [("ok",)]
        return "sound" if whole and set(STEPS) - names <= MARKS else "damaged"
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if "locked" in str(error):
            raise ConceptError(storage_errors.sentence(error, home)) from error
        return "damaged"
    finally:
        conn.close()


def check(file: Path) -> None:
    """ConceptError unless `file` is a whole index that this version can read."""
    if not file.is_file():
        raise ConceptError(f"There is no backup {file}: `conceptkit backup` writes one.")
    conn = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
    try:
        names = {row[0] for row in conn.execute(_TAKEN)}
        whole = conn.execute("pragma integrity_check").fetchall() == [("ok",)]
    except (sqlite3.Error, UnicodeDecodeError) as error:
        what = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(error))[:200]
        raise ConceptError(
            f"{file} is not a backup of conceptkit's index ({what}): choose another file."
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
    while any(folder.glob(f"{path.name}*")):  # its log may be there alone
        number += 1
        path = folder / f"{stem}-{number}.db"
    return path


def _copy(source: sqlite3.Connection, file: Path) -> None:
    """An online copy: written beside, made durable, renamed. One file, without a log beside it.

    Raises FileExistsError when `file` is there by then.
    """
    if os.path.lexists(file):
        raise FileExistsError(file)
    with atomic_files.unfinished(file, replace=False) as part:
        target = sqlite3.connect(part)
        try:
            source.backup(target)
            target.execute("pragma journal_mode = delete")
        finally:
            target.close()
        paths.sync(part)


def _copy_to_free(source: sqlite3.Connection, folder: Path, stem: str) -> Path:
    """A copy under the first free name, which many may want at the same moment."""
    while True:
        with suppress(FileExistsError):
            _copy(source, file := free(folder, stem))
            return file


def _set_aside(home: Path, why: str, until_then: ExitStack) -> Path | None:
    """The index as it lies there, byte for byte, with its log: copied into `home/backups`. None without one.

    until_then: ends when another index is in its place. The files are open so long, because closing them
    lets go of all locks that this process has on them.
    """
    kept = free(paths.make_private(home / "backups"), why)
    copied = None
    for end in ("-wal", ""):  # the log first, the index itself last
        file = home / f"index.db{end}"
        if odd_files.plain_size(file):
            copied = kept.with_name(kept.name + end)
            _copy_file(until_then.enter_context(file.open("rb")), copied)
        elif not end and file.exists():
            copied = kept
            kept.touch(mode=0o600)
    return copied


def _copy_file(data: BinaryIO, target: Path) -> None:
    atomic_files.write_whole(target, lambda out: shutil.copyfileobj(data, out))


def _replace_rows(home: Path, fresh: Path) -> Path:
    """All rows of a sound index replaced by those of another, in one transaction; the index before, kept.

    It is copied while the write lock is held, so that no writer's word falls between the two.
    """
    index = Index(home)
    try:
        with storage_errors.told(home):
            index.conn.execute("attach ? as source", [str(fresh)])
            folder = paths.make_private(home / "backups")
        with index.writing() as conn:
            before = sqlite3.connect(home / "index.db")
            try:
                kept = _copy_to_free(before, folder, "before-restore")
            finally:
                before.close()
            for table in (*salvage.TABLES, "texts"):
                columns = [f'"{row[1]}"' for row in conn.execute(f"pragma main.table_info({table})")]
                listed = ", ".join(columns)
                conn.execute(f"delete from main.{table}")
                conn.execute(f"insert into main.{table} ({listed}) select {listed} from source.{table}")
    finally:
        index.close()
    return kept


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Nobody else reads or writes the index inside; its log is empty. ConceptError when somebody does."""
    conn = sqlite3.connect(home / "index.db", timeout=0, isolation_level=None)
    try:
        try:
            conn.execute("pragma locking_mode = exclusive")
            conn.execute("pragma journal_mode = delete")
            conn.execute("begin exclusive")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise ConceptError(storage_errors.sentence(error, home)) from error
            raise ConceptError(
                f"Another program uses the index {home / 'index.db'}: stop it, and rebuild again."
            ) from error
        yield
    finally:
        conn.close()


def _fresh(home: Path) -> Path:
    """The name of an index that is not there yet."""
    fresh = home / "index.rebuilt.db"
    _drop(fresh)
    return fresh


def _scratch_file(home: Path) -> Path:
    return home / "index.rebuilt.db.read"


def _scratch(home: Path, file: Path) -> Path:
    """A copy of an index and its log that may be mended while it is read."""
    scratch = _scratch_file(home)
    _drop(scratch)
    for end in ("-wal", ""):
        source = file.with_name(file.name + end)
        if source.exists():
            with source.open("rb") as data:
                _copy_file(data, scratch.with_name(scratch.name + end))
    return scratch


def _drop(file: Path) -> None:
    for end in ("", *swap.ENDS):
        file.with_name(file.name + end).unlink(missing_ok=True)


def _check_place(home: Path) -> None:
    """Raise ConceptError when there is something else where the index belongs."""
    if what := odd_files.kind(home / "index.db"):
        raise ConceptError(f"{home / 'index.db'} is {what}, and is left alone: move it elsewhere.")


def _search_anew(home: Path) -> Rebuilt | None:
    """Search made anew in an index whose rows are good; None when there is more to mend."""
    with Registry(home) as registry:
        try:
            with registry.index.writing() as conn:
                conn.execute("delete from texts where id not in (select id from names)")
                for (number,) in registry.index.query("select id from names"):
                    refresh(conn, number)
                for table in ("texts_fts", "names_fts"):
                    conn.execute(f"insert into {table} ({table}) values ('rebuild')")
        except ConceptError as error:
            if not storage_errors.damaged(error.__cause__ or error):
                raise
            return None
        if list(wrong_rows(registry)):
            return None
        ((names, versions),) = registry.index.query(
            "select (select count(*) from names), (select count(*) from versions)"
        )
        missing = _missing(registry)
    return Rebuilt(True, names, versions, missing=missing)


def _from_headers(index: Index, store: BlobStore, tick: Tick) -> tuple[int, int, int, int]:
    """(names, versions, others, bad) of the blobs that the index does not name, in the order of their age."""
    named = {row[0] for row in index.query(REFERENCES)}
    found = sorted(_dated(store, named))
    names, versions, others, bad = set(), 0, 0, 0
    with index.writing() as conn:
        for done, (changed, digest, size) in enumerate(found, 1):
            try:
                header = store.header(digest)
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


def _dated(store: BlobStore, named: set[str]) -> Iterator[tuple[float, str, int]]:
    """(seconds since 1970, sha256, bytes) of the whole blobs that are not `named`."""
    for digest, size in store.sizes().items():
        if digest not in named and store.whole(digest):
            yield store.added(digest), digest, size
