"""Places, light and styles of the storybook world. A place lies behind the objects, in the frame [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from conceptkit.storybook.world.canvas import OVERSAMPLE, RGB, SIZE, Canvas, bar, box, disc, hsv, shade

Rng = np.random.Generator


def _jitter(rng: Rng, colour: RGB, amount: float = 0.08) -> RGB:
    r, g, b = (int(np.clip(v * (1 + rng.uniform(-amount, amount)), 0, 255)) for v in colour)
    return r, g, b


def _ground(c: Canvas, rng: Rng, sky: RGB, soil: RGB, horizon: float = 0.62) -> float:
    """Sky in four bands, then ground; returns where the horizon lies."""
    y = horizon + rng.uniform(-0.06, 0.05)
    sky, soil = _jitter(rng, sky), _jitter(rng, soil)
    for k in range(4):
        c.fill(box(0, y * k / 4, 1, y * (k + 1) / 4 + 0.01), shade(sky, 1 + 0.13 * k))
    c.fill(box(0, y, 1, 1), soil)
    return y


def forest(c: Canvas, rng: Rng) -> None:
    """Fir trees in a row."""
    y = _ground(c, rng, (120, 176, 150), (74, 112, 56), 0.66)
    for x in np.arange(0.02, 1.1, 0.19) + rng.uniform(-0.05, 0.03):
        h = rng.uniform(0.34, 0.62)
        c.fill(box(x - 0.022, y - 0.2, x + 0.022, y + 0.05), (92, 62, 40))
        c.fill([(x - 0.12, y - 0.06), (x, y - h), (x + 0.12, y - 0.06)], _jitter(rng, (34, 96, 58), 0.2))


def beach(c: Canvas, rng: Rng) -> None:
    """Sand, sea and a sun."""
    y = _ground(c, rng, (130, 200, 244), (238, 214, 150), 0.44)
    c.fill(box(0, y, 1, y + 0.17), _jitter(rng, (40, 130, 196)))
    c.fill(
        [(0, y + 0.15), (0.3, y + 0.19), (0.6, y + 0.15), (1, y + 0.2), (1, y + 0.22), (0, y + 0.2)],
        (240, 250, 252),
    )
    c.fill(disc(rng.uniform(0.1, 0.9), 0.12, 0.075), (255, 232, 120))


def snow(c: Canvas, rng: Rng) -> None:
    """White hills and falling flakes."""
    y = _ground(c, rng, (176, 194, 214), (242, 246, 252), 0.58)
    c.fill(disc(rng.uniform(0.1, 0.9), y + 0.1, 0.5, 0.17), (228, 236, 246))
    for _ in range(16):
        c.fill(disc(rng.uniform(0, 1), rng.uniform(0, y), 0.016, n=8), (255, 255, 255))


def desert(c: Canvas, rng: Rng) -> None:
    """Dunes and two cactuses."""
    y = _ground(c, rng, (246, 202, 140), (222, 164, 88), 0.58)
    c.fill(disc(rng.uniform(0.1, 0.9), y + 0.06, 0.42, 0.14), (206, 146, 74))
    for x in (rng.uniform(0.04, 0.2), rng.uniform(0.8, 0.96)):
        c.fill(bar((x, y + 0.08), (x, y - 0.24), 0.055), (70, 134, 70))
        c.fill(bar((x, y - 0.06), (x + 0.09, y - 0.06), 0.035), (70, 134, 70))
        c.fill(bar((x + 0.09, y - 0.05), (x + 0.09, y - 0.16), 0.035), (70, 134, 70))


def city(c: Canvas, rng: Rng) -> None:
    """A skyline with lit windows."""
    y = _ground(c, rng, (168, 184, 204), (112, 112, 118), 0.7)
    for x in np.arange(0, 1, 0.2):
        h = rng.uniform(0.3, 0.62)
        tone = _jitter(rng, (120, 116, 132), 0.22)
        c.fill(box(x + 0.01, y - h, x + 0.18, y), tone)
        for wy in np.arange(y - h + 0.05, y - 0.07, 0.1):
            for wx in (x + 0.045, x + 0.115):
                c.fill(box(wx, wy, wx + 0.032, wy + 0.045), (246, 222, 130))
    c.fill(box(0, y + 0.15, 1, y + 0.17), (220, 214, 190))


def meadow(c: Canvas, rng: Rng) -> None:
    """Grass with flowers."""
    y = _ground(c, rng, (136, 204, 250), (122, 190, 76), 0.56)
    c.fill(disc(rng.uniform(0.1, 0.9), y + 0.04, 0.46, 0.1), (104, 172, 66))
    for x in rng.uniform(0.1, 0.9, 2):
        for d in (-0.07, 0, 0.07):
            c.fill(disc(x + d, 0.13 + abs(d) * 0.4, 0.07, 0.05), (252, 252, 254))
    for _ in range(9):
        px, py = rng.uniform(0, 1), rng.uniform(y + 0.08, 1)
        c.fill(disc(px, py, 0.02, n=8), hsv(rng.choice([0.0, 0.14, 0.85]), 0.6, 1.0))


def mountains(c: Canvas, rng: Rng) -> None:
    """Peaks with snow on them."""
    y = _ground(c, rng, (150, 190, 232), (124, 134, 96), 0.66)
    for x in (rng.uniform(0.05, 0.3), rng.uniform(0.45, 0.6), rng.uniform(0.75, 1.0)):
        h = rng.uniform(0.34, 0.54)
        c.fill([(x - 0.34, y), (x, y - h), (x + 0.34, y)], _jitter(rng, (104, 108, 134), 0.12))
        c.fill(
            [(x - 0.1, y - h * 0.7), (x, y - h), (x + 0.1, y - h * 0.7), (x, y - h * 0.62)], (250, 250, 254)
        )


def kitchen(c: Canvas, rng: Rng) -> None:
    """Tiles, two cupboards and a worktop."""
    y = _ground(c, rng, (222, 214, 190), (196, 176, 150), 0.7)
    for x in np.arange(0, 1, 0.125):
        for k, ty in enumerate((y - 0.34, y - 0.215)):
            tile = (250, 250, 246) if (round(x * 8) + k) % 2 else (150, 196, 204)
            c.fill(box(x + 0.005, ty, x + 0.12, ty + 0.12), tile)
    c.fill(box(0, y - 0.09, 1, y + 0.01), _jitter(rng, (150, 94, 54)))
    for x in (0.04, 0.66):
        c.fill(box(x, 0.02, x + 0.3, 0.25), _jitter(rng, (176, 116, 70)))
        c.fill(disc(x + 0.15, 0.2, 0.018, n=8), (70, 50, 40))


def library(c: Canvas, rng: Rng) -> None:
    """Shelves full of books."""
    y = _ground(c, rng, (92, 60, 40), (136, 60, 56), 0.76)
    for k in range(3):
        top = y * k / 3 + 0.03
        x = 0.02
        while x < 0.97:
            w = rng.uniform(0.045, 0.085)
            c.fill(
                box(x, top + rng.uniform(0, 0.05), x + w - 0.01, top + y / 3 - 0.06),
                hsv(rng.uniform(), 0.5, 0.72),
            )
            x += w
        c.fill(box(0, top + y / 3 - 0.06, 1, top + y / 3 - 0.03), (58, 36, 24))


def moon(c: Canvas, rng: Rng) -> None:
    """Craters under a black sky."""
    y = _ground(c, rng, (12, 14, 34), (158, 158, 164), 0.6)
    c.fill(box(0, 0, 1, y), (14, 16, 38))
    for _ in range(14):
        c.fill(disc(rng.uniform(0, 1), rng.uniform(0, y - 0.04), 0.012, n=8), (250, 250, 236))
    c.fill(disc(rng.uniform(0.1, 0.9), 0.16, 0.09), (70, 130, 210))
    for _ in range(4):
        c.fill(disc(rng.uniform(0, 1), rng.uniform(y + 0.08, 0.98), 0.1, 0.035), (124, 124, 132))


def studio(c: Canvas, rng: Rng) -> None:
    """A plain wall."""
    wall = hsv(rng.uniform(), rng.uniform(0.04, 0.22), rng.uniform(0.72, 0.96))
    y = rng.uniform(0.66, 0.8)
    c.fill(box(0, 0, 1, 1), wall)
    c.fill(box(0, y, 1, 1), shade(wall, 0.86))


PLACES: dict[str, tuple[Callable[[Canvas, Rng], None], tuple[str, ...]]] = {
    "forest": (forest, ("in a forest", "in the forest", "in the woods")),
    "beach": (beach, ("on a beach", "on the beach", "at the seaside")),
    "snow": (snow, ("in the snow", "in the snow", "in a snowy place")),
    "desert": (desert, ("in the desert", "in a desert")),
    "city": (city, ("in the city", "in a city", "in a city street")),
    "meadow": (meadow, ("in a meadow", "in the meadow", "on the grass")),
    "mountains": (mountains, ("in the mountains", "in front of mountains")),
    "kitchen": (kitchen, ("in a kitchen", "in the kitchen")),
    "library": (library, ("in a library", "in the library")),
    "moon": (moon, ("on the moon",)),
}


def backdrop(place: str | None, rng: Rng) -> Canvas:
    """A fresh oversampled canvas with the place drawn; None is a plain studio wall."""
    side = SIZE * OVERSAMPLE
    canvas = Canvas(Image.new("RGB", (side, side)))
    (PLACES[place][0] if place else studio)(canvas, rng)
    return canvas


def light(picture: Image.Image, rng: Rng) -> Image.Image:
    """Brightness and a warm or cool cast, as between one photo and the next."""
    gain = rng.uniform(0.86, 1.08) * (1 + np.array([1, 0.2, -1]) * rng.uniform(-0.05, 0.05))
    pixels = np.asarray(picture, dtype=np.float32) * gain.astype(np.float32)
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def pencil(picture: Image.Image) -> Image.Image:
    """Grey lines on paper."""
    grey = ImageOps.grayscale(picture)
    edges = ImageOps.invert(grey.filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)).point(
        lambda v: max(0, 255 - (255 - v) * 5)
    )
    paper = ImageEnhance.Brightness(grey).enhance(1.0).point(lambda v: int(186 + v * 0.27))
    return ImageChops.multiply(edges, paper).convert("RGB")


def watercolour(picture: Image.Image) -> Image.Image:
    """Soft, washed colours on paper."""
    soft = picture.filter(ImageFilter.ModeFilter(7)).filter(ImageFilter.GaussianBlur(1.6))
    washed = Image.blend(soft, Image.new("RGB", soft.size, (255, 252, 244)), 0.24)
    frame = Image.new("L", soft.size, 0)
    side = soft.width
    pen = Canvas(Image.new("RGB", soft.size))
    paper = (
        (0.08, 0.06),
        (0.5, 0.03),
        (0.94, 0.07),
        (0.97, 0.5),
        (0.93, 0.95),
        (0.5, 0.97),
        (0.06, 0.93),
        (0.03, 0.5),
    )
    pen.fill(paper, (255, 255, 255))
    frame = ImageOps.grayscale(pen.image).filter(ImageFilter.GaussianBlur(side / 40))
    return Image.composite(washed, Image.new("RGB", soft.size, (252, 249, 240)), frame)


def pixel_art(picture: Image.Image) -> Image.Image:
    """Large pixels of few colours."""
    small = picture.resize((16, 16), Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.NEAREST)


STYLES: dict[str, tuple[Callable[[Image.Image], Image.Image], tuple[str, ...]]] = {
    "pencil": (pencil, ("a pencil drawing of", "a pencil sketch of")),
    "watercolour": (watercolour, ("a watercolour painting of", "a watercolour of")),
    "pixel art": (pixel_art, ("pixel art of", "a pixel art picture of")),
}
