"""One index in the place of another, when that cannot be written to: begun once, and then always finished.

SQLite applies whatever log lies beside an index to it, so the old log must be gone before the new index is
there. A complete index is first given the name NEXT; from then on whoever opens the registry goes on from
there, and nobody ever sees the one without the other's log, or none at all.
"""

import os
from pathlib import Path

from conceptkit.registry import atomic_files, paths, storage_errors

NEXT = "index.next.db"
ENDS = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside an index."""


def swap_in(home: Path, fresh: Path) -> None:
    """Let `fresh`, a complete index without a log, be the index of this home."""
    with storage_errors.told(home):
        os.replace(fresh, home / NEXT)
        paths.sync(home)
    finish(home)


def finish(home: Path) -> None:
    """Go on with what a killed process began, if one did."""
    if not (home / NEXT).exists():
        return
    with atomic_files.turn(home), storage_errors.told(home):
        if (home / NEXT).exists():
            for end in ENDS:
                (home / f"index.db{end}").unlink(missing_ok=True)
            paths.sync(home)
            os.replace(home / NEXT, home / "index.db")
            paths.sync(home)
