"""Drawing primitives: polygons in a local frame, painted antialiased, patterned and clipped.

An object is drawn in its own frame: x to the right, y down, about [-1, 1] each way, standing on y = 1.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

SIZE = 64
OVERSAMPLE = 3


@dataclass(frozen=True)
class Paint:
    """How a part of an object is coloured: a flat colour, then a public pattern or material over it."""

    colour: RGB
    pattern: str = "plain"

    def shade(self, factor: float) -> Paint:
        """The same paint, lighter above 1 and darker below."""
        return replace(self, colour=shade(self.colour, factor))


def shade(colour: RGB, factor: float) -> RGB:
    """Darker (factor < 1) or lighter (factor > 1, towards white)."""
    if factor <= 1:
        r, g, b = (int(v * factor) for v in colour)
    else:
        r, g, b = (int(v + (255 - v) * (factor - 1)) for v in colour)
    return r, g, b


def hsv(h: float, s: float, v: float) -> RGB:
    """A colour from hue, saturation and value, each in [0, 1]."""
    r, g, b = colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0), 1), min(max(v, 0), 1))
    return round(255 * r), round(255 * g), round(255 * b)


def disc(
    cx: float, cy: float, rx: float, ry: float | None = None, turn: float = 0.0, n: int = 28
) -> list[Point]:
    """An ellipse as a polygon; `turn` in degrees."""
    ry = rx if ry is None else ry
    co, si = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    ring = [(rx * math.cos(2 * math.pi * k / n), ry * math.sin(2 * math.pi * k / n)) for k in range(n)]
    return [(cx + x * co - y * si, cy + x * si + y * co) for x, y in ring]


def arc(cx: float, cy: float, r: float, start: float, stop: float, n: int = 14) -> list[Point]:
    """Points along a circle's arc; angles in degrees, clockwise from the right."""
    angles = [math.radians(start + (stop - start) * k / (n - 1)) for k in range(n)]
    return [(cx + r * math.cos(a), cy + r * math.sin(a)) for a in angles]


def box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    """The corners of a rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def bar(a: Point, b: Point, width: float, end: float | None = None) -> list[Point]:
    """A thick line from a to b as a polygon; `end` is the width at b."""
    end = width if end is None else end
    dx, dy = b[0] - a[0], b[1] - a[1]
    norm = math.hypot(dx, dy) or 1.0
    nx, ny = -dy / norm / 2, dx / norm / 2
    return [
        (a[0] + nx * width, a[1] + ny * width),
        (b[0] + nx * end, b[1] + ny * end),
        (b[0] - nx * end, b[1] - ny * end),
        (a[0] - nx * width, a[1] - ny * width),
    ]


def star(cx: float, cy: float, r: float, points: int = 5, inner: float = 0.45) -> list[Point]:
    """A star around (cx, cy)."""
    radii = [r if k % 2 == 0 else r * inner for k in range(2 * points)]
    return [
        (cx + q * math.sin(math.pi * k / points), cy - q * math.cos(math.pi * k / points))
        for k, q in enumerate(radii)
    ]


def heart(cx: float, cy: float, r: float) -> list[Point]:
    """A heart around (cx, cy)."""
    ts = [2 * math.pi * k / 24 for k in range(24)]
    return [
        (
            cx + r * math.sin(t) ** 3,
            cy - r * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in ts
    ]


class Canvas:
    """A square picture under an affine frame. `body` shapes also collect a mask that clips markings."""

    def __init__(self, background: Image.Image) -> None:
        self.image = background
        self.draw = ImageDraw.Draw(background)
        self.px = background.width
        self.frame = np.array([[1.0, 0, 0], [0, 1.0, 0]])
        self.mask: Image.Image | None = None

    @contextmanager
    def placed(
        self, x: float, y: float, sx: float, sy: float | None = None, turn: float = 0.0
    ) -> Iterator[Canvas]:
        """Draw in a frame with its origin at (x, y) of the present one, scaled, then turned by degrees."""
        sy = sx if sy is None else sy
        co, si = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        local = np.array([[co * sx, -si * sy, x], [si * sx, co * sy, y], [0, 0, 1.0]])
        before, self.frame = self.frame, self.frame @ local
        try:
            yield self
        finally:
            self.frame = before

    def pixels(self, points: Sequence[Point]) -> list[Point]:
        """Points of the present frame as pixels of the picture."""
        p = np.asarray(points) @ self.frame[:, :2].T + self.frame[:, 2]
        return [(float(x), float(y)) for x, y in p * self.px]

    @property
    def unit(self) -> float:
        """Pixels that one unit of the present frame spans."""
        return float(np.sqrt(abs(np.linalg.det(self.frame[:, :2])))) * self.px

    def fill(self, points: Sequence[Point], colour: RGB) -> None:
        """A polygon of one colour."""
        self.draw.polygon(self.pixels(points), fill=colour)

    def line(self, points: Sequence[Point], colour: RGB, width: float) -> None:
        """A line through the points, `width` in units of the frame."""
        self.draw.line(
            self.pixels(points), fill=colour, width=max(OVERSAMPLE, round(width * self.unit)), joint="curve"
        )

    def stencil(self, points: Sequence[Point]) -> Image.Image:
        """A mask that is white inside the polygon."""
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(self.pixels(points), fill=255)
        return mask

    def body(self, points: Sequence[Point], paint: Paint, outline: bool = True) -> None:
        """A part of the object itself: painted, outlined a little darker, and open to markings."""
        spots = self.pixels(points)
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(spots, fill=255)
        self.draw.polygon(spots, fill=paint.colour)
        if paint.pattern != "plain":
            PATTERNS[paint.pattern](self, mask, paint.colour)
        if outline:
            self.draw.line(
                [*spots, spots[0]], fill=shade(paint.colour, 0.62), width=OVERSAMPLE, joint="curve"
            )
        self.mask = mask if self.mask is None else ImageChops.lighter(self.mask, mask)

    def marking(self, points: Sequence[Point], colour: RGB) -> None:
        """A polygon clipped to what `body` has painted so far."""
        if self.mask is not None:
            clipped = ImageChops.multiply(self.mask, self.stencil(points))
            self.image.paste(colour, (0, 0), clipped)


def _strokes(canvas: Canvas, mask: Image.Image, shapes: Sequence[Sequence[Point]], colour: RGB) -> None:
    layer = Image.new("L", canvas.image.size)
    pen = ImageDraw.Draw(layer)
    for shape in shapes:
        pen.polygon(canvas.pixels(shape), fill=255)
    canvas.image.paste(colour, (0, 0), ImageChops.multiply(layer, mask))


def _contrast(colour: RGB) -> RGB:
    return shade(colour, 1.72) if sum(colour) < 390 else shade(colour, 0.45)


def _striped(canvas: Canvas, mask: Image.Image, colour: RGB) -> None:
    _strokes(canvas, mask, [box(x, -2, x + 0.13, 2) for x in np.arange(-2, 2, 0.3)], _contrast(colour))


def _spotted(canvas: Canvas, mask: Image.Image, colour: RGB) -> None:
    spots = [
        disc(x + (0.2 if row % 2 else 0), y, 0.09, n=10)
        for row, y in enumerate(np.arange(-1.4, 1.4, 0.3))
        for x in np.arange(-1.6, 1.6, 0.4)
    ]
    _strokes(canvas, mask, spots, _contrast(colour))


def _checkered(canvas: Canvas, mask: Image.Image, colour: RGB) -> None:
    cells = [
        box(x, y, x + 0.22, y + 0.22)
        for i, x in enumerate(np.arange(-1.76, 1.76, 0.22))
        for j, y in enumerate(np.arange(-1.54, 1.54, 0.22))
        if (i + j) % 2
    ]
    _strokes(canvas, mask, cells, _contrast(colour))


def _wooden(canvas: Canvas, mask: Image.Image, _: RGB) -> None:
    canvas.image.paste((168, 112, 62), (0, 0), mask)
    grain = [box(-2, y, 2, y + 0.05) for y in np.arange(-1.5, 1.5, 0.2)]
    _strokes(canvas, mask, grain, (118, 72, 36))


def _golden(canvas: Canvas, mask: Image.Image, _: RGB) -> None:
    canvas.image.paste((226, 172, 40), (0, 0), mask)
    shine = [bar((x, -2), (x + 1.2, 2), 0.2) for x in np.arange(-2.4, 2, 0.75)]
    _strokes(canvas, mask, shine, (255, 236, 150))


def _stone(canvas: Canvas, mask: Image.Image, _: RGB) -> None:
    canvas.image.paste((150, 148, 145), (0, 0), mask)
    joints: list[list[Point]] = [box(-2, y, 2, y + 0.045) for y in np.arange(-1.5, 1.5, 0.3)]
    for row, y in enumerate(np.arange(-1.5, 1.5, 0.3)):
        joints += [box(x, y, x + 0.045, y + 0.3) for x in np.arange(-1.6 + 0.2 * (row % 2), 1.6, 0.44)]
    _strokes(canvas, mask, joints, (98, 96, 96))


PATTERNS = {
    "striped": _striped,
    "spotted": _spotted,
    "checkered": _checkered,
    "wooden": _wooden,
    "golden": _golden,
    "stone": _stone,
}
