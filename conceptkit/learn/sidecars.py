"""What lies beside the photos: a caption in `1.txt` for `1.jpg`, a subject's mask in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from conceptkit.decode import decode
from conceptkit.errors import BadPhotos
from conceptkit.photos import LARGEST, PhotoSet

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


def masks(folder: Path | str | None, photos: PhotoSet) -> tuple[Image.Image | None, ...]:
    """For each photo its mask in `folder`, a picture of the photo's name, white where the subject is.

    Raises BadPhotos when the folder has none of them, or a mask is of another size than its photo or black.
    """
    if folder is None:
        return ()
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise BadPhotos(f"{root} is no folder; name one with a mask for each photo, of the photo's name.")
    stems = {file.stem: file for file in sorted(root.iterdir()) if file.is_file() and file.name[0] != "."}
    found = [_mask(stems.get(Path(n).stem), p, n) for n, p in zip(photos.names, photos.pictures, strict=True)]
    if not any(found):
        raise BadPhotos(f"{root} has a mask for none of the photos; give them the names of the photos.")
    return tuple(found)


def _folders(paths: Sequence[Path | str] | Path | str) -> list[Path]:
    roots = [Path(path).expanduser() for path in ([paths] if isinstance(paths, str | Path) else paths)]
    return list(dict.fromkeys(root if root.is_dir() else root.parent for root in roots))


def _text(file: Path) -> str:
    try:
        text = " ".join(file.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise BadPhotos(f"{file} cannot be read as a caption; save it as text in UTF-8.") from error
    if len(text) > LONGEST:
        raise BadPhotos(f"{file} has {len(text)} characters, too many for a caption; keep to {LONGEST}.")
    return text


def _mask(file: Path | None, photo: Image.Image, name: str) -> Image.Image | None:
    if file is None:
        return None
    mask = decode(file, behind="black").convert("L")
    # A photo may have been shrunk since; then the shapes must agree as far as whole pixels do.
    same = mask.size == photo.size
    if not same and min(photo.size) == LARGEST:
        ratio = min(mask.size) / min(photo.size)
        same = all(abs(m - ratio * p) <= 1 + ratio for m, p in zip(mask.size, photo.size, strict=True))
    if not same:
        (w, h), (pw, ph) = mask.size, photo.size
        raise BadPhotos(
            f"The mask {file} is {w} x {h} pixels and its photo {name} {pw} x {ph}; make them equal."
        )
    if max(mask.tobytes()) < 128:
        raise BadPhotos(f"The mask {file} is black all over; paint the subject white.")
    return mask
