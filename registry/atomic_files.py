"""Files written whole or not at all, private to the user; and one process at a time where that matters.

Many blobs at once are written the same way by `blobs.put_many`, which shares the waits for the disk.
"""

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


def write_whole(
    file: Path, fill: Callable[[BinaryIO], object], *, replace: bool = True, private: bool = True
) -> None:
    """What `fill` writes becomes `file`, durably, or nothing changes. ConceptError for a bad target.

    replace: whether it may take the place of a file; else FileExistsError when there is one by then.
    private: whether only its owner may read it; else as other new files of the user.
    """
    try:
        if file.is_dir():
            raise ConceptError(f"{file} is a folder: name a file in it.")
        if private:
            paths.make_private(file.parent)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(file, replace=replace, private=private) as part, part.open("r+b") as out:
            fill(out)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        if isinstance(error, FileExistsError) and not replace:
            raise
        why = "the disk is full" if error.errno in storage_errors.FULL else error.strerror or str(error)
        raise ConceptError(f"{file} cannot be written ({why}): choose another place.") from error


@contextmanager
def unfinished(file: Path, *, replace: bool = True, private: bool = True) -> Iterator[Path]:
    """An empty file of one's own beside `file`, which takes its name at the end of the block, durably.

    The caller makes its bytes durable. Whatever goes wrong, nothing is left of it. Raises OSError, and
    FileExistsError when `file` is there by then and may not be replaced.
    """
    start = file.name.encode()[:64].decode(errors="ignore")
    part = file.with_name(f".{start}.{os.getpid()}-{os.urandom(4).hex()}.part")
    os.close(create(part, private=private))
    try:
        yield part
        rename(part, file, replace=replace)
        paths.sync(file.parent)
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):  # SQLite's, when it is an index
            part.with_name(part.name + suffix).unlink(missing_ok=True)


def create(file: Path, *, private: bool = True) -> int:
    """The handle of a new file, one that only its owner may read unless not `private`.

    Raises OSError, also when it is there.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.open(file, flags, 0o600 if private else 0o666)


def rename(part: Path, file: Path, *, replace: bool = True) -> None:
    """Give a file its name; FileExistsError when another has it, unless that may be replaced."""
    if replace:
        os.replace(part, file)
        return
    try:
        os.link(part, file)
    except FileExistsError:
        raise
    except OSError:  # no file here can have two names: take the name first
        os.close(create(file))
        os.replace(part, file)
    else:
        part.unlink()


@contextmanager
def turn(home: Path, lock: str = "import.lock") -> Iterator[None]:
    """One importing process at a time in this home, so that none adds what another is about to add.

    Other work that must not be done twice at once takes its turns with another `lock`. Where there are no
    such locks nothing is locked: then two imports at once may add equal versions.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with storage_errors.told(home):
        handle = os.open(paths.make_private(home) / lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConceptError(
                        f"Another program is at work in {home} and keeps {lock} there: "
                        "wait until it is done, and try again."
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
