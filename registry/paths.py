"""Where conceptkit keeps its things on this machine, and what makes them survive a power cut."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import platformdirs

from conceptkit.registry.errors import ConceptError


def home() -> Path:
    """`$CONCEPTKIT_HOME`, or the user's data folder; not created here."""
    if chosen := os.environ.get("CONCEPTKIT_HOME"):
        return expanded(chosen).absolute()
    return Path(platformdirs.user_data_dir("conceptkit", appauthor=False))


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` written out. Raises ConceptError for a user whom this machine does not know."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConceptError(
            f"{os.fspath(path)[:200]!r} is in the home of a user whom this machine does not know; "
            "write out the folder"
        ) from error


def make_private(folder: Path) -> Path:
    """Create `folder` and its missing parents for their owner only; what exists stays as it is."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)
        sync(place.parent)
    return folder


def sync(folder: Path) -> None:
    """Make the entries of `folder` survive a power cut, where the system can do that for folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def barrier(folder: Path) -> Iterator[Callable[[], bool]]:
    """A call that makes all that was written to `folder`'s file system since then durable at one cost.

    It returns False, having done nothing, where syncfs(2) is missing or keeps write errors to itself
    (Linux before 5.8); then every file needs an fsync of its own. Raises OSError when a write failed.
    """
    call = _syncfs()
    if call is None:
        yield lambda: False
        return
    handle = os.open(folder, os.O_RDONLY)  # opened first: it hears of errors that happen from now on
    try:
        yield lambda: syncfs(handle)
    finally:
        os.close(handle)


def syncfs(handle: int) -> bool:
    """syncfs(2) on the file system of an open file; True, or OSError."""
    call = _syncfs()
    if call is None:
        return False
    if call(handle) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return True


@cache
def _syncfs() -> Callable[[int], int] | None:
    if not hasattr(os, "uname") or os.uname().sysname != "Linux":
        return None
    release = os.uname().release.split(".")
    try:
        new = (int(release[0]), int(release[1])) >= (5, 8)
    except (ValueError, IndexError):
        new = False
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if new else None
