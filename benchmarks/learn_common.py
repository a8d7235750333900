"""What the benchmarks of learning share: unseen subjects, prompts in known places, judged pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import click
import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.pictures import draw
from benchmarks.report import shortfall
from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import Concept
from conceptkit.data.photos import PhotoSet
from conceptkit.evaluate import metrics, scorers
from conceptkit.inference.attach import attach
from conceptkit.inference.generate import STEPS
from conceptkit.storybook.world import scene
from conceptkit.storybook.world.subject import Subject

Program = TypeVar("Program", bound=Callable[..., Any])

PROMPTS: tuple[tuple[str, str | None], ...] = (
    ("photo of a {}", None),
    ("photo of a {} in the city", "city"),
    ("photo of a {} on the beach", "beach"),
    ("photo of a {} in a forest", "forest"),
    ("photo of a {} in the snow", "snow"),
    ("photo of a {} in the desert", "desert"),
    ("photo of a {} in a meadow", "meadow"),
    ("photo of a {} in a kitchen", "kitchen"),
)
"""Each with the place that must be seen in its pictures for them to count."""
SUBJECTS, SEEDS, SHOWN, HELD_OUT = 10, 4, 5, 5


def options(methods: Iterable[str], full: int = SUBJECTS) -> Callable[[Program], Program]:
    """The options of a benchmark of learning: `methods` on `full` subjects, unless told otherwise."""
    given = (
        click.option("--subjects", "count", default=full, show_default=True, help="Unseen subjects."),
        click.option("--seeds", default=SEEDS, show_default=True, help="Pictures of each prompt."),
        click.option("--steps", type=int, help="Learning steps, to try the program itself."),
        click.option("--methods", default=",".join(methods), show_default=True),
        click.option("--drawing", default=STEPS, show_default=True, help="Denoising steps of a picture."),
    )

    def with_options(program: Program) -> Program:
        for option in reversed(given):
            program = option(program)
        return program

    return with_options


def lacking(steps: int | None, subjects: int, seeds: int, drawing: int, full: int = SUBJECTS) -> str:
    """What a run with these options lacks of a full one, as `report.shortfall` says it."""
    return shortfall(steps, subjects=(subjects, full), seeds=(seeds, SEEDS), denoising_steps=(drawing, STEPS))


def briefly(line: Mapping[str, float]) -> str:
    """Figures on one line, for the eye."""
    return "  ".join(f"{key} {value:.3g}" for key, value in line.items())


@dataclass(frozen=True, eq=False)
class Pupil:
    """An unseen subject under a name: photos to learn from, and what its pictures can be at worst and best.

    real (n, d): embeddings of its photos; usual (m, d): of what the base draws of its class in PROMPTS.
    floor: likeness of those to the photos; ceiling: that of other photos that the autoencoder has drawn.
    """

    name: str
    subject: Subject
    shown: PhotoSet
    real: Tensor
    usual: Tensor
    floor: float
    ceiling: float

    @property
    def noun(self) -> str:
        return str(self.subject.noun)

    def gap(self, likeness: float) -> float:
        return metrics.gap(likeness, self.floor, self.ceiling)


class Studio:
    """A base and its judges; every prompt is drawn with the same seeds, whatever is attached."""

    def __init__(self, base: bases.Base, seeds: int, steps: int) -> None:
        self.base, self.seeds, self.steps = base, list(range(seeds)), steps
        self.who, self.what = scorers.SubjectJudge(), scorers.AttributeJudge()

    def draw(self, prompts: Sequence[str], concept: Concept | None = None) -> list[Image.Image]:
        """Pictures of the prompts in turn, each with all seeds."""
        texts = [text for text in prompts for _ in self.seeds]
        with warnings.catch_warnings(), attach(self.base.pipe, concept) if concept else nullcontext():
            warnings.filterwarnings("ignore", ".* mentions none of the attached concepts")  # as is meant here
            return draw(self.base, texts, self.seeds * len(prompts), steps=self.steps)

    def in_places(self, word: str, concept: Concept | None = None) -> list[Image.Image]:
        """Pictures of PROMPTS with this word in them."""
        return self.draw([text.format(word) for text, _ in PROMPTS], concept)

    def confirmed(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Which pictures of PROMPTS show the place that their prompt names: (n,) bool."""
        places = [place for _, place in PROMPTS for _ in self.seeds]
        seen = self.what.best(self.what.logits(pictures), "place")
        return np.array([place in (None, found) for place, found in zip(places, seen, strict=True)])

    def right(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Those pictures of PROMPTS that count."""
        return [p for p, sure in zip(pictures, self.confirmed(pictures), strict=True) if sure]

    def likeness(self, pictures: Sequence[Image.Image], real: Tensor) -> float:
        """Mean cosine of the pictures of PROMPTS that count, and photos (n, d)."""
        right = self.right(pictures)
        return metrics.similarity(self.who.embed(right), real) if right else float("nan")

    def pupil(self, name: str, subject: Subject, number: int, shown: int = SHOWN) -> Pupil:
        """The subject with the first photos of a session to learn from; the last ones are the ceiling."""
        shots = scene.photos(subject, SHOWN + HELD_OUT, 1000 + number)
        photos = PhotoSet(tuple(shots[:shown]), tuple(map(str, range(shown))), f"{name} {number}")
        real = self.who.embed(shots[:SHOWN])
        plain = self.in_places(subject.noun)
        best = self.who.embed(scorers.round_trips(self.base.pipe.vae, shots[SHOWN:]))
        floor, ceiling = self.likeness(plain, real), metrics.similarity(best, real)
        return Pupil(name, subject, photos, real, self.who.embed(plain), floor, ceiling)
