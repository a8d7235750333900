"""The files of the trash: one for each `rm`, in the home until `gc` empties it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from conceptkit.registry import odd_files

FOLDER = "trash"
_FILE = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9_-]*)(?:@(?P<version>\d+))?\.(?P<at>\d+)\.bundle")


@dataclass(frozen=True)
class TrashFile:
    """A removal: of a name with all its versions, or of one version; at: nanoseconds since 1970."""

    file: Path
    name: str
    version: int | None
    at: int

    @property
    def ref(self) -> str:
        """What `rm` was given: `my_dog`, or `my_dog@1`."""
        return self.name if self.version is None else f"{self.name}@{self.version}"


def listing(home: Path) -> list[TrashFile]:
    """The removals that are in the trash, the latest last."""
    folder = home / FOLDER
    if not odd_files.own_folder(folder):
        return []
    found = []
    for file in folder.iterdir():
        if (match := _FILE.fullmatch(file.name)) and odd_files.plain_size(file) is not None:
            version = int(match["version"]) if match["version"] else None
            found.append(TrashFile(file, match["name"], version, int(match["at"])))
    return sorted(found, key=lambda one: one.at)


def last(home: Path, name: str, version: int | None = None) -> TrashFile | None:
    """What was removed last under that name, or of it that version alone; None when nothing was."""
    fit = [one for one in listing(home) if one.name == name and version in (None, one.version)]
    return fit[-1] if fit else None


def advice(home: Path, name: str, version: int | None = None) -> str | None:
    """How to get back what is asked for and was removed; None when it is not in the trash."""
    ref = name if version is None else f"{name}@{version}"
    found = last(home, name, version) or (last(home, name) if version is not None else None)
    if found is None or (version is not None and found.version not in (None, version)):
        return None
    return f"{ref} is in the trash: `conceptkit rm --undo {found.ref}` brings it back."


def count(home: Path) -> tuple[int, int]:
    """(how many removals are in the trash, their bytes)."""
    files = listing(home)
    return len(files), sum(odd_files.plain_size(one.file) or 0 for one in files)
