"""Files of the user: a place is checked before work begins, and nothing is written over unless asked."""

import filecmp
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from conceptkit.errors import ConceptError


def check_new_file(file: Path, force: bool = False) -> Path:
    """`file` itself, if it can be written. Raises ConceptError; force: it may be there already."""
    if file.is_dir():
        raise ConceptError(f"{file} is a folder; name a file in it")
    if os.path.lexists(file) and not force:
        raise ConceptError(f"{file} is there already; name another file, or give --force to write over it")
    check_folder(file.parent)
    return file


def check_folder(folder: Path) -> Path:
    """`folder` itself, if files can be put there or it can be made. Raises ConceptError."""
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ConceptError(f"{folder} cannot be a folder, because {place} is a file; name another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConceptError(f"Nothing can be written in {place}; name another place")
    return folder


def fill_folder(folder: Path, files: Mapping[str, bytes | Path], force: bool = False) -> list[Path]:
    """Write these files into a folder, all of them or none; what else is in it stays.

    files: name -> content, or a file on the same disk that is moved; a name may have folders in it. force:
        files of these names may be written over.
    Raises ConceptError when one of them is there with other bytes, and for a folder that takes no files.
    """
    check_folder(folder)
    if not force:
        for name, data in files.items():
            if os.path.lexists(folder / name) and not _holds(folder / name, data):
                raise ConceptError(
                    f"{folder} already holds files: {name} is never overwritten; "
                    "name another folder, or give --force"
                )
    written: list[Path] = []
    parts = {}
    for file in (folder / name for name in files):
        parts[file] = file.with_name(f".{file.name}.{os.getpid()}.part")
    made = _absent({file.parent for file in parts} | {folder}, folder)
    try:
        for place in (folder, *(file.parent for file in parts)):
            place.mkdir(parents=True, exist_ok=True)
        for part, data in zip(parts.values(), files.values(), strict=True):
            if isinstance(data, Path):
                data.replace(part)
            else:
                part.write_bytes(data)
        for file, part in parts.items():
            if not file.exists():
                written.append(file)
            part.replace(file)
    except BaseException as error:
        for file in (*parts.values(), *written):
            file.unlink(missing_ok=True)
        for place in made:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        if isinstance(error, OSError):
            raise ConceptError(f"{folder} takes no files ({error.strerror}); name another folder") from error
        raise
    return list(parts)


def _holds(file: Path, data: bytes | Path) -> bool:
    """Whether a file has these bytes already, or those of a file."""
    try:
        if isinstance(data, Path):
            return file.is_file() and filecmp.cmp(file, data, shallow=False)
        return file.is_file() and file.stat().st_size == len(data) and file.read_bytes() == data
    except OSError:
        return False


def _absent(places: Collection[Path], root: Path) -> list[Path]:
    """The folders from `root` down to these places that are not there, the innermost first."""
    above = {parent for place in places for parent in (place, *place.parents)}
    wanted = [place for place in above if (place == root or root in place.parents or place in root.parents)]
    absent = [place for place in wanted if not place.exists()]
    return sorted(absent, key=lambda place: len(place.parts), reverse=True)
