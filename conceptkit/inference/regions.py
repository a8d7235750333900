"""Parts of a picture that concepts are to stay in: words, boxes and mask files become boolean grids."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from conceptkit.concepts.prompt_rewriting import nearest
from conceptkit.errors import BadRegion

GRID = 240
"""Cells along each side of the picture in which regions are compared: halves, thirds and fifths fit."""

NAMED = {
    "left": (0, 0, 1 / 2, 1),
    "right": (1 / 2, 0, 1, 1),
    "top": (0, 0, 1, 1 / 2),
    "bottom": (0, 1 / 2, 1, 1),
    "left-third": (0, 0, 1 / 3, 1),
    "middle-third": (1 / 3, 0, 2 / 3, 1),
    "right-third": (2 / 3, 0, 1, 1),
    "top-third": (0, 0, 1, 1 / 3),
    "bottom-third": (0, 2 / 3, 1, 1),
}
"""x0, y0, x1, y1 as fractions of the picture, from its upper left corner."""

Mask = np.ndarray


def parse_regions(orders: Sequence[str], names: Collection[str] | None = None) -> dict[str, Mask]:
    """`"my_dog=left"`, `"my_dog=0,0,0.5,1"` or `"my_dog=mask.png"`: name -> (GRID, GRID) bool.

    A mask file is white where the concept may be. Raises BadRegion when an order cannot be read, leaves the
    frame, is empty, overlaps another, or is for a concept that is not among `names`.
    """
    found: dict[str, Mask] = {}
    for order in orders:
        name, sign, place = order.partition("=")
        if not (sign and name and place):
            raise BadRegion(f"{order[:64]!r} is no region; write NAME=left, or a box as NAME=0,0,0.5,1")
        if name in found:
            raise BadRegion(f"{name} has two regions; give one, or one mask file with both parts")
        found[name] = mask(name, place)
    check(found, names)
    return found


def check(regions: Mapping[str, Mask], names: Collection[str] | None = None) -> None:
    """Raises BadRegion on regions that are empty, overlap, or belong to no concept of `names`."""
    for name, cells in regions.items():
        if names is not None and name not in names:
            near = nearest(name, names)
            hint = f"did you mean {near}?" if near else f"those in the picture are {', '.join(names)}"
            raise BadRegion(f"There is no {name} in this picture to give a region; {hint}")
        if not cells.any():
            raise BadRegion(f"The region of {name} is empty; give it some of the picture")
    told = list(regions.items())
    for i, (name, cells) in enumerate(told):
        for other, theirs in told[:i]:
            if share := (cells & theirs).mean():
                raise BadRegion(
                    f"The regions of {other} and {name} share {share:.1%} of the picture; keep them apart"
                )


def mask(name: str, place: str) -> Mask:
    """One region as (GRID, GRID) bool. Raises BadRegion."""
    if place in NAMED:
        return _box(name, NAMED[place])
    if "," in place and not place.lower().endswith(".png"):
        return _box(name, _numbers(name, place))
    if place.lower().endswith(".png"):
        return _drawn(name, Path(place))
    raise BadRegion(
        f"{place[:64]!r} is no region for {name}; use one of {', '.join(NAMED)}, a box x0,y0,x1,y1, or a PNG"
    )


def _numbers(name: str, place: str) -> tuple[float, float, float, float]:
    parts = place.split(",")
    if len(parts) != 4 or not all(re.fullmatch(r"\s*-?\d*\.?\d+\s*", part) for part in parts):
        raise BadRegion(f"{place[:64]!r} is no box for {name}; give x0,y0,x1,y1 as fractions, like 0,0,0.5,1")
    x0, y0, x1, y1 = map(float, parts)
    return x0, y0, x1, y1


def _box(name: str, box: tuple[float, float, float, float]) -> Mask:
    x0, y0, x1, y1 = box
    if not all(0 <= edge <= 1 for edge in box):
        raise BadRegion(f"The box of {name} leaves the picture; its numbers are fractions from 0 to 1")
    if x0 >= x1 or y0 >= y1:
        raise BadRegion(f"The box of {name} is empty; x0 must be less than x1 and y0 less than y1")
    centres = (np.arange(GRID) + 0.5) / GRID
    return ((centres >= y0) & (centres < y1))[:, None] & ((centres >= x0) & (centres < x1))[None, :]


def _drawn(name: str, path: Path) -> Mask:
    try:
        with Image.open(path) as picture:
            flat = picture.convert("L").resize((GRID, GRID), Image.Resampling.BOX)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadRegion(f"{path} cannot be read as the mask of {name}; give a PNG, white inside") from error
    return np.asarray(flat) >= 128
