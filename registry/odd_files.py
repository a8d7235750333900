"""Files that are not what their place says: links, devices, what killed processes left. Left alone, named."""

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from conceptkit.registry.errors import ConceptError

DAY = 24 * 3600.0
ABANDONED_AFTER = DAY
"""Seconds after which an unfinished file is taken for the remains of a killed process."""
RESUMED_WITHIN = 7 * DAY
"""Seconds within which a pull that broke off may go on from what it has."""
CHECKPOINTS_KEPT = 30 * DAY
"""Seconds within which learning that was stopped may go on."""

_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_WRITTEN_WHOLE = re.compile(r"\..+\.(\d+-[0-9a-f]{8}|part|tmp)")
_PACKED = re.compile(r"packed(\.next|\.rebuilt)?\.db(-wal|-shm|-journal)?")
"""Small blobs, and what SQLite keeps beside them."""
_LEFT_BY_KILLED = (  # folder in the home, what its remains are called, after which seconds they are nobody's
    (
        "",
        re.compile(rf"{_WRITTEN_WHOLE.pattern}|index\.db\.\d+\.part.*|index\.rebuilt\.db.*"),
        ABANDONED_AFTER,
    ),
    ("keys", _WRITTEN_WHOLE, ABANDONED_AFTER),
    ("backups", re.compile(rf"{_WRITTEN_WHOLE.pattern}|.+\.part(-journal|-wal|-shm)?"), ABANDONED_AFTER),
    ("checkpoints", _WRITTEN_WHOLE, ABANDONED_AFTER),
    ("blobs", re.compile(r"packed\.rebuilt\.db.*"), ABANDONED_AFTER),
    ("incoming", re.compile(r".+\.part"), RESUMED_WITHIN),
    ("blobs/incoming", re.compile(r"\d+-[0-9a-f]+"), ABANDONED_AFTER),
)
"""What this program writes beside a file before it becomes that file; nothing else is ever swept away."""


@dataclass(frozen=True)
class Leftover:
    """A file that a killed process left, or that one at work has not finished; old: nobody will."""

    file: Path
    bytes: int
    old: bool


def kind(path: Path) -> str | None:
    """ "a link", "a folder", "a pipe", "a device"; None for a plain file and for nothing at all."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None
    return next((what for test, what in _KINDS if test(mode)), None)


def plain_size(path: Path) -> int | None:
    """Bytes of a plain file, not followed; None where there is none."""
    try:
        state = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return state.st_size if stat.S_ISREG(state.st_mode) else None


def read_own(path: Path) -> bytes:
    """The bytes of a small file that conceptkit wrote, also through a link.

    Raises FileNotFoundError, and ConceptError for a pipe, a device or a folder: reading one may never end.
    """
    if path.exists() and not path.is_file():
        raise ConceptError(f"{path} is no plain file: move it elsewhere.")
    return path.read_bytes()


def checkpoint_of(home: Path, name: str) -> Path | None:
    """Where learning of that name was stopped, if it was."""
    return next((c.file for c in checkpoints(home) if c.file.stem == name), None)


def own_folder(path: Path) -> bool:
    """Whether this is a folder itself, not a link that leads to somebody's."""
    return kind(path) == "a folder"


def leftovers(home: Path) -> Iterator[Leftover]:
    """Unfinished files of this home, of every kind that conceptkit writes."""
    now = time.time()
    for folder, names, seconds in _LEFT_BY_KILLED:
        yield from _matching(home / folder, names, seconds, now)


def unfinished_blobs(incoming: Path) -> Iterator[Path]:
    """Unfinished blobs that nobody will finish, going by their age."""
    _, names, seconds = _LEFT_BY_KILLED[-1]
    yield from (left.file for left in _matching(incoming, names, seconds, time.time()) if left.old)


def unfinished_pulls(home: Path) -> Iterator[Path]:
    """Blobs of pulls that nobody went on with."""
    _, names, seconds = _LEFT_BY_KILLED[-2]
    yield from (left.file for left in _matching(home / "incoming", names, seconds, time.time()) if left.old)


def checkpoints(home: Path) -> list[Leftover]:
    """Where learning that was stopped can go on, by name; old: longer ago than anybody waits."""
    names = re.compile(r"[A-Za-z].*\.safetensors")
    return sorted(
        _matching(home / "checkpoints", names, CHECKPOINTS_KEPT, time.time()),
        key=lambda left: left.file.name,
    )


def strangers(blobs: Path) -> Iterator[tuple[Path, str]]:
    """(path, kind) of what lies among the blobs and is no plain file or folder of ours."""
    if not own_folder(blobs) and not blobs.is_dir():
        return
    for parent in sorted(blobs.iterdir()):
        what = kind(parent)
        if what is None and _PACKED.fullmatch(parent.name):
            continue
        if what != "a folder":
            yield parent, what or "a file"
        elif len(parent.name) == 2:
            yield from ((file, what) for file in sorted(parent.iterdir()) if (what := kind(file)))


def check_output(file: Path, *, mine: bool, advice: str = "choose another file") -> None:
    """Raise ConceptError when writing to `file` would replace something that this program did not write.

    mine: whether a plain file that is there may be replaced.
    """
    what = kind(file)
    if what is not None:
        raise ConceptError(f"{file} is {what}, and is left alone: {advice}.")
    if not mine and os.path.lexists(file):
        raise ConceptError(f"{file} is already there, and is not conceptkit's to replace: {advice}.")


def _matching(folder: Path, names: re.Pattern[str], seconds: float, now: float) -> Iterator[Leftover]:
    if not own_folder(folder) and not (folder.name != "incoming" and folder.is_dir()):
        return
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process finished it, or swept it first
                if names.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    state = entry.stat(follow_symlinks=False)
                    yield Leftover(Path(entry.path), state.st_size, now - state.st_mtime > seconds)
