"""The index file, `home/index.db`: its schema, and whether it is there at all."""

import sqlite3
from pathlib import Path

from conceptkit.registry.blob_store import holds_any
from conceptkit.registry.database import Database
from conceptkit.registry.errors import ConceptError

STEPS = ("m001_names_versions_assets", "m002_catalogue", "m003_search", "m004_packed_blobs")
"""The names of all migrations, here so that reading needs no import of sqlite-utils."""
MARKS = {"m004_packed_blobs"}
"""Steps that change no table and only keep older conceptkits out: an index without them is read as it is."""
FASTER = {"versions_bytes": "versions (bytes)", "versions_created": "versions (created)"}
"""Indexes that only make searching faster. They are no step: without them all is as whole, and a conceptkit
that does not know them may write beside them."""


class Index(Database):
    """The index in `home/index.db`. Raises ConceptError whenever it cannot be used, in one sentence."""

    def __init__(self, home: Path, file: str = "index.db") -> None:
        super().__init__(home, home / file)
        self.create()

    def prepare(self, conn: sqlite3.Connection) -> None:
        """Take the steps of its schema that are left to take."""
        if self._pending(conn):
            self.patiently(lambda: conn.execute("begin immediate"))
            if self._pending(conn):
                self._check_new(conn)
                self._migrate(conn)
            conn.execute("commit")
        _make_faster(conn)

    def readable(self, conn: sqlite3.Connection) -> bool:
        """Whether all steps were taken that what is read here depends on."""
        return not self._pending(conn) - MARKS

    def lost(self) -> ConceptError:
        """The index is gone, and its concepts are not."""
        return ConceptError(gone(self.home))

    def _pending(self, conn: sqlite3.Connection) -> set[str]:
        """The steps that are left to take; ConceptError when steps were taken that are not known here."""
        there = "select 1 from sqlite_master where name = '_sqlite_migrations'"
        if not self.patiently(lambda: conn.execute(there).fetchall()):
            return set(STEPS)
        taken = "select name from _sqlite_migrations where migration_set = 'conceptkit'"
        names = {name for (name,) in self.patiently(lambda: conn.execute(taken).fetchall())}
        if newer := sorted(names - set(STEPS)):
            raise ConceptError(
                f"The index {self.path} was written by a newer conceptkit (it has {newer[-1][:80]!r}): "
                "update conceptkit, or set CONCEPTKIT_HOME to another folder."
            )
        return set(STEPS) - names

    def _check_new(self, conn: sqlite3.Connection) -> None:
        """ConceptError when an index is about to begin that had begun before: its log is lost."""
        tables = conn.execute("select count(*) from sqlite_master").fetchone()
        if tables == (0,) and self.path == self.home / "index.db" and holds_any(self.home):
            raise ConceptError(gone(self.home))

    def _migrate(self, conn: sqlite3.Connection) -> None:
        from sqlite_utils import Database as Tables

        from conceptkit.registry.migrations import migrations

        migrations.apply(Tables(conn, execute_plugins=False))


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
