"""Curves as a PNG, with what the package already has for drawing words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from conceptkit.pictures.text import block

PAPER, INK, GRID = (255, 255, 255), (38, 36, 33), (225, 222, 215)
COLOURS = (
    (31, 95, 168),
    (214, 88, 36),
    (52, 134, 74),
    (150, 72, 160),
    (120, 100, 60),
    (200, 40, 90),
    (90, 90, 90),
)
LEFT, TOP, WIDTH, HEIGHT = 110, 90, 900, 520


def curves(
    title: str, across: str, upward: str, lines: Mapping[str, Sequence[tuple[float, float]]]
) -> Image.Image:
    """Points (x, y) joined to a line for each name; x is logarithmic, y from 0 (or less) to 1 (or more)."""
    points = [point for line in lines.values() for point in line if math.isfinite(point[1])]
    xs = sorted({x for x, _ in points}) or [1.0]
    low, high = min([0.0, *(y for _, y in points)]), max([1.0, *(y for _, y in points)])
    span = max(math.log(xs[-1] / xs[0]), 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + math.log(x / xs[0]) / span * WIDTH, TOP + (high - y) / (high - low) * HEIGHT

    page = Image.new("RGB", (LEFT + WIDTH + 220, TOP + HEIGHT + 110), PAPER)
    pen = ImageDraw.Draw(page)
    page.paste(INK, (LEFT, 24), block(title, 26, WIDTH, bold=True))
    for k in range(6):
        y = low + (high - low) * k / 5
        pen.line([place(xs[0], y), place(xs[-1], y)], GRID, 2)
        page.paste(INK, (10, round(place(xs[0], y)[1]) - 12), block(f"{y:.2f}", 18, LEFT - 24, align="right"))
    for x in xs:
        at = round(place(x, low)[0])
        page.paste(INK, (at - 30, TOP + HEIGHT + 12), block(f"{x:g}", 18, 60, align="center"))
    page.paste(INK, (LEFT, TOP + HEIGHT + 50), block(across, 18, WIDTH, align="center"))
    page.paste(INK, (LEFT, 60), block(upward, 18, WIDTH))
    for k, (name, line) in enumerate(lines.items()):
        colour = COLOURS[k % len(COLOURS)]
        told = [place(x, y) for x, y in line if math.isfinite(y)]
        if len(told) > 1:
            pen.line(told, colour, 4, joint="curve")
        for x, y in told:
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), colour)
        page.paste(colour, (LEFT + WIDTH + 24, TOP + 30 * k), block(name, 20, 180))
    return page
