"""`blobs/packed.db` made anew from every row in it that is whole, when SQLite finds it damaged."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from conceptkit.registry import odd_files, paths, storage_errors, swap
from conceptkit.registry.errors import ConceptError
from conceptkit.registry.packed import SLICE, PackedBlobs

FRESH = "packed.rebuilt.db"


@dataclass(frozen=True)
class Repaired:
    """blobs: how many are in the new file; kept: the damaged file as it was."""

    blobs: int
    kept: str


def repair(home: Path) -> Repaired | None:
    """Make a damaged `packed.db` anew; None where there is none, or nothing is wrong with it.

    What cannot be read stays in the damaged file, which is kept in `home/backups`.
    Raises ConceptError when another program writes to it, and nothing is changed then.
    """
    packed = PackedBlobs(home)
    if not odd_files.plain_size(packed.path) or not packed.problems():
        packed.close()
        return None
    with _alone(packed), storage_errors.told(home, file=packed.path):
        fresh = packed.path.with_name(FRESH)
        _drop(fresh)
        count = _filled(home, packed)
        kept = _keep(home, packed.path)
        swap.swap_in(home, fresh, packed.path)
    packed.close()
    return Repaired(count, str(kept))


def _filled(home: Path, packed: PackedBlobs) -> int:
    """Put every whole row into a new file, one without a log; how many."""
    fresh, count = PackedBlobs(home, FRESH), 0
    fresh.create()
    rows = packed.recover()
    try:
        while some := list(islice(rows, SLICE)):
            fresh.put(some)
            count += len(some)
        with fresh.using() as conn:
            conn.execute("pragma journal_mode = delete").fetchall()
    finally:
        fresh.close()
    paths.sync(fresh.path)
    return count


def _keep(home: Path, file: Path) -> Path:
    """A second name for the damaged file among the backups, or a copy where a file has but one name."""
    folder, number = paths.make_private(home / "backups"), 1
    while os.path.lexists(kept := folder / f"packed-damaged-{number}"):  # no *.db: it is no index
        number += 1
    try:
        os.link(file, kept)
    except OSError:
        shutil.copyfile(file, kept)
    paths.sync(folder)
    return kept


@contextmanager
def _alone(packed: PackedBlobs) -> Iterator[None]:
    """Nobody else writes to the file inside, as far as SQLite can still lock it."""
    conn = sqlite3.connect(packed.path, timeout=0, isolation_level=None)
    try:
        try:
            conn.execute("begin immediate")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ConceptError(
                    f"Another program uses {packed.path}: stop it, and run `conceptkit rebuild` again."
                ) from error
        except sqlite3.DatabaseError:  # then nobody can write to it
            pass
        yield
    finally:
        conn.close()


def _drop(file: Path) -> None:
    for end in ("", *swap.ENDS):
        file.with_name(file.name + end).unlink(missing_ok=True)
