"""The index file: opened, brought to the newest schema, read without waiting, written one process at a time.

In WAL mode a reader sees the last commit and never waits for a writer. SQLite's own waiting is off; the two
waits there are, for the write lock and for a reader met by a closing process, happen here and are counted.
"""

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from conceptkit.registry import blobs, storage_errors
from conceptkit.registry.connections import Connections, create
from conceptkit.registry.errors import ConceptError

PATIENCE = 30.0
"""Seconds to wait for another process that is writing."""

STEPS = ("m001_names_versions_assets", "m002_catalogue", "m003_search")
"""The names of all migrations, here so that reading needs no import of sqlite-utils."""
FASTER = {"versions_bytes": "versions (bytes)", "versions_created": "versions (created)"}
"""Indexes that only make searching faster. They are no step: without them all is as whole, and a conceptkit
that does not know them may write beside them."""

Row = tuple[Any, ...]
Result = TypeVar("Result")


class Index:
    """The index in `home/index.db`, usable from any thread: each has a connection of its own.

    Raises ConceptError whenever it cannot be used, in one sentence.
    """

    def __init__(self, home: Path, file: str = "index.db") -> None:
        self.home, self.path = home, home / file
        self.read_only = False
        self.reader_waits = 0  # times that a read found the index locked
        self.writer_waits = 0
        self._counting = threading.Lock()
        self._connections = Connections(self.path)
        with storage_errors.told(home):
            create(self.path)
            self._connections.open(self._connect)

    @property
    def conn(self) -> sqlite3.Connection:
        """This thread's connection."""
        with self.using() as conn:
            return conn

    @contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, for longer: `close` waits for the end of it."""
        with storage_errors.told(self.home):
            self._connections.open(self._connect)
        with self._connections.use(self._connect) as conn:
            yield conn

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """All rows of one SELECT."""
        with storage_errors.told(self.home), self.using() as conn:
            return self._patiently(lambda: conn.execute(sql, values).fetchall(), "reader_waits")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the write lock from its first line, rolled back on any exception."""
        with storage_errors.told(self.home), self._begun() as conn:
            try:
                yield conn
                conn.execute("commit")
            except BaseException:
                if conn.in_transaction:
                    conn.execute("rollback")
                raise

    def close(self) -> None:
        """Close the connections of all threads, each when it has done what it is doing."""
        self._connections.close()

    @contextmanager
    def _begun(self) -> Iterator[sqlite3.Connection]:
        """A connection that holds the write lock of the index that is there now."""
        while True:
            with self.using() as conn:
                if self.read_only:
                    raise sqlite3.OperationalError("attempt to write a readonly database")
                self._patiently(lambda: conn.execute("begin immediate"), "writer_waits")
                if not self._connections.moved():
                    yield conn
                    return
                conn.execute("rollback")

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._open()
        except (OSError, sqlite3.Error) as error:
            if not self.path.exists() or storage_errors.damaged(error):
                raise
            return self._open_to_read(error)

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():  # SQLite would begin an empty one
            raise ConceptError(gone(self.home))
        there = self.path.stat().st_ino
        conn = _connect(self.path)
        try:
            self._patiently(lambda: conn.execute("pragma schema_version").fetchone())
            if self.path.stat().st_ino != there:  # made anew while we waited for it
                conn.close()
                return self._open()
            if self._patiently(lambda: conn.execute("pragma journal_mode").fetchone()) != ("wal",):
                mode = self._patiently(lambda: conn.execute("pragma journal_mode = wal").fetchone())
                if mode != ("wal",):
                    raise ConceptError(storage_errors.lockless(self.home))
            if self._pending(conn):
                self._patiently(lambda: conn.execute("begin immediate"))
                if self._pending(conn):
                    self._check_new(conn)
                    self._migrate(conn)
                conn.execute("commit")
            _make_faster(conn)
        except BaseException:
            conn.close()
            raise
        return conn

    def _open_to_read(self, error: OSError | sqlite3.Error) -> sqlite3.Connection:
        """A home on a read-only disk: with its log where SQLite can, else only when the log is empty."""
        log = self.path.with_name(f"{self.path.name}-wal")
        options = ["mode=ro"] + ([] if log.exists() and log.stat().st_size else ["mode=ro&immutable=1"])
        for option in options:
            conn = _connect(f"{self.path.as_uri()}?{option}")
            try:
                if self._pending(conn):
                    raise error
                self.read_only = True
                return conn
            except sqlite3.Error:
                conn.close()
        raise error

    def _pending(self, conn: sqlite3.Connection) -> bool:
        """Whether steps are left to take; ConceptError when steps were taken that are not known here."""
        there = "select 1 from sqlite_master where name = '_sqlite_migrations'"
        if not self._patiently(lambda: conn.execute(there).fetchall()):
            return True
        taken = "select name from _sqlite_migrations where migration_set = 'conceptkit'"
        names = {name for (name,) in self._patiently(lambda: conn.execute(taken).fetchall())}
        if newer := sorted(names - set(STEPS)):
            raise ConceptError(
                f"The index {self.path} was written by a newer conceptkit (it has {newer[-1][:80]!r}): "
                "update conceptkit, or set CONCEPTKIT_HOME to another folder."
            )
        return names != set(STEPS)

    def _check_new(self, conn: sqlite3.Connection) -> None:
        """ConceptError when an index is about to begin that had begun before: its log is lost."""
        tables = conn.execute("select count(*) from sqlite_master").fetchone()
        if tables == (0,) and self.path == self.home / "index.db" and any(blobs.walk(self.home / "blobs")):
            raise ConceptError(gone(self.home))

    def _migrate(self, conn: sqlite3.Connection) -> None:
        from sqlite_utils import Database

        from conceptkit.registry.migrations import migrations

        migrations.apply(Database(conn, execute_plugins=False))

    def _patiently(self, call: Callable[[], Result], count: str | None = None) -> Result:
        """Try until it is our turn, for at most PATIENCE seconds; short random naps, so that all get one."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            if count:
                with self._counting:
                    setattr(self, count, getattr(self, count) + 1)
            time.sleep(random.uniform(0.0005, 0.005))


def index_files(home: Path) -> list[Path]:
    """The index and the files that SQLite keeps beside it, as far as they are there, the index first."""
    files = (home / f"index.db{suffix}" for suffix in ("", "-wal", "-shm", "-journal"))
    return [file for file in files if file.exists()]


def has_index(home: Path) -> bool:
    """Whether there is an index file with anything in it. Its log alone is no index, and no copy of it is."""
    return _size(home / "index.db") > 0


def has_stray_log(home: Path) -> bool:
    """Whether an index is gone that was in use: its log is still there, and must meet no other index."""
    return not has_index(home) and _size(home / "index.db-wal") > 0


def gone(home: Path) -> str:
    """The sentence about an index that is lost while its concepts are not."""
    return (
        f"The index of {home} is gone and its concepts are still there: "
        "bring them back with `conceptkit rebuild`."
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # a log goes when its last reader goes
        return 0


def _connect(path: Path | str) -> sqlite3.Connection:
    # any thread may close it; that only its own uses it is what `Connections` is for
    return sqlite3.connect(
        path, timeout=0, isolation_level=None, uri=isinstance(path, str), check_same_thread=False
    )


def _make_faster(conn: sqlite3.Connection) -> None:
    """Make what is missing of FASTER; where somebody writes, or nothing can be written, it goes without."""
    there = {row[0] for row in conn.execute("select name from sqlite_master where type = 'index'")}
    if there >= FASTER.keys():
        return
    try:
        conn.execute("begin immediate")
        for name, columns in FASTER.items():
            conn.execute(f"create index if not exists {name} on {columns}")
        conn.execute("commit")
    except sqlite3.Error:
        if conn.in_transaction:
            conn.execute("rollback")
