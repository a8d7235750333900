"""Photos on their way into learning: read from disk, cropped, augmented. Nothing here knows of a model."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from conceptkit.decode import decode
from conceptkit.errors import BadPhotos

SMALLEST = 32  # pixels on the shorter side; below that there is no subject to learn
LARGEST = 2048  # pixels kept on the shorter side: 1.4 x 1024, the most any view asks for, and some room
READABLE = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".avif"}
READABLE |= {".tif", ".tiff", ".heic", ".heif", ".hif", ".jp2", ".ppm", ".pgm"}
UNREADABLE = {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".psd", ".svg", ".xcf", ".jxl"}


@dataclass(frozen=True)
class Framing:
    """How views are scaled: `still` of them show the whole photo; of the others two in three are zoomed out
    to a share of the canvas, one in three is zoomed in. The defaults are Custom Diffusion's."""

    zoom_out: tuple[float, float] = (1 / 3, 1.0)
    zoom_in: tuple[float, float] = (1.2, 1.4)
    still: float = 0.0


FAR_BELOW = 0.6
FAR_WORDS = ("a far away ", "very small ")
NEAR_WORDS = ("zoomed in ", "close up ")


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """Photos of one subject: upright RGB pictures, their file names, and sha256 over their pixels."""

    pictures: tuple[Image.Image, ...]
    names: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.pictures)

    def for_size(self, size: int) -> PhotoSet:
        """The same set, no larger than views of `size` pixels can show, which makes `augment` fast."""
        most = math.ceil(Framing().zoom_in[1] * size)
        return replace(self, pictures=tuple(_at_most(picture, most) for picture in self.pictures))


@dataclass(frozen=True, eq=False)
class View:
    """One augmented look at a photo.

    pixels: float32 (3, size, size) in [-1, 1], 0 on the canvas around a small picture.
    mask: float32 (size // cell, size // cell) of 0 and 1; 1 where the loss counts.
    prefix: words to put before the caption, or "".
    box: left, top, right, bottom of the picture on the canvas, in pixels.
    """

    pixels: np.ndarray
    mask: np.ndarray
    prefix: str
    box: tuple[int, int, int, int]


def read(paths: Sequence[Path | str] | Path | str) -> PhotoSet:
    """Photos from folders (not their subfolders) and files, in the order of their file names.

    EXIF orientation and colour profile are applied, transparency is laid on white, 16-bit, CMYK, grey and
    palette pictures become 8-bit RGB, animations give their first frame, and a photo whose shorter side is
    over 2048 pixels is shrunk to that. Raises BadPhotos, naming the file, at the first that cannot be used.
    """
    roots = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    files = {file.resolve(): file for root in roots for file in _files(root.expanduser())}
    if not files:
        raise BadPhotos(_nothing_found(roots))
    photos = [(file.name, _read(file)) for file in files.values()]
    # Ties between equal names are broken by pixels, so that where a folder lies never changes the order.
    hashed = [(name, _pixel_hash(picture), picture) for name, picture in photos]
    keyed = sorted(hashed, key=lambda photo: photo[:2])
    return PhotoSet(
        pictures=tuple(picture for _, _, picture in keyed),
        names=tuple(name for name, _, _ in keyed),
        digest=hashlib.sha256(b"".join(pixels for _, pixels, _ in keyed)).hexdigest(),
    )


def square(picture: Image.Image, size: int) -> Image.Image:
    """The centre of the picture as a square of `size` pixels: cropped, never squashed."""
    return _resized_crop(picture, size, across=0.5)


def augment(
    picture: Image.Image,
    size: int,
    rng: np.random.Generator,
    latent_cell: int,
    *,
    hflip: bool = True,
    framing: Framing | None = None,
) -> View:
    """One random view of a photo, with Custom Diffusion's scale augmentation (arXiv 2212.04488, section 3.2).

    Two views in three show the picture at 1/3 to 1 of the canvas, the others at 1.2 to 1.4; below 0.6 and
    above 1 the caption gains words that say so. The mask is the picture's box, in whole latent cells, less
    one cell on each side (but never empty); a view without canvas counts everywhere. `latent_cell` is the
    width of one latent in pixels. Takes exactly seven numbers from `rng`, whatever the picture.
    """
    kind, amount, across, x, y, mirror, word = rng.random(7)
    scale = _scale(framing or Framing(), kind, amount)
    side = max(1, round(scale * size))
    # A long photo is cropped near its middle, where the subject is: at most half of what is spare is moved.
    patch = np.asarray(_resized_crop(picture, side, across=0.25 + 0.5 * across), dtype=np.float32) / 127.5 - 1
    if hflip and mirror < 0.5:
        patch = patch[:, ::-1]
    left, top = (int(spot * (abs(size - side) + 1)) for spot in (x, y))
    if side >= size:
        canvas = patch[top : top + size, left : left + size]
        box = (0, 0, size, size)
    else:
        canvas = np.zeros((size, size, 3), dtype=np.float32)
        canvas[top : top + side, left : left + side] = patch
        box = (left, top, left + side, top + side)
    return View(
        pixels=np.ascontiguousarray(canvas.transpose(2, 0, 1)),
        mask=_mask(box, size, latent_cell),
        prefix=_prefix(scale, word),
        box=box,
    )


def flatness(picture: Image.Image) -> float:
    """Share of neighbouring pixels that are of one colour, within 3 of 255: near 1 in drawings, 0 to 1."""
    values = np.asarray(picture.convert("RGB"), dtype=np.int16)
    steps = [np.abs(np.diff(values, axis=axis)).max(axis=2) <= 3 for axis in (0, 1)]
    return float(np.mean([step.mean() for step in steps]))


def suggest_noun(name: str, folder: Path | str | None, nouns: Collection[str]) -> str | None:
    """The class noun that a concept's name or its photos' folder speaks of, or None.

    "my_dog" and "dogs" give "dog", "my_dog_house" gives "house" (the last word is what a thing is), and
    "moongate" gives "gate".
    """
    texts = [_words(name)] + ([_words(Path(folder).resolve().name)] if folder is not None else [])
    known = {" ".join(_words(noun)): noun for noun in nouns}
    for words in texts:
        for end in range(len(words), 0, -1):
            for start in range(end):
                for last in _singulars(words[end - 1]):
                    phrase = " ".join([*words[start : end - 1], last])
                    if phrase in known:
                        return known[phrase]
    for words in texts:
        for word in reversed(words):
            for phrase in sorted(known, key=len, reverse=True):
                rest = [single.removesuffix(phrase) for single in _singulars(word) if single.endswith(phrase)]
                # A short noun inside a longer word is mostly chance: a scar is no car, but mydog is a dog.
                if rest and (len(phrase) >= 4 or rest[0] in ("my", "our", "the", "her", "his")):
                    return known[phrase]
    return None


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
    return _at_most(picture, LARGEST)


def _at_most(picture: Image.Image, short_side: int) -> Image.Image:
    if min(picture.size) <= short_side:
        return picture
    ratio = short_side / min(picture.size)
    width, height = (max(short_side, round(side * ratio)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _pixel_hash(picture: Image.Image) -> bytes:
    width, height = picture.size
    return hashlib.sha256(f"{width}x{height}:".encode() + picture.tobytes()).digest()


def _resized_crop(picture: Image.Image, side: int, across: float) -> Image.Image:
    """The largest square of the picture, `across` (0 to 1) of the way along its longer side, resized."""
    short = min(picture.size)
    left, top = ((length - short) * across for length in picture.size)
    box = (left, top, left + short, top + short)
    return picture.resize((side, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _scale(framing: Framing, kind: float, amount: float) -> float:
    if kind < framing.still:
        return 1.0
    low, high = framing.zoom_out if kind - framing.still < (1 - framing.still) * 2 / 3 else framing.zoom_in
    return low + (high - low) * amount


def _mask(box: tuple[int, int, int, int], size: int, cell: int) -> np.ndarray:
    cells = size // cell
    if box == (0, 0, size, size):
        return np.ones((cells, cells), dtype=np.float32)
    (left, right), (top, bottom) = (_inner_cells(*ends, cell) for ends in (box[0::2], box[1::2]))
    mask = np.zeros((cells, cells), dtype=np.float32)
    mask[top:bottom, left:right] = 1
    return mask


def _inner_cells(start: int, stop: int, cell: int) -> tuple[int, int]:
    first, last = math.ceil(start / cell) + 1, stop // cell - 1
    if first < last:
        return first, last
    middle = (start + stop) // (2 * cell)
    return middle, middle + 1


def _prefix(scale: float, word: float) -> str:
    if FAR_BELOW <= scale <= 1:
        return ""
    choices = FAR_WORDS if scale < FAR_BELOW else NEAR_WORDS
    return choices[int(word * len(choices))]


def _words(text: str) -> list[str]:
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", text))
    return re.findall(r"[^\W\d_]+", parted.lower())


def _singulars(word: str) -> list[str]:
    """The word, then what it may be the plural of: "puppies" gives "puppies", "puppie", "puppi", "puppy"."""
    endings = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"))
    return [word] + [word.removesuffix(many) + one for many, one in endings if word.endswith(many)]
