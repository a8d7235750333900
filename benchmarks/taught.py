"""Unseen storybook subjects, taught once into a registry that later runs go on using."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import read
from conceptkit.concepts.recipe_fields import current_fields
from conceptkit.errors import UnknownConcept
from conceptkit.evaluate import scorers
from conceptkit.learn import config
from conceptkit.registry.store import Registry
from conceptkit.storybook.world import scene
from conceptkit.storybook.world import subject as subjects
from conceptkit.workflows import add

SHOWN, HELD_OUT = 5, 5


@dataclass(frozen=True, eq=False)
class Taught:
    """A subject under a name, its photos, and the embeddings of those it was taught from."""

    name: str
    subject: subjects.Subject
    shots: tuple[Image.Image, ...]
    real: Tensor

    @property
    def noun(self) -> str:
        return str(self.subject.noun)


def unseen(count: int, seed: int = 2026) -> list[subjects.Subject]:
    """Unseen subjects of all classes in turn, no two alike: the n-th is the same in every benchmark."""
    nouns, rng = list(scene.CLASSES), np.random.default_rng(seed)
    return [scene.draw_subject(rng, nouns[k % len(nouns)], "scored") for k in range(count)]


def teach(
    base: bases.Base,
    judge: scorers.SubjectJudge,
    registry: Registry,
    number: int,
    steps: int | None = None,
) -> Taught:
    """An unseen subject as a concept: stored by this base and recipe, or learned now from five photos."""
    name, subject = f"thing{number}", unseen(number + 1)[number]
    shots = tuple(scene.photos(subject, SHOWN + HELD_OUT, 1000 + number))
    try:
        stored = read(registry, name)
        known = (current_fields(stored.recipe), stored.base) == (
            config.config_for(steps=steps, family=base.family.name).to_json(),
            base.fingerprint,
        )
    except UnknownConcept:
        known = False
    if not known:
        folder = Path(registry.home) / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        for k, shot in enumerate(shots[:SHOWN]):
            shot.save(folder / f"{k}.png")
        more = {"steps": steps, "new_version": True}
        add.add(name, folder, class_noun=subject.noun, base=base, registry=registry, **more)
    return Taught(name, subject, shots, judge.embed(list(shots[:SHOWN])))


def mean(values: np.ndarray) -> float:
    """Of those that could be measured."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")


def interval(values: np.ndarray, over: np.ndarray | None = None, seed: int = 0) -> list[float]:
    """95 % bootstrap bounds of mean(values), or of mean(values) / mean(over), resampling the first axis."""
    picks = np.random.default_rng(seed).integers(len(values), size=(2000, len(values)))
    means = values[picks].mean(axis=1)
    shares = means if over is None else means / over[picks].mean(axis=1)
    low, high = np.nanpercentile(shares, [2.5, 97.5])
    return [float(low), float(high)]
