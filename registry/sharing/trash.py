"""What `rm` took away, as bundles in the home, until `gc` empties it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from conceptkit.registry import odd_files, paths
from conceptkit.registry.entries import Entry
from conceptkit.registry.errors import ConceptError, UnknownConcept
from conceptkit.registry.names import split_version
from conceptkit.registry.sharing import exchange
from conceptkit.registry.sharing.incoming import ImportResult
from conceptkit.registry.store import Registry

FOLDER = "trash"
_FILE = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9_-]*)(?:@(?P<version>\d+))?\.(?P<at>\d+)\.bundle")


def discard(registry: Registry, name: str) -> tuple[list[Entry], str | None]:
    """Remove a name, or a version of it, and keep it in the trash: what was removed, and a sentence.

    The sentence says why something could not be kept, as where its bytes are damaged. Tags, notes and
    previews are kept; the path of a base and the names of photos are not. Raises UnknownConcept.
    """
    entries = _versions(registry, name)
    folder = paths.make_private(registry.home / FOLDER)
    file = folder / f"{name}.{time.time_ns()}.bundle"
    sentence = None
    try:
        exchange.export(registry, entries, file)
    except ConceptError as error:
        sentence = f"{name} is not in the trash: {error}"
    return registry.remove(name), sentence


def take_back(registry: Registry, name: str) -> list[ImportResult]:
    """What was removed last under that name, back into the registry. Raises UnknownConcept."""
    found = [file for file in listing(registry.home) if _parts(file)[0] == name]
    if not found:
        raise UnknownConcept(
            f"There is no {name[:80]!r} in the trash; `conceptkit gc` shows how much is in it"
        )
    done = exchange.import_file(registry, found[-1], take=True)
    found[-1].unlink()
    return done.arrivals


def listing(home: Path) -> list[Path]:
    """The bundles in the trash, the latest last."""
    folder = home / FOLDER
    if not odd_files.own_folder(folder):
        return []
    return sorted(
        (file for file in folder.iterdir() if _FILE.fullmatch(file.name)), key=lambda f: _parts(f)[1]
    )


def empty(home: Path, delete: bool = False) -> tuple[int, int]:
    """(how many bundles are in the trash, their bytes), which are deleted if `delete`."""
    files = listing(home)
    size = sum(odd_files.plain_size(file) or 0 for file in files)
    for file in files if delete else ():
        file.unlink(missing_ok=True)
    return len(files), size


def _versions(registry: Registry, name: str) -> Sequence[Entry]:
    bare, version = split_version(name)
    return [registry.get(name)] if version is not None else registry.versions(bare)


def _parts(file: Path) -> tuple[str, int]:
    found = _FILE.fullmatch(file.name)
    return (found["name"], int(found["at"])) if found else ("", 0)
