"""The index file: opened, brought to the newest schema, read without waiting, written one process at a time.

In WAL mode a reader sees the last commit and never waits for a writer. SQLite's own waiting is off; the two
waits there are, for the write lock and for a reader met by a closing process, happen here and are counted.
"""

import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from conceptkit.registry import storage_errors
from conceptkit.registry.errors import ConceptError

PATIENCE = 30.0
"""Seconds to wait for another process that is writing."""

STEPS = ("m001_names_versions_assets", "m002_catalogue", "m003_search")
"""The names of all migrations, here so that reading needs no import of sqlite-utils."""

Row = tuple[Any, ...]
Result = TypeVar("Result")


class Index:
    """A connection to `home/index.db`. Raises ConceptError whenever it cannot be used, in one sentence."""

    def __init__(self, home: Path, file: str = "index.db") -> None:
        self.home, self.path = home, home / file
        self.read_only = False
        self.reader_waits = 0  # times that a read found the index locked
        self.writer_waits = 0
        with storage_errors.told(home):
            try:
                self.conn = self._open()
            except (OSError, sqlite3.Error) as error:
                if not self.path.exists() or storage_errors.damaged(error):
                    raise
                self.conn = self._open_to_read(error)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """All rows of one SELECT."""
        with storage_errors.told(self.home):
            return self._patiently(lambda: self.conn.execute(sql, values).fetchall(), "reader_waits")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the write lock from its first line, rolled back on any exception."""
        with storage_errors.told(self.home):
            if self.read_only:
                raise sqlite3.OperationalError("attempt to write a readonly database")
            self._patiently(lambda: self.conn.execute("begin immediate"), "writer_waits")
            try:
                yield self.conn
                self.conn.execute("commit")
            except BaseException:
                if self.conn.in_transaction:
                    self.conn.execute("rollback")
                raise

    def close(self) -> None:
        """Close the connection; the log goes into the index before, while nobody has to wait for it.

        SQLite would do that while closing, and lock all others out: for good if this process is stopped then.
        """
        with suppress(sqlite3.Error, OSError):
            if not self.read_only and self.path.with_name(f"{self.path.name}-wal").stat().st_size:
                self.conn.execute("pragma wal_checkpoint(passive)").fetchall()
        self.conn.close()

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite would let others read it
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
                    self._migrate(conn)
                conn.execute("commit")
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
                setattr(self, count, getattr(self, count) + 1)
            time.sleep(random.uniform(0.0005, 0.005))


def has_index(home: Path) -> bool:
    """Whether there is an index file, or a log of one, with anything in it."""
    sizes = []
    for file in home.glob("index.db*"):
        with suppress(FileNotFoundError):  # a log goes when its last reader goes
            sizes.append(file.stat().st_size)
    return any(sizes)


def _connect(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=0, isolation_level=None, uri=isinstance(path, str))
