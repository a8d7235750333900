"""Photos on their way into learning: read from disk, cropped, augmented. Nothing here knows of a model."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from conceptkit.data.augmentation import Framing
from conceptkit.data.captions import captions_beside
from conceptkit.data.decode import decode
from conceptkit.data.masks import masks_for
from conceptkit.data.resize import LARGEST, at_most
from conceptkit.errors import BadPhotos
from conceptkit.registry.paths import expanded

SMALLEST = 32  # pixels on the shorter side; below that there is no subject to learn
READABLE = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".avif"}
READABLE |= {".tif", ".tiff", ".heic", ".heif", ".hif", ".jp2", ".ppm", ".pgm"}
UNREADABLE = {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".psd", ".svg", ".xcf", ".jxl"}


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """Photos of one subject, and what lies beside them.

    pictures: upright RGB. names: of their files. digest: sha256 over their pixels.
    captions, masks: one for each photo, None where there is none; or (). Masks (mode L) are white on it.
    folder: where the first of them lies.
    """

    pictures: tuple[Image.Image, ...]
    names: tuple[str, ...]
    digest: str
    captions: tuple[str | None, ...] = ()
    masks: tuple[Image.Image | None, ...] = ()
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def part(self, begin: int, end: int | None = None) -> PhotoSet:
        """The photos from `begin` up to `end`, with what lies beside them; the digest stays that of all."""
        some = slice(begin, end)
        return replace(
            self,
            pictures=self.pictures[some],
            names=self.names[some],
            captions=self.captions[some],
            masks=self.masks[some],
        )

    def for_size(self, size: int) -> PhotoSet:
        """The same set, no larger than views of `size` pixels can show, which makes `augment` fast."""
        most = math.ceil(Framing().zoom_in[1] * size)
        return replace(self, pictures=tuple(at_most(picture, most) for picture in self.pictures))


def read(paths: Sequence[Path | str] | Path | str, masks: Path | str | None = None) -> PhotoSet:
    """Photos from folders (not their subfolders) and files, in the order of their file names.

    Each comes with the caption beside it (`captions_beside`), and with its mask in the folder `masks`.

    EXIF orientation and colour profile are applied, transparency is laid on white, 16-bit, CMYK, grey and
    palette pictures become 8-bit RGB, animations give their first frame, and a photo whose shorter side is
    over 2048 pixels is shrunk to that. Raises BadPhotos, naming the file, at the first that cannot be used.
    """
    roots = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    files = {os.path.realpath(file): file for root in roots for file in _files(expanded(root))}
    if not files:
        raise BadPhotos(_nothing_found(roots))
    photos = [(file, _read(file)) for file in files.values()]
    # Ties between equal names are broken by pixels, so that where a folder lies never changes the order.
    hashed = [(file.name, _pixel_hash(picture), file, picture) for file, picture in photos]
    keyed = sorted(hashed, key=lambda photo: photo[:2])
    names, pictures = [name for name, *_ in keyed], [picture for *_, picture in keyed]
    return PhotoSet(
        pictures=tuple(pictures),
        names=tuple(names),
        digest=hashlib.sha256(b"".join(pixels for _, pixels, *_ in keyed)).hexdigest(),
        captions=captions_beside([file for _, _, file, _ in keyed]),
        masks=masks_for(masks, names, pictures),
        folder=next(iter(files.values())).parent,
    )


def flatness(picture: Image.Image) -> float:
    """Share of neighbouring pixels that are of one colour, within 3 of 255: near 1 in drawings, 0 to 1."""
    values = np.asarray(picture.convert("RGB"), dtype=np.int16)
    steps = [np.abs(np.diff(values, axis=axis)).max(axis=2) <= 3 for axis in (0, 1)]
    return float(np.mean([step.mean() for step in steps]))


def _files(root: Path) -> list[Path]:
    if not root.is_dir():
        return [root]
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise BadPhotos(f"{root} could not be read ({error.strerror}); check the folder.") from error
    wanted = READABLE | UNREADABLE
    pictures = [entry for entry in entries if entry.suffix.lower() in wanted and not entry.is_dir()]
    return [entry for entry in pictures if not entry.name.startswith(".")]


def _nothing_found(roots: Sequence[Path]) -> str:
    if not roots:
        return "No photos were given; name a folder or files, JPEG, PNG or WebP."
    where = ", ".join(str(root) for root in roots)
    return f"No photos in {where} (subfolders are not read); put one JPEG, PNG or WebP or more there."


def _read(file: Path) -> Image.Image:
    if not file.exists():
        raise BadPhotos(f"{file} does not exist; name a folder of photos or picture files.")
    if not file.is_file():
        raise BadPhotos(f"{file} is not a file; name a folder of photos or picture files.")
    if file.suffix.lower() in UNREADABLE:
        raise BadPhotos(f"{file} is a format that is not read here; export it as JPEG or take it out.")
    picture = decode(file)
    if min(picture.size) < SMALLEST:
        width, height = picture.size
        raise BadPhotos(f"{file} is {width} x {height} pixels; photos need {SMALLEST} or more on each side.")
    return at_most(picture, LARGEST)


def _pixel_hash(picture: Image.Image) -> bytes:
    width, height = picture.size
    return hashlib.sha256(f"{width}x{height}:".encode() + picture.tobytes()).digest()
