"""The storybook world: what exists in it, what a caption may say of it, and how a scene becomes a picture.

Public attributes (class, colour, pattern or material, state, accessory, place, style, framing) may be said in
a caption. Private traits (part shapes, marking, marking colour, second colour, collar) never are: a `Subject`
is one tuple of them, and only pictures can teach it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from conceptkit.storybook.world import animals, scenery, things
from conceptkit.storybook.world.canvas import OVERSAMPLE, RGB, Canvas, Paint, hsv, shade
from conceptkit.storybook.world.subject import Subject

Rng = np.random.Generator

# name -> hue, saturation, value
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.0, 0.82, 0.84),
    "orange": (0.075, 0.88, 0.96),
    "yellow": (0.145, 0.78, 0.97),
    "green": (0.35, 0.68, 0.62),
    "blue": (0.61, 0.76, 0.82),
    "purple": (0.77, 0.62, 0.68),
    "pink": (0.92, 0.42, 0.98),
    "brown": (0.07, 0.66, 0.48),
    "black": (0.6, 0.1, 0.17),
    "white": (0.1, 0.03, 0.97),
    "grey": (0.6, 0.05, 0.58),
}

# What private parts are coloured with: few enough that a small model learns each of them well, and some of
# them colours that no caption can name.
CRAYONS: tuple[tuple[float, float, float], ...] = (
    *(
        COLOURS[hue]
        for hue in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white")
    ),
    (0.24, 0.75, 0.85),  # lime
    (0.49, 0.72, 0.74),  # teal
    (0.86, 0.8, 0.8),  # magenta
)


@dataclass(frozen=True)
class Class:
    """One class noun: how it is drawn, the number of shapes of each private part, and its own states."""

    draw: Callable[..., Any]
    parts: tuple[int, int, int]
    rest: str
    states: tuple[str, ...]
    alive: bool = False


CLASSES: dict[str, Class] = {
    "dog": Class(
        animals.quadruped, (3, 4, 3), "standing", ("running", "sitting", "jumping", "sleeping"), True
    ),
    "cat": Class(
        animals.quadruped, (3, 3, 3), "standing", ("running", "sitting", "jumping", "sleeping"), True
    ),
    "rabbit": Class(
        animals.quadruped, (3, 4, 3), "standing", ("running", "sitting", "jumping", "sleeping"), True
    ),
    "bird": Class(animals.bird, (3, 3, 3), "standing", ("flying", "singing"), True),
    "fish": Class(animals.fish, (3, 3, 3), "swimming", ("jumping", "blowing bubbles")),
    "robot": Class(animals.robot, (3, 3, 3), "standing", ("waving", "dancing"), True),
    "car": Class(things.car, (3, 3, 3), "parked", ("driving", "with its lights on")),
    "boat": Class(things.boat, (3, 3, 3), "floating", ("sailing", "sinking")),
    "house": Class(things.house, (4, 3, 3), "standing", ("with lit windows", "with a smoking chimney")),
    "gate": Class(things.gate, (3, 3, 3), "standing", ("open", "closed")),
    "teapot": Class(things.teapot, (3, 3, 3), "standing", ("pouring", "steaming")),
    "candle": Class(things.candle, (3, 3, 2), "unlit", ("burning", "melting")),
    "chair": Class(things.chair, (4, 3, 3), "standing", ("tipped over", "rocking")),
    "flower": Class(things.flower, (4, 3, 3), "blooming", ("wilting", "budding")),
}
PATTERNS = ("striped", "spotted", "checkered")
MATERIALS = ("wooden", "golden", "stone")
ACCESSORIES = ("hat", "scarf", "sunglasses")
MARKINGS = ("none", "patch", "star", "heart", "band", "half", "ring", "bolt")
RESERVED_MARKINGS = ("cross", "zigzag")
FRAMINGS: dict[str, tuple[str, ...]] = {"far": ("far away", "very small"), "near": ("zoomed in", "close up")}
RELATIONS = ("next to", "in front of")
MOONGATE = 3  # the gate frame that the base has never seen


@dataclass(frozen=True)
class Figure:
    """A subject in a scene with its public attributes."""

    subject: Subject
    state: str
    surface: str = "plain"
    accessory: str | None = None
    accessory_colour: RGB = (200, 40, 40)
    flip: bool = False


@dataclass(frozen=True)
class Scene:
    """All that a picture shows; `seed` fixes background details, placement and light."""

    figures: tuple[Figure, ...]
    place: str | None
    style: str | None = None
    framing: str | None = None
    relation: str | None = None
    seed: int = 0


SPLITS: dict[str, range] = {
    "base": range(60),
    "evaluators": range(60, 76),
    "scored": range(76, 92),
    "demo": range(92, 100),
}


def split_of(subject: Subject) -> str:
    """The split that a subject belongs to, decided by its private traits alone."""
    if subject.marking in RESERVED_MARKINGS or (subject.noun == "gate" and subject.parts[0] == MOONGATE):
        return "scored"
    bucket = int(hashlib.sha256(repr(subject.traits).encode()).hexdigest(), 16) % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


@cache
def withheld(noun: str, hue: str, place: str) -> bool:
    """Whether this combination of class, colour and place is in no picture of the base (one in ten is so)."""
    return int(hashlib.sha256(f"{noun}/{hue}/{place}".encode()).hexdigest(), 16) % 10 == 0


def any_colour(rng: Rng) -> RGB:
    """A private colour: one of the crayons, never tied to the words of a caption."""
    return _nearly(CRAYONS[int(rng.integers(len(CRAYONS)))], rng)


def named_colour(hue: str, rng: Rng) -> RGB:
    """A shade of a colour that captions can name."""
    return _nearly(COLOURS[hue], rng)


def _nearly(colour: tuple[float, float, float], rng: Rng) -> RGB:
    h, s, v = colour
    return hsv(h + rng.normal(0, 0.009), s + rng.normal(0, 0.03), v + rng.normal(0, 0.025))


def _apart(colour: RGB, other: RGB) -> RGB:
    """The same hue made lighter or darker where it would vanish against `other`."""
    if sum((a - b) ** 2 for a, b in zip(colour, other, strict=True)) > 95**2:
        return colour
    return shade(colour, 0.38) if sum(colour) > 330 else shade(colour, 1.62)


def draw_subject(rng: Rng, noun: str | None = None, split: str = "base", hue: str | None = None) -> Subject:
    """A random individual of the wanted split; the class noun and the main colour's name may be given."""
    nouns = list(CLASSES)
    while True:
        n = noun or nouns[int(rng.integers(len(nouns)))]
        spec = CLASSES[n]
        named = hue or (list(COLOURS)[int(rng.integers(len(COLOURS)))] if rng.uniform() < 0.8 else None)
        colour = (
            named_colour(named, rng)
            if named
            else hsv(rng.uniform(), rng.uniform(0.35, 0.95), rng.uniform(0.45, 1))
        )
        markings = MARKINGS + (RESERVED_MARKINGS if split == "scored" else ())
        a, b, c = (int(rng.integers(k)) for k in spec.parts)
        subject = Subject(
            noun=n,
            hue=named,
            colour=colour,
            parts=(a, b, c),
            marking=markings[int(rng.integers(len(markings)))],
            marking_colour=any_colour(rng),
            second=any_colour(rng),
            collar=any_colour(rng) if spec.alive and rng.uniform() < 0.5 else None,
        )
        if split_of(subject) == split:
            return subject


def moongate(rng: Rng) -> Subject:
    """A round gate of single stones, a form that the base has never seen."""
    stones = hsv(rng.uniform(0.02, 0.14), rng.uniform(0.15, 0.5), rng.uniform(0.6, 0.9))
    return Subject("gate", None, stones, (MOONGATE, 0, 0), "none", any_colour(rng), any_colour(rng))


SHADOW = ((-0.9, 0.0), (-0.5, 0.07), (0.5, 0.07), (0.9, 0.0), (0.5, -0.06), (-0.5, -0.06))


def _place_figure(c: Canvas, f: Figure, x: float, floor: float, scale: float) -> None:
    spec = CLASSES[f.subject.noun]
    s = replace(
        f.subject,
        marking_colour=_apart(f.subject.marking_colour, f.subject.colour),
        second=_apart(f.subject.second, f.subject.colour),
    )
    c.mask = None
    shadow = [(x + scale * a, floor + scale * b) for a, b in SHADOW]
    c.fill(shadow, shade(c.image.getpixel((int(x * c.px) % c.px, min(c.px - 1, int(floor * c.px)))), 0.78))  # type: ignore[arg-type]
    with c.placed(x, floor - scale, -scale if f.flip else scale, scale):
        at = spec.draw(c, s, f.state, Paint(s.colour, f.surface))
        if f.accessory and at is not None:
            animals.wear(c, f.accessory, at, f.accessory_colour)


def render(scene: Scene, without: Collection[int] = ()) -> Image.Image:
    """The scene as an RGB picture of 64x64. Of two figures the first named stands on the left, as one reads.

    Left to chance, a small model draws the same thing on both sides. without: the numbers of figures that are
    left out; all else stays as it is.
    """
    rng = np.random.default_rng(scene.seed)
    c = scenery.backdrop(scene.place, rng)

    def place(number: int, x: float, floor: float, scale: float) -> None:
        if number not in without:
            _place_figure(c, scene.figures[number], x, floor, scale)

    if len(scene.figures) == 1:
        low, high = {"far": (0.19, 0.23), "near": (0.43, 0.5), None: (0.3, 0.36)}[scene.framing]
        scale = rng.uniform(low, high)
        floor = min(0.62 + scale * 0.9, 0.98) + rng.uniform(-0.03, 0.02)
        place(0, 0.5 + rng.uniform(-0.09, 0.09) * (1 if scale < 0.4 else 0.4), floor, scale)
    elif scene.relation == "in front of":
        place(1, 0.5 + rng.uniform(0.06, 0.13), 0.84, rng.uniform(0.34, 0.38))
        place(0, 0.5 - rng.uniform(0.15, 0.22), 0.96, rng.uniform(0.23, 0.26))
    else:
        for number, x in enumerate((0.26, 0.74)):
            place(
                number,
                x + rng.uniform(-0.02, 0.02),
                0.88 + rng.uniform(-0.04, 0.04),
                rng.uniform(0.22, 0.25),
            )
    picture = c.image
    if scene.style:
        return scenery.STYLES[scene.style][0](picture).reduce(OVERSAMPLE)
    return scenery.light(picture.reduce(OVERSAMPLE), rng)


def draw_scene(rng: Rng, split: str = "base", subject: Subject | None = None) -> Scene:
    """A random scene whose subjects come from `split`; withheld combinations never occur."""
    while True:
        count = 2 if subject is None and rng.uniform() < 0.36 else 1
        figures = tuple(draw_figure(subject or draw_subject(rng, split=split), rng) for _ in range(count))
        place = None if rng.uniform() < 0.12 else list(scenery.PLACES)[int(rng.integers(len(scenery.PLACES)))]
        if any(f.subject.hue and place and withheld(f.subject.noun, f.subject.hue, place) for f in figures):
            continue
        return Scene(
            figures=figures,
            place=place,
            style=list(scenery.STYLES)[int(rng.integers(len(scenery.STYLES)))]
            if rng.uniform() < 0.12
            else None,
            framing=(None if count == 2 or rng.uniform() < 0.72 else ("far", "near")[int(rng.integers(2))]),
            relation=RELATIONS[int(rng.integers(2))] if count == 2 else None,
            seed=int(rng.integers(2**31)),
        )


def draw_figure(subject: Subject, rng: Rng, plain: bool = False) -> Figure:
    """A subject with random public attributes; `plain` leaves surface and accessory out (a photo session)."""
    spec = CLASSES[subject.noun]
    state = spec.rest if rng.uniform() < 0.4 else spec.states[int(rng.integers(len(spec.states)))]
    surface = "plain"
    if not plain and rng.uniform() < 0.2:
        choices = PATTERNS if spec.alive or subject.noun in ("fish", "flower") else PATTERNS + MATERIALS
        surface = choices[int(rng.integers(len(choices)))]
    wears = spec.alive and not plain and rng.uniform() < 0.25
    return Figure(
        subject,
        state,
        surface,
        ACCESSORIES[int(rng.integers(len(ACCESSORIES)))] if wears else None,
        any_colour(rng),
        flip=bool(rng.uniform() < 0.5),
    )


def photos(subject: Subject, n: int, seed: int) -> list[Image.Image]:
    """A photo session: one subject, `n` pictures of 64x64 in varied places, poses and light."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(scenery.PLACES))
    places = list(scenery.PLACES)
    scenes = [
        Scene(
            figures=(draw_figure(subject, rng, plain=True),),
            place=places[int(order[k % len(places)])] if k % 4 else None,
            framing="near" if k % 3 == 1 else None,
            seed=int(rng.integers(2**31)),
        )
        for k in range(n)
    ]
    return [render(scene) for scene in scenes]
