"""How the things are drawn: each function draws one subject in one state, in the frame of `canvas`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from conceptkit.storybook.world.animals import INK, WHITE, mark
from conceptkit.storybook.world.canvas import RGB, Canvas, Paint, Point, arc, bar, box, disc, shade, star

if TYPE_CHECKING:
    from conceptkit.storybook.world.subject import Subject


GLOW: RGB = (255, 226, 110)
FLAME: RGB = (250, 150, 40)
WATER: RGB = (96, 172, 228)
GLASS: RGB = (190, 226, 240)


def _puffs(c: Canvas, x: float, y: float, size: float, colour: RGB = (236, 236, 240)) -> None:
    for k in range(3):
        ring = disc(x + 0.16 * k * size, y - 0.3 * k * size, (0.13 + 0.05 * k) * size, n=16)
        c.fill(ring, colour)
        c.line([*ring, ring[0]], shade(colour, 0.72), 0.04)  # white steam over snow would vanish without it


def car(c: Canvas, s: Subject, state: str, paint: Paint) -> None:
    """Private parts: cabin, wheels, roof; the second colour is on cabin and wheels."""
    cabin, wheels, roof = s.parts
    tops: list[list[Point]] = [
        [(-0.55, 0.16), (-0.4, -0.34), (0.3, -0.34), (0.55, 0.16)],
        [*arc(0, 0.16, 0.58, 180, 360)],
        [(-0.08, 0.16), (-0.08, -0.44), (0.5, -0.44), (0.6, 0.16)],
    ]
    c.body(tops[cabin], Paint(s.second))
    if cabin == 2:
        c.fill(box(0.04, -0.34, 0.42, 0.04), GLASS)
    else:
        c.fill([(-0.38, 0.1), (-0.28, -0.22), (-0.05, -0.22), (-0.05, 0.1)], GLASS)
        c.fill([(0.05, 0.1), (0.05, -0.22), (0.24, -0.22), (0.38, 0.1)], GLASS)
    top = -0.44 if cabin else -0.36
    lift = {0: None, 1: box(-0.34, top - 0.1, 0.4, top - 0.02), 2: disc(0.2, top - 0.08, 0.14, 0.12)}[roof]
    if lift is not None:
        c.fill(lift, s.marking_colour if roof == 1 else (240, 70, 60))
    c.body([(-0.98, 0.66), (-0.94, 0.22), (-0.6, 0.1), (0.6, 0.1), (0.96, 0.28), (0.98, 0.66)], paint)
    mark(c, s.marking, 0.0, 0.38, 0.21, s.marking_colour)
    for x in (-0.55, 0.55):
        c.fill(disc(x, 0.72, 0.28), INK)
        if wheels == 0:
            c.fill(disc(x, 0.72, 0.15, n=16), s.second)
        elif wheels == 1:
            c.fill(disc(x, 0.72, 0.2, n=18), WHITE)
            for a in (0, 60, 120):
                d = (0.19 * math.cos(math.radians(a)), 0.19 * math.sin(math.radians(a)))
                c.line([(x - d[0], 0.72 - d[1]), (x + d[0], 0.72 + d[1])], INK, 0.05)
        else:
            c.fill(star(x, 0.72, 0.23), s.second)
    c.fill(disc(0.9, 0.4, 0.08, n=12), WHITE)
    if state == "driving":
        _puffs(c, -1.08, 0.72, -0.85)
        for y in (0.0, 0.24, 0.48):
            c.line([(-1.5, y), (-1.1, y)], WHITE, 0.06)
    if state == "with its lights on":
        c.fill([(0.94, 0.36), (1.75, 0.1), (1.75, 0.9), (0.94, 0.48)], GLOW)


def boat(c: Canvas, s: Subject, state: str, paint: Paint) -> None:
    """Private parts: hull, sail, flag; the second colour is on the sail."""
    hull, sail, flag = s.parts
    sink = state == "sinking"
    with c.placed(0.0, 0.12 if sink else 0.0, 1.0, turn=24.0 if sink else 0.0):
        c.line([(0, 0.4), (0, -0.95)], (110, 70, 40), 0.09)
        if state == "sailing":
            sails: list[list[list[Point]]] = [
                [[(0.06, -0.88), (0.06, 0.26), (0.8, 0.26)]],
                [[(-0.6, -0.7), (0.6, -0.7), (0.7, 0.2), (-0.7, 0.2)]],
                [[(0.06, -0.88), (0.06, 0.26), (0.7, 0.26)], [(-0.06, -0.7), (-0.06, 0.26), (-0.6, 0.26)]],
            ]
            for canvas_sail in sails[sail]:
                c.body(canvas_sail, Paint(s.second))
        else:
            c.body(bar((0, -0.5), (0, 0.2), 0.2), Paint(s.second))
        flags: list[list[Point]] = [
            [(0, -0.98), (0.3, -0.88), (0, -0.78)],
            box(0, -0.98, 0.28, -0.78),
            disc(0, -0.94, 0.11, n=14),
        ]
        c.fill(flags[flag], s.marking_colour)
        hulls: list[list[Point]] = [
            [(-0.95, 0.34), (0.95, 0.34), (0.62, 0.86), (-0.62, 0.86)],
            [(-0.86, 0.34), (0.86, 0.34), (0.86, 0.86), (-0.86, 0.86)],
            [*arc(0, 0.34, 0.88, 0, 180)][::1],
        ]
        shapes = hulls[hull] if hull != 2 else [(x, 0.34 + (y - 0.34) * 0.62) for x, y in hulls[2]]
        c.body(shapes, paint)
        mark(c, s.marking, 0.0, 0.58, 0.2, s.marking_colour)
    waves = 0.62 if sink else 0.84
    crest = [(-1.15 + 0.23 * k, waves + (0.08 if k % 2 else 0.0)) for k in range(11)]
    c.fill([*crest, (1.15, 1.04), (-1.15, 1.04)], WATER)


def house(c: Canvas, s: Subject, state: str, paint: Paint) -> None:
    """Private parts: roof, windows, door; the second colour is the roof's."""
    roof, windows, door = s.parts
    c.fill(box(0.34, -0.86, 0.54, -0.2), (140, 90, 76))
    if state == "with a smoking chimney":
        _puffs(c, 0.46, -1.0, 1.1, (196, 196, 204))
    c.body(box(-0.68, -0.1, 0.68, 1.0), paint)
    mark(c, s.marking, 0.0, 0.14, 0.2, s.marking_colour)
    roofs: list[list[Point]] = [
        [(-0.88, -0.08), (0, -0.8), (0.88, -0.08)],
        [(-0.82, -0.08), (-0.82, -0.36), (0.82, -0.36), (0.82, -0.08)],
        [*arc(0, -0.08, 0.8, 180, 360)],
        [(-0.84, -0.08), (-0.42, -0.66), (0.42, -0.66), (0.84, -0.08)],
    ]
    c.body(roofs[roof], Paint(s.second))
    pane = GLOW if state == "with lit windows" else (84, 104, 128)
    for x in (-0.38, 0.38):
        if windows == 0:
            c.fill(box(x - 0.17, 0.2, x + 0.17, 0.54), WHITE)
            c.fill(box(x - 0.13, 0.24, x + 0.13, 0.5), pane)
        elif windows == 1:
            c.fill(disc(x, 0.37, 0.19), WHITE)
            c.fill(disc(x, 0.37, 0.145), pane)
        else:
            c.fill([(x - 0.16, 0.56), (x - 0.16, 0.3), *arc(x, 0.3, 0.16, 180, 360), (x + 0.16, 0.56)], WHITE)
            c.fill([(x - 0.12, 0.52), (x - 0.12, 0.3), *arc(x, 0.3, 0.12, 180, 360), (x + 0.12, 0.52)], pane)
    doors: list[list[Point]] = [
        box(-0.15, 0.56, 0.15, 1.0),
        [(-0.16, 1.0), (-0.16, 0.66), *arc(0, 0.66, 0.16, 180, 360), (0.16, 1.0)],
        box(-0.26, 0.6, 0.26, 1.0),
    ]
    c.fill(doors[door], shade(s.marking_colour, 0.8))
    if state == "with lit windows":
        c.fill(disc(0.0, 0.78, 0.05, n=10), GLOW)


def gate(c: Canvas, s: Subject, state: str, paint: Paint) -> None:
    """Private parts: frame, infill, top. Frame 3 is the moongate: a round gate of single stones."""
    frame, infill, top = s.parts
    if frame == 3:
        _moongate(c, s, state, paint)
        return
    half = 0.5
    inner = box(-half, -0.42, half, 1.0)
    if state == "closed":
        c.fill(inner, shade(s.second, 0.85))
        if infill == 0:
            for x in (-0.36, -0.12, 0.12, 0.36):
                c.fill(box(x - 0.045, -0.42, x + 0.045, 1.0), shade(s.second, 0.5))
        elif infill == 1:
            for y in (-0.25, 0.1, 0.45, 0.8):
                c.fill(box(-half, y, half, y + 0.07), shade(s.second, 0.5))
        else:
            for k in range(-2, 3):
                c.line([(k * 0.3 - 0.4, -0.42), (k * 0.3 + 0.4, 1.0)], shade(s.second, 0.5), 0.06)
        c.fill(box(-0.025, -0.42, 0.025, 1.0), INK)
    elif state == "open":
        for side in (-1, 1):
            leaf = [(side * half, -0.42), (side * 0.98, -0.28), (side * 0.98, 0.94), (side * half, 1.0)]
            c.fill(leaf, shade(s.second, 0.85))
            c.line([leaf[1], leaf[2]], shade(s.second, 0.5), 0.06)
            c.line([(side * 0.76, -0.34), (side * 0.76, 0.96)], shade(s.second, 0.5), 0.05)
    for side in (-1, 1):
        c.body(box(min(side * half, side * 0.78), -0.5, max(side * half, side * 0.78), 1.0), paint)
    lintel: list[list[Point]] = [
        [(-1.0, -0.72), (1.0, -0.72), (0.84, -0.42), (-0.84, -0.42)],
        [(-0.8, -0.4), (0, -1.0), (0.8, -0.4), (0.5, -0.4), (0, -0.72), (-0.5, -0.4)],
        box(-0.86, -0.78, 0.86, -0.44),
    ]
    c.body(lintel[frame], paint)
    for side in (-1, 1):
        x = side * 0.64
        if top == 0:
            c.fill(disc(x, -0.86, 0.16, n=16), s.second)
        elif top == 1:
            c.fill([(x - 0.17, -0.68), (x, -1.08), (x + 0.17, -0.68)], s.second)
    mark(c, s.marking, 0.64, 0.3, 0.2, s.marking_colour)


def _moongate(c: Canvas, s: Subject, state: str, paint: Paint) -> None:
    outer, inner, n = 0.92, 0.58, 14
    if state == "closed":
        c.fill(disc(0, 0.1, inner + 0.04), shade(s.second, 0.7))
        c.fill(box(-0.03, -0.48, 0.03, 0.68), INK)
    for k in range(n):
        a, b = 360 * k / n, 360 * (k + 1) / n
        wedge = [*arc(0, 0.1, outer, a, b, 4), *arc(0, 0.1, inner, b, a, 4)]
        c.body(wedge, paint if k % 2 else Paint(s.second))
    mark(c, s.marking, 0.0, -0.66, 0.16, s.marking_colour)
    for side in (-1, 1):
        c.fill(box(side * 0.55 - 0.22, 0.86, side * 0.55 + 0.22, 1.02), shade(s.second, 0.6))


def teapot(c: Canvas, s: Subject, state: str, paint: Paint) -> None:
    """Private parts: spout, handle, knob; the second colour is on spout, handle and lid."""
    spout, handle, knob = s.parts
    pour = state == "pouring"
    with c.placed(-0.05 if pour else 0.0, 0.0 if pour else 0.12, 0.92, turn=26.0 if pour else 0.0):
        if handle == 0:
            c.line(arc(-0.66, 0.2, 0.34, 60, 300), s.second, 0.15)
        elif handle == 1:
            c.line([(-0.5, -0.1), (-1.0, -0.1), (-1.0, 0.5), (-0.55, 0.5)], s.second, 0.15)
        else:
            c.line(arc(0, -0.22, 0.56, 190, 350), s.second, 0.13)
        spouts: list[list[Point]] = [
            [(0.5, 0.5), (0.95, -0.26), (1.12, -0.2), (0.62, 0.68)],
            [(0.5, 0.34), (0.86, 0.26), (0.86, -0.3), (1.08, -0.3), (1.06, 0.5), (0.5, 0.62)],
            [(0.5, 0.1), (1.05, -0.12), (1.05, 0.14), (0.5, 0.45)],
        ]
        c.body(spouts[spout], Paint(s.second))
        c.body(disc(0, 0.28, 0.66, 0.56), paint)
        mark(c, s.marking, 0.0, 0.34, 0.25, s.marking_colour)
        c.body([*arc(0, -0.16, 0.36, 180, 360)], Paint(s.second))
        knobs: list[list[Point]] = [
            disc(0, -0.58, 0.13),
            [(-0.14, -0.46), (0, -0.84), (0.14, -0.46)],
            box(-0.2, -0.62, 0.2, -0.48),
        ]
        c.fill(knobs[knob], s.marking_colour)
    if pour:
        x = 1.0 if spout != 2 else 0.84
        c.fill([(x - 0.12, 0.34), (x + 0.1, 0.36), (x + 0.16, 1.0), (x - 0.02, 1.0)], WATER)
        c.fill(disc(x + 0.06, 1.0, 0.3, 0.07), WATER)
    if state == "steaming":
        tip = {0: (1.0, -0.3), 1: (0.92, -0.36), 2: (1.0, -0.1)}[spout]
        _puffs(c, *tip, 1.15, WHITE)


def candle(c: Canvas, s: Subject, state: str, paint: Paint) -> None:
    """Private parts: wax, holder, band; the second colour is the holder's."""
    wax, holder, band = s.parts
    top = {0: -0.45, 1: -0.55, 2: -0.12}[wax]
    half = {0: 0.24, 1: 0.28, 2: 0.4}[wax]
    holders: list[list[Point]] = [
        [(-0.7, 0.8), (0.7, 0.8), (0.5, 1.0), (-0.5, 1.0)],
        [(-0.36, 0.66), (0.36, 0.66), (0.14, 0.8), (0.4, 1.0), (-0.4, 1.0), (-0.14, 0.8)],
        [(-0.52, 0.5), (0.52, 0.5), (0.52, 1.0), (-0.52, 1.0)],
    ]
    if state == "melting":
        top += 0.3
    bodies: list[list[Point]] = [
        box(-half, top, half, 0.8),
        [(-half * 0.55, top), (half * 0.55, top), (half, 0.8), (-half, 0.8)],
        box(-half, top, half, 0.8),
    ]
    c.body(bodies[wax], paint)
    mark(c, s.marking, 0.0, (top + 0.7) / 2, 0.2, s.marking_colour)
    if state == "melting":
        for x, y in ((-half, 0.5), (-half * 0.3, 0.3), (half * 0.75, 0.62)):
            c.fill(bar((x, top), (x, y), 0.13), shade(paint.colour, 1.35))
            c.fill(disc(x, y, 0.09, 0.12, n=12), shade(paint.colour, 1.35))
        c.fill(disc(0, 0.86, 0.62, 0.12), shade(paint.colour, 1.35))
    c.body(holders[holder], Paint(s.second))
    if band:
        c.fill(box(-0.5, 0.84, 0.5, 0.93), s.marking_colour)
    c.line([(0, top), (0, top - 0.14)], INK, 0.06)
    if state in ("burning", "melting"):
        y = top - 0.14
        c.fill([(0, y - 0.5), (0.18, y - 0.1), (0.1, y + 0.05), (-0.1, y + 0.05), (-0.18, y - 0.1)], FLAME)
        c.fill([(0, y - 0.3), (0.08, y - 0.06), (0, y + 0.02), (-0.08, y - 0.06)], (255, 240, 150))


def chair(c: Canvas, s: Subject, state: str, paint: Paint) -> None:
    """Private parts: back, legs, seat; the second colour is the seat's."""
    back, legs, seat = s.parts
    fallen = state == "tipped over"
    with c.placed(0.1 if fallen else 0.0, 0.36 if fallen else 0.0, 1.0, turn=-78.0 if fallen else 0.0):
        foot = {0: 0.5, 1: 0.74, 2: 0.16}[legs]
        for side in (-1, 1):
            c.body(bar((side * (0.44 if legs < 2 else 0.1), 0.3), (side * foot, 1.0), 0.13), paint.shade(0.9))
        if legs == 2:
            c.body(box(-0.46, 0.9, 0.46, 1.0), paint.shade(0.9))
        if back == 0:
            for x in (-0.46, -0.15, 0.15, 0.46):
                c.body(box(x - 0.07, -0.86, x + 0.07, 0.2), paint)
            c.body(box(-0.53, -0.98, 0.53, -0.76), paint)
        elif back == 1:
            c.body(box(-0.52, -0.95, 0.52, 0.2), paint)
        elif back == 2:
            c.body(disc(0, -0.4, 0.54, 0.56), paint)
        else:
            for x in (-0.48, 0.48):
                c.body(box(x - 0.07, -0.98, x + 0.07, 0.2), paint)
            for y in (-0.86, -0.5, -0.14):
                c.body(box(-0.5, y, 0.5, y + 0.17), paint)
        mark(c, s.marking, 0.0, -0.42, 0.25, s.marking_colour)
        seats: list[list[Point]] = [
            box(-0.6, 0.14, 0.6, 0.36),
            disc(0, 0.22, 0.62, 0.17),
            [(-0.62, 0.36), (-0.5, 0.08), (0.5, 0.08), (0.62, 0.36)],
        ]
        c.body(seats[seat], Paint(s.second))
    if state == "rocking":
        c.line(arc(0, -0.1, 1.12, 40, 140), shade(paint.colour, 0.6), 0.13)
        for side in (-1, 1):
            c.line(
                arc(side * 0.62, -0.4, 0.5, -50 if side > 0 else 130, 50 if side > 0 else 230, 8), WHITE, 0.06
            )


def flower(c: Canvas, s: Subject, state: str, paint: Paint) -> None:
    """Private parts: petals, leaves, foot; the second colour is the heart's and the pot's."""
    petals, leaves, foot = s.parts
    stem: RGB = (66, 140, 60)
    base = 0.62 if foot else 1.0
    hx, hy = (0.0, -0.34)
    if state == "wilting":
        hx, hy = 0.52, 0.22
        c.line([(0, base), (0, -0.1), (0.14, -0.3), (0.36, -0.26), (0.48, 0.0)], stem, 0.1)
    else:
        c.line([(0, base), (0, hy)], stem, 0.1)
    for side in (-1, 1):
        y = base - 0.26
        if leaves == 0:
            c.fill(disc(side * 0.24, y - 0.04, 0.24, 0.1, -28 * side), stem)
        elif leaves == 1:
            c.fill([(0, y + 0.06), (side * 0.5, y - 0.44), (side * 0.16, y - 0.02)], stem)
        else:
            c.fill(disc(side * 0.22, y, 0.2), stem)
    if foot == 1:
        c.body([(-0.42, 0.56), (0.42, 0.56), (0.3, 1.0), (-0.3, 1.0)], Paint(s.second))
    elif foot == 2:
        c.body(disc(0, 0.8, 0.34, 0.24), Paint(s.second))
        c.body(box(-0.14, 0.5, 0.14, 0.68), Paint(s.second))
    if state == "budding":
        c.body([(hx, hy - 0.44), (hx + 0.22, hy), (hx, hy + 0.16), (hx - 0.22, hy)], paint)
        c.fill([(hx - 0.22, hy), (hx, hy + 0.2), (hx + 0.22, hy), (hx, hy + 0.06)], stem)
        return
    r = 0.44 if state != "wilting" else 0.36
    if petals == 0:
        for k in range(6):
            a = math.radians(60 * k + 30)
            c.body(disc(hx + r * math.cos(a), hy + r * math.sin(a), r * 0.52), paint)
    elif petals == 1:
        c.body(star(hx, hy, r * 1.6, 8, 0.5), paint)
    elif petals == 2:
        c.body(
            [
                (hx - r, hy + r * 0.7),
                (hx - r * 1.1, hy - r),
                (hx - r * 0.45, hy - r * 0.3),
                (hx, hy - r * 1.3),
                (hx + r * 0.45, hy - r * 0.3),
                (hx + r * 1.1, hy - r),
                (hx + r, hy + r * 0.7),
                (hx, hy + r * 1.1),
            ],
            paint,
        )
    else:
        c.body(disc(hx, hy, r * 1.3), paint)
        c.body(disc(hx, hy, r * 0.85), paint.shade(0.85))
    mark(c, s.marking, hx, hy, 0.2, s.marking_colour)
    if petals != 2:
        c.fill(disc(hx, hy, r * 0.36, n=16), s.second)
