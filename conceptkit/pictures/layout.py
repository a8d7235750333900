"""A picture with the parts of its things drawn over it, and their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from conceptkit.pictures.contact_sheet import INK, grid
from conceptkit.pictures.text import font, legible

SIZE = 384
"""Pixels on the longer side of a picture."""
TINT = 0.45
COLOURS = ((214, 69, 65), (38, 103, 180), (34, 139, 84), (196, 131, 18), (125, 78, 160), (90, 90, 90))


@dataclass(frozen=True, eq=False)
class Region:
    """name: what is written on it. mask (h, w): 0 to 1. found: whether the thing is there."""

    name: str
    mask: NDArray[np.float32]
    found: bool = True


def layout_picture(picture: Image.Image, regions: Sequence[Region]) -> Image.Image:
    """The picture in grey, each region in a colour of its own with its name; "?" where nothing was found."""
    scale = SIZE / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    seen = np.asarray(picture.convert("L").convert("RGB").resize(size), dtype=np.float64)
    for i, region in enumerate(regions):
        mask = Image.fromarray((255 * region.mask.clip(0, 1)).astype(np.uint8)).resize(size)
        share = TINT * np.asarray(mask, dtype=np.float64)[..., None] / 255
        seen = seen * (1 - share) + share * np.array(COLOURS[i % len(COLOURS)])
    drawn = Image.fromarray(seen.round().astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for region in regions:
        rows, columns = np.nonzero(region.mask >= 0.5)
        if not len(rows):
            continue
        h, w = region.mask.shape
        middle = ((columns.mean() + 0.5) / w * size[0], (rows.mean() + 0.5) / h * size[1])
        text = legible(region.name if region.found else f"{region.name}?")
        pen.text(middle, text, INK, font(SIZE // 18), anchor="mm", stroke_width=3, stroke_fill="white")
    return drawn


def layout_sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 4) -> Image.Image:
    """Several of them on one sheet; one by itself."""
    return pictures[0] if len(pictures) == 1 else grid(pictures, columns, captions, tile=SIZE)
