"""One database in the place of another that cannot be written to: begun once, and then always finished.

SQLite applies whatever log lies beside a database to it, so the old log must be gone before the new one is
there. A complete one is first given the name `index.next.db`; from then on whoever opens the registry goes on
from there, and nobody ever sees the one without the other's log, or none at all.
"""

import os
from pathlib import Path

from conceptkit.registry import atomic_files, odd_files, paths, storage_errors
from conceptkit.registry.errors import ConceptError

ENDS = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database."""
MAGIC = b"SQLite format 3\0"
"""What a database of SQLite's begins with."""


def swap_in(home: Path, fresh: Path, file: Path | None = None) -> None:
    """Let `fresh`, a complete database without a log, take the place of `file`, by default of the index."""
    file = file or home / "index.db"
    with storage_errors.told(home):
        os.replace(fresh, next_of(file))
        paths.sync(file.parent)
    finish(home, file)


def finish(home: Path, file: Path | None = None) -> None:
    """Go on with what a killed process began, if one did."""
    file = file or home / "index.db"
    if not next_of(file).exists():
        return
    with atomic_files.turn(home), storage_errors.told(home):
        if next_of(file).exists():
            _check(next_of(file))
            for end in ENDS:
                file.with_name(file.name + end).unlink(missing_ok=True)
            paths.sync(file.parent)
            os.replace(next_of(file), file)
            paths.sync(file.parent)


def _check(fresh: Path) -> None:
    """Raise ConceptError where this is no database, which no process of ours began."""
    if odd_files.plain_size(fresh) is not None and _begins_with_magic(fresh):
        return
    raise ConceptError(f"{fresh} is no database, which conceptkit did not make: move it elsewhere.")


def _begins_with_magic(file: Path) -> bool:
    with file.open("rb") as handle:
        return handle.read(len(MAGIC)) == MAGIC


def next_of(file: Path) -> Path:
    """The name under which what takes the place of a file is complete: `index.next.db`."""
    return file.with_name(f"{file.stem}.next{file.suffix}")
