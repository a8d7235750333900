"""How animals and robot are drawn: each function draws one subject in one state and says where a hat goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conceptkit.storybook.world.canvas import (
    RGB,
    Canvas,
    Paint,
    Point,
    arc,
    bar,
    box,
    disc,
    heart,
    shade,
    star,
)

if TYPE_CHECKING:
    from conceptkit.storybook.world.subject import Subject


INK: RGB = (28, 26, 30)
WHITE: RGB = (250, 250, 250)


@dataclass(frozen=True)
class Anchors:
    """Where accessories go, in the object's frame: the head's centre and radius, its turn, and the neck."""

    head: Point
    radius: float
    turn: float = 0.0
    neck: Point = (0.0, 0.0)


LARGE = 1.25
BOLT = ((0.3, -1.3), (-0.9, 0.3), (-0.1, 0.2), (-0.3, 1.3), (0.9, -0.4), (0.1, -0.3))


def mark(c: Canvas, shape: str, x: float, y: float, r: float, colour: RGB) -> None:
    """A private marking, clipped to the body painted so far and large enough for a latent of 16x16 cells."""
    r *= LARGE
    shapes: dict[str, list[list[Point]]] = {
        "none": [],
        "patch": [disc(x, y, r * 1.05, r * 0.9)],
        "star": [star(x, y, r * 1.25)],
        "heart": [heart(x, y, r * 1.1)],
        "band": [box(x - r * 0.5, y - 3, x + r * 0.5, y + 3)],
        "half": [box(x, y - 3, x + 4, y + 3)],
        "ring": [disc(x, y, r * 1.1)],
        "bolt": [[(x + a * r, y + b * r) for a, b in BOLT]],
        "cross": [
            box(x - r * 1.2, y - r * 0.38, x + r * 1.2, y + r * 0.38),
            box(x - r * 0.38, y - r * 1.2, x + r * 0.38, y + r * 1.2),
        ],
        "zigzag": [
            bar(
                (x + (k - 2) * r * 0.7, y + (0.5 if k % 2 else -0.5) * r),
                (x + (k - 1) * r * 0.7, y + (-0.5 if k % 2 else 0.5) * r),
                r * 0.5,
            )
            for k in range(4)
        ],
    }
    for polygon in shapes[shape]:
        c.marking(polygon, colour)
    if shape == "ring":
        c.marking(disc(x, y, r * 0.55), shade(colour, 0.4))


def eye(c: Canvas, x: float, y: float, r: float, closed: bool = False) -> None:
    """An eye that looks to the right, or is closed."""
    if closed:
        c.line(arc(x, y - r * 0.3, r, 20, 160, 6), INK, 0.06)
    else:
        c.fill(disc(x, y, r, n=14), WHITE)
        c.fill(disc(x + r * 0.25, y, r * 0.6, n=12), INK)


# pose: body centre, body turn in degrees, head centre, leg feet (x, y) pairs, tail root
POSES: dict[str, tuple[Point, float, Point, tuple[Point, ...], Point]] = {
    "standing": ((0, 0.28), 0, (0.56, -0.28), ((-0.46, 1), (-0.24, 1), (0.24, 1), (0.46, 1)), (-0.56, 0.12)),
    "running": (
        (0, 0.18),
        -6,
        (0.66, -0.28),
        ((-0.95, 0.84), (-0.62, 0.98), (0.62, 0.98), (0.98, 0.8)),
        (-0.6, 0.1),
    ),
    "sitting": ((-0.08, 0.42), -52, (0.26, -0.4), ((-0.3, 1), (-0.05, 1), (0.3, 1), (0.46, 1)), (-0.5, 0.84)),
    "jumping": (
        (0, -0.02),
        -28,
        (0.6, -0.66),
        ((-0.92, 0.62), (-0.66, 0.74), (0.6, 0.42), (0.86, 0.28)),
        (-0.5, 0.24),
    ),
    "sleeping": (
        (-0.06, 0.68),
        0,
        (0.6, 0.62),
        ((-0.4, 0.98), (-0.2, 0.98), (0.2, 0.98), (0.4, 0.98)),
        (-0.6, 0.7),
    ),
}


# a rabbit's puff: radii across and up
SCUTS = ((0.13, 0.13), (0.27, 0.25), (0.14, 0.34), (0.36, 0.13))


def _tail(c: Canvas, kind: int, root: Point, paint: Paint, tip: RGB, up: bool) -> None:
    x, y = root
    lift = -1.0 if up else 0.25
    if kind == 0:
        end = (x - 0.38, y + 0.55 * lift)
        c.body(bar(root, end, 0.16, 0.08), paint)
        c.fill(disc(*end, 0.09, n=12), tip)
    elif kind == 1:
        c.line(arc(x - 0.22, y - 0.12, 0.22, 60, 330), shade(paint.colour, 0.8), 0.13)
        c.fill(disc(x - 0.06, y - 0.26, 0.1, n=12), tip)
    elif kind == 2:
        c.body(disc(x - 0.3, y + 0.26 * lift, 0.36, 0.2, -38 if up else 8), paint)
        c.fill(disc(x - 0.48, y + 0.42 * lift, 0.17, 0.13, -38 if up else 8), tip)
    else:
        c.body(disc(x - 0.1, y, 0.17), Paint(tip))


def _ears(c: Canvas, noun: str, kind: int, x: float, y: float, r: float, paint: Paint, inner: RGB) -> None:
    for s, tone in ((-1, 0.62), (1, 1.0)):
        p = paint.shade(0.85) if tone < 1 else paint
        _EAR.get(noun, _dog_ear)(c, kind, s, x + s * r * 0.62, y, r, p, inner)


def _rabbit_ear(c: Canvas, kind: int, s: int, x: float, y: float, r: float, paint: Paint, inner: RGB) -> None:
    lean = (-4, 16, 58)[kind] * s
    cx, cy = (
        x + r * 1.0 * math.sin(math.radians(lean)),
        y - r * 1.5 * math.cos(math.radians(lean * 1.1)),
    )
    c.body(disc(cx, cy, r * 0.3, r * 0.95, lean), paint)
    c.fill(disc(cx, cy, r * 0.15, r * 0.7, lean, n=16), inner)


def _cat_ear(c: Canvas, kind: int, s: int, x: float, y: float, r: float, paint: Paint, inner: RGB) -> None:
    if kind == 0:  # tall triangles
        c.body(
            [
                (x - r * 0.45, y - r * 0.5),
                (x + s * r * 0.25, y - r * 1.75),
                (x + r * 0.45, y - r * 0.5),
            ],
            paint,
        )
        c.fill(
            [
                (x - r * 0.2, y - r * 0.6),
                (x + s * r * 0.18, y - r * 1.35),
                (x + r * 0.22, y - r * 0.6),
            ],
            inner,
        )
    elif kind == 1:  # wide low triangles
        c.body(
            [
                (x - r * 0.5, y - r * 0.5),
                (x + s * r * 0.6, y - r * 1.3),
                (x + r * 0.5, y - r * 0.3),
            ],
            paint,
        )
        c.fill(
            [
                (x - r * 0.2, y - r * 0.55),
                (x + s * r * 0.42, y - r * 1.05),
                (x + r * 0.25, y - r * 0.4),
            ],
            inner,
        )
    else:  # folded
        c.body([(x - r * 0.45, y - r * 0.6), (x, y - r * 1.3), (x + r * 0.45, y - r * 0.6)], paint)
        c.fill(
            [(x - r * 0.42, y - r * 0.6), (x, y - r * 1.25), (x + s * r * 0.5, y - r * 0.35)],
            inner,
        )


def _dog_ear(c: Canvas, kind: int, s: int, x: float, y: float, r: float, paint: Paint, inner: RGB) -> None:
    if kind == 0:  # pointed
        c.body(
            [(x - r * 0.35, y - r * 0.55), (x, y - r * 1.65), (x + r * 0.35, y - r * 0.5)],
            Paint(inner),
        )
    elif kind == 1:  # floppy
        c.body(disc(x + s * r * 0.38, y + r * 0.12, r * 0.3, r * 0.85, -12 * s), Paint(inner))
    else:  # round
        c.body(disc(x + s * r * 0.1, y - r * 0.78, r * 0.42), Paint(inner))


_EAR = {"rabbit": _rabbit_ear, "cat": _cat_ear}


def quadruped(c: Canvas, s: Subject, state: str, paint: Paint) -> Anchors:
    """Dog, cat or rabbit. Private parts: ears, tail, build; the second colour: ears, socks and tail tip."""
    ears, tail, build = s.parts
    (bx, by), turn, (hx, hy), feet, root = POSES[state]
    long, high = ((0.56, 0.28), (0.6, 0.36), (0.68, 0.3))[build]
    if s.noun == "rabbit":
        long, high = long * 0.86, high * 1.12
    r = {"dog": 0.33, "cat": 0.36, "rabbit": 0.3}[s.noun]
    asleep = state == "sleeping"
    if s.noun == "rabbit":
        c.body(disc(root[0] - 0.1, root[1], *SCUTS[tail]), Paint(s.second))
    else:
        _tail(c, tail, root, paint, s.second, up=not asleep and state != "sitting")
    co, si = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    for k, (fx, fy) in enumerate(feet):
        lx = long * (-0.72, -0.5, 0.5, 0.72)[k]
        hip = (bx + lx * co, by + lx * si + high * 0.4)
        if not asleep:
            c.body(bar(hip, (fx, fy - 0.06), 0.2, 0.16), paint.shade(0.86 if k in (0, 2) else 1.0))
        c.fill(disc(fx + 0.04, fy - 0.07, 0.13, 0.08, n=14), s.second)
    c.body(disc(bx, by, long, high, turn), paint)
    mark(c, s.marking, bx - long * 0.15 * co, by - long * 0.15 * si - high * 0.05, 0.25, s.marking_colour)
    neck = (hx - 0.16, hy + r * 0.95)
    if s.collar is not None:
        spread = bar((hx - r * 0.95, hy + r * 0.62), (hx + r * 0.5, hy + r * 1.12), 0.17)
        c.fill(spread, s.collar)
    _ears(c, s.noun, ears, hx, hy, r, paint, s.second)
    c.body(disc(hx, hy, r, r * (0.92 if s.noun != "cat" else 0.86)), paint)
    if s.noun == "dog":
        c.body(disc(hx + r * 0.88, hy + r * 0.3, r * 0.55, r * 0.4), paint.shade(1.12), outline=True)
        c.fill(disc(hx + r * 1.32, hy + r * 0.16, r * 0.2, r * 0.16, n=12), INK)
        eye(c, hx + r * 0.32, hy - r * 0.2, r * 0.24, asleep)
    elif s.noun == "cat":
        for d in (-0.34, 0.46):
            eye(c, hx + r * d, hy - r * 0.08, r * 0.25, asleep)
        c.fill(
            [(hx - r * 0.06, hy + r * 0.25), (hx + r * 0.2, hy + r * 0.25), (hx + r * 0.07, hy + r * 0.42)],
            (236, 120, 140),
        )
        for d in (-0.12, 0.1):
            c.line([(hx + r * 0.4, hy + r * (0.38 + d)), (hx + r * 1.3, hy + r * (0.34 + d * 3))], INK, 0.03)
            c.line([(hx - r * 0.3, hy + r * (0.38 + d)), (hx - r * 1.2, hy + r * (0.34 + d * 3))], INK, 0.03)
    else:
        eye(c, hx + r * 0.25, hy - r * 0.12, r * 0.26, asleep)
        c.fill(disc(hx + r * 0.9, hy + r * 0.2, r * 0.17, n=12), (236, 130, 150))
        c.fill(box(hx + r * 0.5, hy + r * 0.62, hx + r * 0.75, hy + r * 0.98), WHITE)
    return Anchors((hx, hy), r, 0.0, neck)


def bird(c: Canvas, s: Subject, state: str, paint: Paint) -> Anchors:
    """Private parts: crest, tail, beak; the second colour is on wing, crest and tail."""
    crest, tail, beak = s.parts
    fly = state == "flying"
    dy = -0.25 if fly else 0.0
    if not fly:
        for x in (-0.08, 0.14):
            c.line([(x, 0.55), (x, 0.97)], (206, 130, 40), 0.07)
            c.line([(x - 0.06, 0.98), (x + 0.16, 0.98)], (206, 130, 40), 0.07)
    fan: list[list[Point]] = [
        [(-0.4, 0.16 + dy), (-0.95, 0.3 + dy), (-0.9, 0.52 + dy), (-0.35, 0.42 + dy)],
        [(-0.4, 0.1 + dy), (-1.15, -0.22 + dy), (-1.05, 0.02 + dy), (-0.35, 0.4 + dy)],
        [(-0.4, 0.16 + dy), (-0.95, -0.1 + dy), (-1.08, 0.3 + dy), (-0.92, 0.62 + dy), (-0.35, 0.42 + dy)],
    ]
    c.body(fan[tail], Paint(s.second))
    c.body(disc(0, 0.24 + dy, 0.56, 0.42, -14), paint)
    mark(c, s.marking, 0.2, 0.34 + dy, 0.22, s.marking_colour)
    hx, hy, r = 0.46, -0.3 + dy, 0.3
    crests: list[list[list[Point]]] = [
        [],
        [
            bar((hx - 0.05, hy - 0.2), (hx - 0.22, hy - 0.62), 0.16, 0.06),
            bar((hx, hy - 0.2), (hx, hy - 0.66), 0.16, 0.06),
        ],
        [
            [
                (hx - 0.3, hy - 0.1),
                (hx - 0.3, hy - 0.48),
                (hx - 0.12, hy - 0.3),
                (hx, hy - 0.58),
                (hx + 0.1, hy - 0.3),
                (hx + 0.26, hy - 0.46),
                (hx + 0.2, hy),
            ]
        ],
    ]
    for plume in crests[crest]:
        c.body(plume, Paint(s.second))
    c.body(disc(hx, hy, r), paint)
    gape = 0.12 if state == "singing" else 0.0
    bill: list[list[Point]] = [
        [(hx + 0.22, hy - 0.1), (hx + 0.52, hy + 0.02), (hx + 0.22, hy + 0.12)],
        [(hx + 0.22, hy - 0.09), (hx + 0.86, hy + 0.03), (hx + 0.22, hy + 0.1)],
        [
            (hx + 0.2, hy - 0.14),
            (hx + 0.56, hy - 0.1),
            (hx + 0.56, hy + 0.24),
            (hx + 0.38, hy + 0.1),
            (hx + 0.2, hy + 0.12),
        ],
    ]
    if gape:
        c.fill([(x, y + gape) for x, y in bill[beak]], (196, 110, 20))
    c.fill([(x, y - gape) for x, y in bill[beak]], (240, 160, 40))
    eye(c, hx + 0.08, hy - 0.06, 0.085)
    if fly:
        c.body([(0.2, 0.0), (-0.1, -1.05), (-0.55, -0.85), (-0.35, 0.05)], Paint(s.second))
    else:
        c.body(disc(-0.12, 0.26, 0.36, 0.22, -18), Paint(s.second))
    if state == "singing":
        _notes(c)
    return Anchors((hx, hy), r, 0.0, (hx - 0.14, hy + 0.3))


def _notes(c: Canvas) -> None:
    for x, y in ((0.98, -0.72), (1.12, -0.36)):
        c.fill(disc(x, y, 0.09, 0.075, n=10), INK)
        c.line([(x + 0.08, y), (x + 0.08, y - 0.32)], INK, 0.05)


def fish(c: Canvas, s: Subject, state: str, paint: Paint) -> Anchors:
    """Private parts: tail fin, back fin, body; the second colour is on the fins."""
    tail, back, build = s.parts
    long, high = ((0.62, 0.4), (0.72, 0.3), (0.52, 0.52))[build]
    turn, dy = (-38.0, -0.25) if state == "jumping" else (0.0, 0.15)
    fins: list[list[Point]] = [
        [(-long * 0.8, 0), (-long - 0.42, -0.42), (-long - 0.2, 0), (-long - 0.42, 0.42)],
        [(-long * 0.8, -0.06), (-long - 0.4, -0.36), (-long - 0.46, 0.36), (-long * 0.8, 0.06)],
        disc(-long - 0.2, 0, 0.27, 0.34),
    ]
    dorsal: list[list[Point]] = [
        [(-0.25, -high * 0.8), (0.0, -high - 0.4), (0.25, -high * 0.8)],
        [(-0.4, -high * 0.7), (-0.35, -high - 0.22), (0.1, -high - 0.34), (0.36, -high * 0.7)],
        [
            (-0.4, -high * 0.8),
            (-0.3, -high - 0.28),
            (-0.15, -high * 0.95),
            (0, -high - 0.3),
            (0.12, -high * 0.95),
            (0.25, -high - 0.22),
            (0.34, -high * 0.8),
        ],
    ]
    with c.placed(0, dy, 1.0, turn=turn):
        c.body(fins[tail], Paint(s.second))
        c.body(dorsal[back], Paint(s.second))
        c.body(disc(0, 0, long, high), paint)
        mark(c, s.marking, -0.06, 0, 0.24, s.marking_colour)
        c.body([(-0.02, high * 0.3), (-0.28, high * 0.75), (0.12, high * 0.66)], Paint(s.second))
        eye(c, long * 0.62, -high * 0.2, 0.1)
        c.line([(long * 0.86, high * 0.24), (long * 0.66, high * 0.36)], INK, 0.05)
    if state == "jumping":
        for x, y, q in ((-0.75, 0.72, 0.12), (-0.45, 0.9, 0.1), (-0.98, 0.92, 0.09), (-0.2, 0.74, 0.07)):
            c.fill([(x, y - 2.2 * q), (x + q, y), (x, y + q), (x - q, y)], (120, 190, 236))
        c.fill(disc(-0.6, 0.98, 0.6, 0.07), (120, 190, 236))
    if state == "blowing bubbles":
        for x, y, q in ((0.86, -0.2, 0.11), (1.0, -0.52, 0.14), (0.84, -0.84, 0.17)):
            c.fill(disc(x, y, q, n=16), (206, 234, 250))
            c.line([*disc(x, y, q, n=16), (x + q, y)], (90, 150, 200), 0.035)
    return Anchors((0.3, dy - 0.1), 0.3)


def robot(c: Canvas, s: Subject, state: str, paint: Paint) -> Anchors:
    """Private parts: head, antenna, feet; the second colour is on chest plate, arms and feet."""
    head, antenna, feet = s.parts
    dance = state == "dancing"
    lean = 14.0 if dance else 0.0
    left, right = ((-0.85, -0.42), (0.85, -0.42)) if dance else ((-0.66, 0.5), (0.66, 0.5))
    if state == "waving":
        right = (0.86, -0.6)
    with c.placed(0.0, 0.0, 1.0, turn=lean * 0.5):
        for x in (-0.2, 0.2):
            c.body(bar((x, 0.5), (x * (1.7 if dance else 1.0), 0.86), 0.16), Paint(s.second))
            fx = x * (1.7 if dance else 1.0)
            if feet == 0:
                c.fill(disc(fx, 0.88, 0.14, n=16), INK)
                c.fill(disc(fx, 0.88, 0.06, n=10), WHITE)
            elif feet == 1:
                c.fill(box(fx - 0.16, 0.8, fx + 0.2, 0.99), shade(s.second, 0.5))
            else:
                c.fill(
                    [(fx - 0.22, 0.99), (fx - 0.1, 0.76), (fx + 0.1, 0.76), (fx + 0.22, 0.99)],
                    shade(s.second, 0.5),
                )
        for shoulder, hand in (((-0.36, 0.02), left), ((0.36, 0.02), right)):
            c.body(bar(shoulder, hand, 0.16), Paint(s.second))
            c.fill(disc(*hand, 0.12, n=14), INK)
        c.body(box(-0.4, -0.14, 0.4, 0.6), paint)
        mark(c, s.marking, 0.0, 0.22, 0.22, s.marking_colour)
        hx, hy, r = 0.0, -0.46, 0.32
        if s.collar is not None:
            c.fill(box(-0.3, -0.2, 0.3, -0.06), s.collar)
        if antenna < 2:
            for x in ((0.0,), (-0.18, 0.18))[antenna]:
                c.line([(x, hy - 0.2), (x * 1.5, hy - 0.52)], INK, 0.06)
                c.fill(disc(x * 1.5, hy - 0.54, 0.09, n=12), s.second)
        else:
            c.line([(0, hy - 0.2), (0, hy - 0.42)], INK, 0.06)
            c.fill([(-0.26, hy - 0.58), (0.26, hy - 0.58), (0.1, hy - 0.38), (-0.1, hy - 0.38)], s.second)
        heads: list[list[Point]] = [
            box(hx - 0.36, hy - 0.26, hx + 0.36, hy + 0.28),
            disc(hx, hy, 0.34),
            [*arc(hx, hy, 0.34, 180, 360), (hx + 0.34, hy + 0.28), (hx - 0.34, hy + 0.28)],
        ]
        c.body(heads[head], paint)
        for d in (-0.14, 0.14):
            c.fill(disc(hx + d, hy - 0.02, 0.1, n=14), (250, 240, 120))
            c.fill(disc(hx + d, hy - 0.02, 0.045, n=10), INK)
        c.fill(box(hx - 0.14, hy + 0.13, hx + 0.14, hy + 0.18), INK)
    return Anchors((hx, hy), r, 0.0, (0.0, -0.12))


def wear(c: Canvas, accessory: str, at: Anchors, colour: RGB) -> None:
    """A public accessory on a head or neck."""
    (x, y), r = at.head, at.radius
    if accessory == "hat":
        c.fill(box(x - r * 1.15, y - r * 0.92, x + r * 1.15, y - r * 0.66), shade(colour, 0.7))
        c.fill(box(x - r * 0.68, y - r * 1.85, x + r * 0.68, y - r * 0.84), colour)
        c.fill(box(x - r * 0.68, y - r * 1.12, x + r * 0.68, y - r * 0.9), shade(colour, 0.45))
    elif accessory == "scarf":
        nx, ny = at.neck
        c.fill(bar((nx - r * 0.9, ny - r * 0.22), (nx + r * 1.1, ny + r * 0.18), r * 0.55), colour)
        c.fill(bar((nx + r * 0.1, ny), (nx - r * 0.15, ny + r * 1.7), r * 0.5), shade(colour, 0.85))
    elif accessory == "sunglasses":
        for d in (-0.25, 0.55):
            c.fill(disc(x + r * d, y - r * 0.12, r * 0.38, r * 0.34, n=16), INK)
        c.line([(x - r * 0.95, y - r * 0.22), (x + r * 0.95, y - r * 0.22)], INK, 0.07)
