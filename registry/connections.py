"""A connection of its own for every thread that uses an index; all of them are closed together.

SQLite's locks belong to the whole process: whoever opens and closes the file of an index by other means lets
go of the locks of every connection to it. So nothing here or elsewhere opens that file but SQLite.
"""

import ctypes
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conceptkit.registry.errors import ConceptError

Connect = Callable[[], sqlite3.Connection]

NOWHERE = (0, 0)
_CREATING = threading.Lock()


def create(path: Path) -> None:
    """Make an empty file for an index that is not there, which others may not read. Raises OSError.

    Under a lock: closing it would drop the locks of a thread that has begun to use it meanwhile.
    """
    with _CREATING:
        if not path.exists():
            with suppress(FileExistsError):  # another process was faster
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


class Connection:
    """One connection. Its lock is held while it works, so that closing it from another thread waits."""

    def __init__(self, conn: sqlite3.Connection, path: Path, file: tuple[int, int]) -> None:
        self.conn, self.file = conn, file
        self._log = path.with_name(f"{path.name}-wal")
        self.lock = threading.RLock()
        self._closed = False
        self._process = os.getpid()

    def writes(self) -> bool:
        """Whether it is in a transaction."""
        return not self._closed and self.conn.in_transaction

    def close(self) -> None:
        """Close it; one that was inherited from a parent process stays as it is, for it is the parent's."""
        if self._process != os.getpid():
            ctypes.pythonapi.Py_IncRef(
                ctypes.py_object(self.conn)
            )  # or it would be closed by being forgotten
            return
        with self.lock:
            if not self._closed:
                self._closed = True
                self._finish_log()
                self.conn.close()

    def _finish_log(self) -> None:
        """Bring the log into the index, while nobody has to wait for that.

        SQLite would do it while closing, and lock all others out: for good if this process is stopped then.
        """
        with suppress(sqlite3.Error, OSError):
            if self._log.stat().st_size:
                self.conn.execute("pragma wal_checkpoint(passive)").fetchall()

    def __del__(self) -> None:
        self.close()


class Connections:
    """The connections to the index at `path`, one a thread, made when the thread first asks.

    Who asks says how to connect; kept here, that would be a circle, and a forgotten one would stay open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._local = threading.local()  # a thread that ends takes its connection with it
        self._guard = threading.Lock()
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()

    @contextmanager
    def use(self, connect: Connect) -> Iterator[sqlite3.Connection]:
        """This thread's connection, which nobody closes meanwhile. ConceptError after `close`."""
        mine = self.open(connect)
        with mine.lock:
            if not mine.writes():
                self._check()
            yield mine.conn

    def moved(self) -> bool:
        """Whether the index that this thread has open is no longer the one at the path (after `rebuild`)."""
        mine = getattr(self._local, "mine", None)
        return mine is not None and mine.file != _identity(self._path)

    def close(self) -> None:
        """Close the connections of all threads, each after what it is doing now. Twice is as good as once."""
        if self._process != os.getpid():
            self._begin()
        with self._guard:
            self._closed = True
            every = list(self._all)
        for one in every:
            one.close()

    def open(self, connect: Connect) -> Connection:
        """This thread's connection, made when there is none yet. Raises what `connect` raises."""
        if self._process != os.getpid():  # a child process begins with connections of its own
            self._begin()
        mine: Connection | None = getattr(self._local, "mine", None)
        if mine is not None and mine.writes():
            return mine  # a transaction is brought to its end, whatever happens around it
        self._check()
        if mine is None or self.moved():
            before = _identity(self._path)
            conn = connect()
            mine = Connection(conn, self._path, before if before != NOWHERE else _identity(self._path))
            with self._guard:
                self._all.add(mine)
            self._local.mine = mine
        return mine

    def _check(self) -> None:
        if self._closed:
            raise ConceptError(
                f"The registry in {self._path.parent} was closed: open it again with `Registry()`."
            )


def _identity(path: Path) -> tuple[int, int]:
    """Which file that is now; NOWHERE when there is none."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return NOWHERE
    return state.st_dev, state.st_ino
