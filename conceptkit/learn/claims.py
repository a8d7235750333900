"""One process at a time learns a name: the second one knows before it begins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from conceptkit.errors import ConceptError
from conceptkit.registry.paths import make_private


@contextmanager
def claimed_names(home: Path, names: Sequence[str]) -> Iterator[None]:
    """These names are this process's while it learns them into the registry at `home`.

    Raises ConceptError when another process learns one of them. Where a system has no such locks nothing is
    claimed, and of two that learn one name the second hears at its end that it is taken.
    """
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_claimed(home, name))
        yield


@contextmanager
def _claimed(home: Path, name: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder = home / "checkpoints"
    file, new = folder / f".{name}.claim.tmp", not folder.exists()
    while True:
        make_private(folder)
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # another process is done, and took the empty folder away
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ConceptError(
                f"Another process is learning {name} already; wait until it is done, or give another name"
            ) from None
        except OSError:  # a file system without locks
            break
        if _is_still(file, handle):
            break
        os.close(handle)  # the one before was done, and took its file away between our two calls
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)
        if new:  # what could not be learned leaves nothing behind, not even a folder
            with suppress(OSError):
                folder.rmdir()


def _is_still(file: Path, handle: int) -> bool:
    """Whether the file at this path is the opened one."""
    try:
        there, here = file.stat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
