"""Small blobs, many in one file: `blobs/packed.db`, a database of SQLite's beside the index.

As files each would take a block of the disk, 4 kB or more. SQLite writes all of a batch durably or nothing of
it, and keeps several processes out of each other's way. A page has room for several rows, and no row is
longer than a page: `packed_rows` reads whatever rows are whole when SQLite cannot read the file any more.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from conceptkit.registry import odd_files, packed_rows, storage_errors, swap
from conceptkit.registry.database import Database
from conceptkit.registry.errors import BadBlob, ConceptError
from conceptkit.registry.sources import digest_of

FILE = "packed.db"
SMALL = 8 << 10
"""Bytes of the largest blob that is packed; beyond, a file of its own wastes little."""
PAGE = 32 << 10
"""Bytes of a page: large, for what does not fit into the rest of one is put into the next."""
LOG = 4 << 20
"""Bytes of the log after which it is brought into the file."""
SLICE = 500
"""Rows that are read or moved under one lock, so that others get their turn."""
SPARE = 1 << 20
"""Bytes of dead space that are left alone, whatever share of the file they are."""
ROW_COSTS = 110
"""Bytes that a row takes beside its data, its hash twice, and what it does not fill."""

EARLIEST = 1 << 47
"""Microseconds since 1970, in 1974: from here on a number has 8 bytes in a row, as `packed_rows` wants."""

_TABLE = """create table if not exists blobs (id integer primary key, added integer not null,
    bytes integer not null, hash blob not null, data blob not null)"""
_INDEX = "create unique index if not exists blobs_hash on blobs (hash, bytes)"


class PackedBlobs(Database):
    """The packed blobs of the registry in `home`; `create` makes the file.

    Raises ConceptError whenever it cannot be used, in one sentence. What SQLite returns is not verified here.
    """

    def __init__(self, home: Path, file: str = FILE) -> None:
        path = home / "blobs" / file
        if what := odd_files.kind(path):
            raise ConceptError(f"{path} is {what}, which conceptkit did not make: move it elsewhere.")
        with storage_errors.told(home, file=path):
            swap.finish(home, path)
            if stray_log(path):
                raise ConceptError(
                    f"{path} is gone and its log is still there: put it back from a copy of the registry, "
                    f"or move {path.name}-wal elsewhere."
                )
        super().__init__(home, path)

    def begin(self, conn: sqlite3.Connection) -> None:
        """Page size and upkeep; the first two only count while the file is empty."""
        self.patiently(lambda: conn.execute(f"pragma page_size = {PAGE}"))
        self.patiently(lambda: conn.execute("pragma auto_vacuum = incremental"))
        conn.execute("pragma secure_delete = on")  # what was removed is not found again by `packed_rows`
        conn.execute(f"pragma wal_autocheckpoint = {LOG // PAGE}")
        conn.execute(f"pragma journal_size_limit = {LOG}").fetchall()

    def prepare(self, conn: sqlite3.Connection) -> None:
        """Make the table, if it is not there."""
        if not self.readable(conn):
            self.patiently(lambda: conn.execute("begin immediate"))
            conn.execute(_TABLE)
            conn.execute(_INDEX)
            conn.execute("commit")

    def readable(self, conn: sqlite3.Connection) -> bool:
        """Whether the table is there."""
        query = "select count(*) from sqlite_master where name in ('blobs', 'blobs_hash')"
        return self.patiently(lambda: conn.execute(query).fetchone()) == (2,)

    def lost(self) -> ConceptError:
        """The file is gone while somebody had it open."""
        return BadBlob(f"{self.path} is gone: put it back from a copy of the registry, and try again.")

    def explained(self) -> AbstractContextManager[None]:
        """Errors of the system and of SQLite inside leave as ConceptError that names this file."""
        return storage_errors.told(self.home, file=self.path)

    def get(self, digest: str) -> bytes | None:
        """The bytes stored as `digest`, verified, or None when there are none; BadBlob when they are damaged.

        Where SQLite cannot read them any more, or finds others, they are looked for in the bytes of the file.
        """
        damaged = False
        try:
            rows = self.query("select data from blobs where hash = ?", [_raw(digest)])
            for (data,) in rows:
                if isinstance(data, bytes) and digest_of([data]) == digest:
                    return data
            damaged = bool(rows) or bool(self.problems())
        except ConceptError as error:
            if not is_damage(error):
                raise
            damaged = True
        if not damaged:
            return None
        with self.explained():
            for file in self._files():
                if (data := packed_rows.find(file, digest)) is not None:
                    return data
        raise BadBlob(f"The bytes of {digest[:12]}... in {self.path} are damaged.")

    def recover(self) -> Iterator[packed_rows.Row]:
        """Each row that is whole, from the bytes of the file."""
        with self.explained():
            seen: set[str] = set()
            for file in self._files():
                for row in packed_rows.every(file):
                    if row[0] not in seen:
                        seen.add(row[0])
                        yield row

    def has(self, digest: str) -> bool:
        """Whether there is a row of `digest` and its bytes are what they were."""
        rows = self.query("select data from blobs where hash = ?", [_raw(digest)])
        return any(isinstance(data, bytes) and digest_of([data]) == digest for (data,) in rows)

    def sizes(self, digests: Sequence[str]) -> dict[str, int]:
        """sha256 -> bytes, of those of these blobs that there are."""
        found: dict[str, int] = {}
        for start in range(0, len(digests), SLICE):
            some = [_raw(digest) for digest in digests[start : start + SLICE]]
            marks = ", ".join("?" * len(some))
            rows = self.query(f"select hash, bytes from blobs where hash in ({marks})", some)
            found.update((raw.hex(), size) for raw, size in rows)
        return found

    def added(self, digest: str) -> float | None:
        """When it was stored, in seconds since 1970, or None when there is none."""
        rows = self.query("select added from blobs where hash = ?", [_raw(digest)])
        return rows[0][0] / 1e6 if rows else None

    def count(self) -> int:
        """How many blobs there are."""
        return int(self.query("select count(*) from blobs indexed by blobs_hash")[0][0])

    def put(self, datas: Iterable[tuple[str, bytes, float]], damaged: Sequence[str] = ()) -> None:
        """Store (sha256, data, seconds since 1970): all of them or none, durably.

        damaged: the sha256s of rows that are replaced; what else is there stays as it is.
        """
        with self.writing() as conn:
            conn.executemany("delete from blobs where hash = ?", [[_raw(digest)] for digest in damaged])
            for digest, data, when in datas:
                added = max(int(when * 1e6), EARLIEST)
                conn.execute(
                    "insert or ignore into blobs (added, bytes, hash, data) values (?, ?, ?, ?)",
                    [added, len(data), _raw(digest), data],
                )

    def drop(self, digests: Sequence[str]) -> list[str]:
        """Delete the rows of these, in one transaction; those that there were."""
        there = list(self.sizes(digests))
        if there:
            with self.writing() as conn:
                conn.executemany("delete from blobs where hash = ?", [[_raw(digest)] for digest in there])
        return there

    def listing(self) -> Iterator[tuple[str, int]]:
        """(sha256, bytes) of every blob, by sha256; from the index of the table alone."""
        query = f"select hash, bytes from blobs where hash > ? order by hash limit {20 * SLICE}"
        last = b""
        while rows := self.query(query, [last]):
            yield from ((raw.hex(), size) for raw, size in rows if len(raw) == 32)
            last = rows[-1][0]

    def rows(self) -> Iterator[tuple[str, int, bool]]:
        """(sha256, bytes, whether they are what they were) of every blob, in the order of the file."""
        query = f"select id, hash, data from blobs where id > ? order by id limit {SLICE}"
        last = -1
        while (rows := self.query(query, [last])) and rows[-1][0] > last:
            for _, raw, data in rows:
                if isinstance(raw, bytes) and len(raw) == 32 and isinstance(data, bytes):
                    yield raw.hex(), len(data), digest_of([data]) == raw.hex()
            last = rows[-1][0]

    def problems(self) -> list[str]:
        """A sentence when SQLite finds that the file is damaged."""
        try:
            said = [row[0] for row in self.query("pragma integrity_check(1)")]
        except ConceptError as error:
            if not is_damage(error):
                raise
            return [str(error)]
        text = " ".join(str(said[0]).split())[:100] if said != ["ok"] else ""
        return [storage_errors.damaged_file(text, self.path)] if text else []

    def compact(self) -> int:
        """Give dead space back to the disk where it is a third of the file; the bytes given back.

        In short transactions, which need room on the disk for SLICE rows each: a full disk is no hindrance.
        """
        before = self._pages()
        ((count, live),) = self.query(
            "select count(*), coalesce(sum(bytes), 0) from blobs indexed by blobs_hash"
        )
        dead = before * PAGE - live - count * ROW_COSTS
        if dead <= max(SPARE, live // 2):
            return 0
        ((end,),) = self.query("select coalesce(max(id), 0) from blobs")
        first: int | None = 0
        while first is not None:
            first = self._move(first, end)
        with self.using() as conn, self.explained():
            self.patiently(lambda: conn.execute("pragma wal_checkpoint(truncate)").fetchall())
        return (before - self._pages()) * PAGE

    def _move(self, first: int, end: int) -> int | None:
        """Move SLICE rows from `first` on behind the last, and cut off what became free; the next first."""
        with self.writing() as conn:
            query = f"select id from blobs where id between ? and ? order by id limit {SLICE}"
            ids = [row[0] for row in conn.execute(query, [first, end])]
            if ids:
                ((last,),) = conn.execute("select max(id) from blobs").fetchall()
                shift = "update blobs set id = id + ? where id between ? and ?"
                conn.execute(shift, [last + 1 - ids[0], ids[0], ids[-1]])
            for _ in range(conn.execute("pragma freelist_count").fetchone()[0]):
                conn.execute("pragma incremental_vacuum")  # cuts off one page, as Python steps through it
        return ids[-1] + 1 if ids else None

    def _pages(self) -> int:
        return int(self.query("pragma page_count")[0][0])

    def _files(self) -> tuple[Path, Path]:
        return self.path, self.path.with_name(f"{self.path.name}-wal")


def stray_log(path: Path) -> bool:
    """Whether a database is gone that was in use: SQLite would delete its log."""
    log = path.with_name(f"{path.name}-wal")
    return not odd_files.plain_size(path) and bool(odd_files.plain_size(log))


def is_damage(error: ConceptError) -> bool:
    """Whether SQLite said that a file is damaged."""
    return storage_errors.damaged(error.__cause__ or error)


def _raw(digest: str) -> bytes:
    return bytes.fromhex(digest)
