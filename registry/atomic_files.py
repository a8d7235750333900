"""Files written whole or not at all, private to the user; and one process at a time where that matters."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from conceptkit.registry import paths, storage_errors
from conceptkit.registry.errors import ConceptError

PATIENCE = 60.0
"""Seconds to wait for another process that imports or pulls."""


def write_whole(file: Path, fill: Callable[[BinaryIO], object]) -> None:
    """What `fill` writes becomes `file`, durably, or nothing changes. ConceptError for a bad target."""
    try:
        if file.is_dir():
            raise ConceptError(f"{file} is a folder: name a file in it.")
        paths.make_private(file.parent)
        unfinished = file.with_name(f".{file.name[:64]}.{os.getpid()}-{os.urandom(4).hex()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            with os.fdopen(os.open(unfinished, flags, 0o600), "wb") as out:
                fill(out)
                out.flush()
                os.fsync(out.fileno())
            os.replace(unfinished, file)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        paths.sync(file.parent)
    except OSError as error:
        why = "the disk is full" if error.errno in storage_errors.FULL else error.strerror or str(error)
        raise ConceptError(f"{file} cannot be written ({why}): choose another place.") from error


@contextmanager
def turn(home: Path) -> Iterator[None]:
    """One importing process at a time in this home, so that none adds what another is about to add.

    Where there are no such locks nothing is locked: then two imports at once may add equal versions.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with storage_errors.told(home):
        handle = os.open(paths.make_private(home) / "import.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConceptError(
                        f"Another import or pull is at work in {home}: wait until it is done, and try again."
                    ) from None
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(handle)


@contextmanager
def claimed(file: Path) -> Iterator[BinaryIO | None]:
    """A file to read and append to that no other process has; None when one has it, or could have it."""
    try:
        import fcntl
    except ImportError:
        yield None
        return
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b", buffering=0) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        yield handle
