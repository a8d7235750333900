"""What disks and SQLite say, as one sentence each with the next thing to do."""

import errno
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conceptkit.registry.errors import ConceptError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
LOCKLESS = {errno.ENOLCK, errno.ENOTSUP}

ELSEWHERE = "set CONCEPTKIT_HOME to a folder that you may write to"


@contextmanager
def told(home: Path, *others: type[OSError], file: Path | None = None) -> Iterator[None]:
    """Errors of the system and of SQLite inside leave as ConceptError; all `others` as they are.

    file: the database they are about, where that is not the index.
    """
    try:
        yield
    except others:
        raise
    except (OSError, sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        raise ConceptError(sentence(error, home, file)) from error


def sentence(
    error: OSError | sqlite3.Error | UnicodeDecodeError | OverflowError, home: Path, file: Path | None = None
) -> str:
    """One sentence about `error` in the registry at `home`, in its database `file` or else its index."""
    if isinstance(error, OverflowError):
        return "That number is beyond what the index can hold: give one below 9,223,372,036,854,775,807."
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(error))[:200]  # SQLite may quote what is damaged
    number = getattr(error, "errno", None)
    if number in FULL or "is full" in text:
        return f"The disk with {home} is full, and nothing was stored: free some room and try again."
    if number in READ_ONLY or "readonly" in text:
        return f"{home} can only be read, and nothing was changed: {ELSEWHERE}."
    if number in LOCKLESS or "locking protocol" in text:
        return lockless(home)
    if "locked" in text:
        locked = file or f"{home}/index.db"
        return f"Another program keeps {locked} locked: wait until it is done, and try again."
    if damaged(error) and file is not None:
        return damaged_file(text, file)
    if damaged(error):
        return (
            f"The index {home}/index.db is damaged ({text}): make it anew with `conceptkit rebuild`, "
            "or set CONCEPTKIT_HOME to another folder."
        )
    return f"The registry in {home} cannot be used ({text}): check that disk, or {ELSEWHERE}."


def damaged_file(what: str, file: Path) -> str:
    """The sentence about a database of blobs that SQLite cannot read."""
    return (
        f"{file} is damaged ({what}): make it anew from all that can be read of it with `conceptkit rebuild`."
    )


def damaged(error: BaseException) -> bool:
    """Whether SQLite says that the bytes of the index are not those of an index."""
    said = (
        "malformed",
        "not a database",
        "no such table",
        "no such column",
        "corrupt",
        "unsupported file format",
        "already exists",
        "decode",
    )
    if isinstance(error, UnicodeDecodeError):  # SQLite quotes names of tables in what it says
        return True
    return isinstance(error, sqlite3.Error) and any(word in str(error) for word in said)


def lockless(home: Path) -> str:
    """The sentence about a file system on which processes cannot keep out of each other's way."""
    return (
        f"The file system of {home} has no locks that SQLite can use: "
        "set CONCEPTKIT_HOME to a folder on a disk of this machine."
    )
