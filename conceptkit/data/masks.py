"""Masks beside photos: white where the subject is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from conceptkit.data.decode import decode
from conceptkit.data.resize import LARGEST
from conceptkit.errors import BadPhotos
from conceptkit.registry.paths import expanded
from conceptkit.registry.texts import composed


def masks_for(
    folder: Path | str | None, names: Sequence[str], pictures: Sequence[Image.Image]
) -> tuple[Image.Image | None, ...]:
    """For each photo its mask in `folder`, a picture of the photo's name, white where the subject is.

    Raises BadPhotos when the folder has none of them, a mask is of another size than its photo or black, or
    one is that of several photos.
    """
    if folder is None:
        return ()
    root = expanded(folder)
    if not root.is_dir():
        raise BadPhotos(f"{root} is no folder; name one with a mask for each photo, of the photo's name.")
    files = [file for file in sorted(root.iterdir()) if file.is_file() and file.name[0] != "."]
    stems = {composed(file.stem): file for file in files}
    own = [composed(Path(name).stem) for name in names]
    for stem, count in Counter(own).items():
        if count > 1 and stem in stems:
            raise BadPhotos(f"The mask {stems[stem]} is of {count} photos of that name; rename all but one.")
    found = [_mask(stems.get(stem), p, n) for stem, p, n in zip(own, pictures, names, strict=True)]
    if not any(found):
        raise BadPhotos(f"{root} has a mask for none of the photos; give them the names of the photos.")
    return tuple(found)


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
