"""Words as masks to paste onto pictures: wrapped, aligned, and spelt with what the built-in font has."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

LEADING = 1.32  # line height by font size
SPELLINGS = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "×": "x", "•": "·", "≥": ">=", "≤": "<=", "→": "->", "½": "1/2", "µ": "u"}
    | {
        "²": "2",
        "³": "3",
        "ß": "ss",
        "ø": "o",
        "Ø": "O",
        "æ": "ae",
        "Æ": "AE",
        "œ": "oe",
        "Œ": "OE",
        "€": "EUR",
    }
)

Align = Literal["left", "center", "right"]


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own scalable font, which is there wherever Pillow is."""
    return ImageFont.load_default(size=size)


def legible(text: str) -> str:
    """The text in characters that the font has: accents dropped, "?" for letters of other scripts."""
    plain = unicodedata.normalize("NFKD", text.translate(SPELLINGS))
    return "".join(c if _drawable(c) else "?" for c in plain if not unicodedata.combining(c))


def length(text: str, size: int) -> int:
    """Pixels from the start to the end of the longest line, not wrapped."""
    return max((round(font(size).getlength(line)) for line in legible(text).split("\n")), default=0)


def wrap(text: str, size: int, width: int) -> list[str]:
    """Lines no wider than `width` pixels: broken at spaces, inside words only where one is too long."""
    lines = []
    for paragraph in legible(text).split("\n"):
        line = ""
        for word in paragraph.split():
            while font(size).getlength(f"{line} {word}".strip()) > width:
                if line:
                    lines.append(line)
                    line = ""
                else:
                    fits = _fitting(word, size, width)
                    lines.append(word[:fits])
                    word = word[fits:]
            line = f"{line} {word}".strip()
        lines.append(line)
    return lines


def block(text: str, size: int, width: int, *, bold: bool = False, align: Align = "left") -> Image.Image:
    """Wrapped text as an "L" mask, `width` pixels wide and as high as its lines; of height 1 without text."""
    lines = wrap(text, size, width) if text else []
    leading = round(size * LEADING)
    # Drawn at twice the size: the outline that makes letters bold may then be half a pixel wide.
    mask = Image.new("L", (2 * width, max(2, 2 * leading * len(lines))))
    pen = ImageDraw.Draw(mask)
    for row, line in enumerate(lines):
        spare = 2 * width - font(2 * size).getlength(line)
        left = {"left": 0.0, "center": spare / 2, "right": spare}[align]
        middle = (2 * row + 1) * leading
        pen.text((left, middle), line, 255, font(2 * size), anchor="lm", stroke_width=int(bold))
    return mask.reduce(2)


def table(rows: Sequence[Sequence[str]], size: int, width: int) -> Image.Image:
    """Cells in columns as an "L" mask: numbers right-aligned, too wide a column wrapped."""
    columns = max(len(row) for row in rows)
    full = [[*row, *[""] * (columns - len(row))] for row in rows]
    gap = round(size * 1.6)
    widths = [max(length(row[i], size) for row in full) + 2 for i in range(columns)]
    excess = sum(widths) + gap * (columns - 1) - width
    if excess > 0:
        widest = widths.index(max(widths))
        widths[widest] = max(4 * size, widths[widest] - excess)
    aligns: list[Align] = ["right" if _numeric([row[i] for row in full]) else "left" for i in range(columns)]
    lines = [
        [block(cell, size, wide, align=align) for cell, wide, align in zip(row, widths, aligns, strict=True)]
        for row in full
    ]
    heights = [max(cell.height for cell in line) for line in lines]
    mask = Image.new("L", (width, sum(heights)))
    for row, line in enumerate(lines):
        for column, cell in enumerate(line):
            mask.paste(cell, (sum(widths[:column]) + gap * column, sum(heights[:row])))
    return mask


def _fitting(word: str, size: int, width: int) -> int:
    """How many letters of a word fit, ending after "_" or "-" where that is not too short."""
    ends = range(1, len(word) + 1)
    fits = max(1, bisect_right(ends, width, key=lambda end: math.ceil(font(size).getlength(word[:end]))))
    seam = 1 + max(word.rfind("_", 0, fits), word.rfind("-", 0, fits))
    return seam if 3 * seam > fits else fits


def _numeric(cells: Sequence[str]) -> bool:
    """Whether most cells of a column, its heading aside, begin with a number."""
    filled = [cell.lstrip("+-−~.<>").strip() for cell in cells if cell.strip()]
    return 2 * sum(cell[:1].isdigit() for cell in filled) >= max(1, len(filled))


@cache
def _drawable(character: str) -> bool:
    if character.isspace():
        return True
    missing, drawn = (font(20).getmask(c) for c in ("\uffff", character))
    return (missing.size, bytes(missing)) != (drawn.size, bytes(drawn))
