"""What lies beside the photos: a caption in `1.txt` for `1.jpg`, a subject's mask in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conceptkit.data.photos import PhotoSet
from conceptkit.errors import BadPhotos
from conceptkit.registry.paths import expanded

LONGEST = 1000  # characters of a caption; a prompt holds a quarter of that


def captions(paths: Sequence[Path | str] | Path | str, photos: PhotoSet) -> tuple[str | None, ...]:
    """For each photo the text of the .txt file of its name, on one line; () when no photo has one.

    Raises BadPhotos when a caption cannot be read, or two photos of one name have different ones.
    """
    found: dict[str, str] = {}
    for folder in _folders(paths):
        for name in photos.names:
            file = folder / Path(name).with_suffix(".txt").name
            if not (folder / name).is_file() or not file.is_file():
                continue
            text = _text(file)
            if found.setdefault(name, text) != text:
                raise BadPhotos(
                    f"Two photos are called {name} and have different captions; rename one of them."
                )
    return tuple(found.get(name) or None for name in photos.names) if any(found.values()) else ()


def _folders(paths: Sequence[Path | str] | Path | str) -> list[Path]:
    roots = [expanded(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    return list(dict.fromkeys(root if root.is_dir() else root.parent for root in roots))


def _text(file: Path) -> str:
    try:
        text = " ".join(file.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise BadPhotos(f"{file} cannot be read as a caption; save it as text in UTF-8.") from error
    if len(text) > LONGEST:
        raise BadPhotos(f"{file} has {len(text)} characters, too many for a caption; keep to {LONGEST}.")
    return text
