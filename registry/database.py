"""A file of SQLite's: opened, read without waiting, written one process at a time.

In WAL mode a reader sees the last commit and never waits for a writer. SQLite's own waiting is off; the two
waits there are, for the write lock and for a reader met by a closing process, happen here and are counted.
"""

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from conceptkit.registry import storage_errors
from conceptkit.registry.connections import Connections, create
from conceptkit.registry.errors import ConceptError

PATIENCE = 30.0
"""Seconds to wait for another process that is writing."""

Row = tuple[Any, ...]
Result = TypeVar("Result")


class Database:
    """A database of the registry in `home`, usable from any thread: each has a connection of its own.

    What differs between two of them stands in `begin`, `prepare`, `readable`, `lost` and `explained`.
    Raises ConceptError whenever it cannot be used, in one sentence.
    """

    def __init__(self, home: Path, path: Path) -> None:
        self.home, self.path = home, path
        self.read_only = False
        self.reader_waits = 0  # times that a read found the file locked
        self.writer_waits = 0
        self._counting = threading.Lock()
        self._connections = Connections(self.path)

    def create(self) -> None:
        """Make the file if it is not there, readable by its owner alone, and open it."""
        with self.explained():
            create(self.path)
            self._connections.open(self._connect)

    def begin(self, conn: sqlite3.Connection) -> None:
        """What a connection must be told before it writes its first page."""

    def prepare(self, conn: sqlite3.Connection) -> None:
        """Bring what a connection that may write has open to the newest form."""
        raise NotImplementedError

    def readable(self, conn: sqlite3.Connection) -> bool:
        """Whether what lies there can be read as it is, where nobody may write."""
        raise NotImplementedError

    def lost(self) -> ConceptError:
        """What to say when the file is gone."""
        raise NotImplementedError

    def explained(self) -> AbstractContextManager[None]:
        """Errors of the system and of SQLite inside leave as ConceptError."""
        return storage_errors.told(self.home)

    @property
    def conn(self) -> sqlite3.Connection:
        """This thread's connection."""
        with self.using() as conn:
            return conn

    @contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, for longer: `close` waits for the end of it."""
        with self.explained():
            self._connections.open(self._connect)
        with self._connections.use(self._connect) as conn:
            yield conn

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """All rows of one SELECT."""
        with self.explained(), self.using() as conn:
            return self.patiently(lambda: conn.execute(sql, values).fetchall(), "reader_waits")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the write lock from its first line, rolled back on any exception."""
        with self.explained(), self._begun() as conn:
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

    def patiently(self, call: Callable[[], Result], count: str | None = None) -> Result:
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

    @contextmanager
    def _begun(self) -> Iterator[sqlite3.Connection]:
        """A connection that holds the write lock of the file that is there now."""
        while True:
            with self.using() as conn:
                if self.read_only:
                    raise sqlite3.OperationalError("attempt to write a readonly database")
                self.patiently(lambda: conn.execute("begin immediate"), "writer_waits")
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
            raise self.lost()
        there = self.path.stat().st_ino
        conn = _connect(self.path)
        try:
            self.patiently(lambda: conn.execute("pragma schema_version").fetchone())
            if self.path.stat().st_ino != there:  # made anew while we waited for it
                conn.close()
                return self._open()
            self.begin(conn)
            if self.patiently(lambda: conn.execute("pragma journal_mode").fetchone()) != ("wal",):
                mode = self.patiently(lambda: conn.execute("pragma journal_mode = wal").fetchone())
                if mode != ("wal",):
                    raise ConceptError(storage_errors.lockless(self.home))
            self.prepare(conn)
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
                if not self.readable(conn):
                    raise error
                self.read_only = True
                return conn
            except sqlite3.Error:
                conn.close()
        raise error


def _connect(path: Path | str) -> sqlite3.Connection:
    # any thread may close it; that only its own uses it is what `Connections` is for
    return sqlite3.connect(
        path, timeout=0, isolation_level=None, uri=isinstance(path, str), check_same_thread=False
    )
