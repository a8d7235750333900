"""Augmented views of photos: scale, crop, place, and the words that say so (Custom Diffusion, 2212.04488)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from conceptkit.data.resize import resized_crop


@dataclass(frozen=True)
class Framing:
    """How views are scaled: `still` of them show the whole photo; of the others two in three are zoomed out
    to a share of the canvas, one in three is zoomed in. The defaults are Custom Diffusion's."""

    zoom_out: tuple[float, float] = (1 / 3, 1.0)
    zoom_in: tuple[float, float] = (1.2, 1.4)
    still: float = 0.0


SMALL = 256
"""Bases whose pictures have fewer pixels a side take `GENTLE`."""
GENTLE = Framing(zoom_out=(0.7, 1.0), zoom_in=(1.1, 1.3), still=0.4)
"""For bases of small pictures, where a subject at a third of the canvas is a smudge."""
STYLE = Framing(zoom_out=(1.0, 1.0), zoom_in=(1.0, 1.4))
"""A style is all over the picture, and has no size."""
CROP = Framing(still=1.0)
"""All that fits into a square of the photo's shorter side."""


FAR_BELOW = 0.6
FAR_WORDS = ("a far away ", "very small ")
NEAR_WORDS = ("zoomed in ", "close up ")


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


def augment(
    picture: Image.Image,
    size: int,
    rng: np.random.Generator,
    latent_cell: int,
    *,
    hflip: bool = True,
    framing: Framing | None = None,
    centered: bool = False,
) -> View:
    """One random view of a photo, with Custom Diffusion's scale augmentation (arXiv 2212.04488, section 3.2).

    Two views in three show the picture at 1/3 to 1 of the canvas, the others at 1.2 to 1.4; below 0.6 and
    above 1 the caption gains words that say so. The mask is the picture's box, in whole latent cells, less
    one cell on each side (but never empty); a view without canvas counts everywhere. `latent_cell` is the
    width of one latent in pixels. centered: a long photo is cropped in its very middle. Takes exactly seven
    numbers from `rng`, whatever the picture.
    """
    kind, amount, across, x, y, mirror, word = rng.random(7)
    scale = _scale(framing or Framing(), kind, amount)
    side = max(1, round(scale * size))
    # A long photo is cropped near its middle, where the subject is: at most half of what is spare is moved.
    at = 0.5 if centered else 0.25 + 0.5 * across
    patch = np.asarray(resized_crop(picture, side, across=at), dtype=np.float32) / 127.5 - 1
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
