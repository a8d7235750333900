"""Crops and sizes of pictures."""

from __future__ import annotations

from PIL import Image

LARGEST = 2048  # pixels kept on the shorter side: 1.4 x 1024, the most any view asks for, and some room


def square(picture: Image.Image, size: int) -> Image.Image:
    """The centre of the picture as a square of `size` pixels: cropped, never squashed."""
    return resized_crop(picture, size, across=0.5)


def at_most(picture: Image.Image, short_side: int) -> Image.Image:
    """The picture, no side longer than that many pixels."""
    if min(picture.size) <= short_side:
        return picture
    ratio = short_side / min(picture.size)
    width, height = (max(short_side, round(side * ratio)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def resized_crop(picture: Image.Image, side: int, across: float) -> Image.Image:
    """The largest square of the picture, `across` (0 to 1) of the way along its longer side, resized."""
    short = min(picture.size)
    left, top = ((length - short) * across for length in picture.size)
    box = (left, top, left + short, top + short)
    return picture.resize((side, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
