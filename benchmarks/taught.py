"""Unseen storybook subjects, taught once into a registry that later runs go on using."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from conceptkit import base as bases
from conceptkit import learn
from conceptkit.errors import UnknownConcept
from conceptkit.evaluate import metrics
from conceptkit.registry.store import Registry
from conceptkit.storybook import world

SHOWN, HELD_OUT = 5, 5


@dataclass(frozen=True, eq=False)
class Taught:
    """A subject under a name, its photos, and the embeddings of those it was taught from."""

    name: str
    subject: world.Subject
    shots: tuple[Image.Image, ...]
    real: Tensor

    @property
    def noun(self) -> str:
        return str(self.subject.noun)


def subjects(nouns: Sequence[str], seed: int = 2026) -> list[world.Subject]:
    """One unseen subject for each noun, no two alike."""
    rng = np.random.default_rng(seed)
    return [world.draw_subject(rng, noun, "scored") for noun in nouns]


def teach(
    base: bases.Base,
    judge: metrics.SubjectJudge,
    registry: Registry,
    name: str,
    subject: world.Subject,
    number: int,
    steps: int | None = None,
) -> Taught:
    """The subject as a concept: the stored one, or learned now from five photos."""
    shots = tuple(world.photos(subject, SHOWN + HELD_OUT, 1000 + number))
    try:
        registry.get(name)
    except UnknownConcept:
        folder = Path(registry.home) / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        for k, shot in enumerate(shots[:SHOWN]):
            shot.save(folder / f"{k}.png")
        learn.add(name, folder, noun=subject.noun, base=base, registry=registry, steps=steps)
    return Taught(name, subject, shots, judge.embed(list(shots[:SHOWN])))


@torch.no_grad()
def round_trip(base: bases.Base, shots: Sequence[Image.Image]) -> list[Image.Image]:
    """Through the autoencoder and back: the best that the base could draw."""
    vae = base.pipe.vae
    seen = vae.decode(vae.encode(metrics.pixels(shots, 64)).latent_dist.mode()).sample.clamp(-1, 1)
    return [Image.fromarray(p) for p in ((seen + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]


def draw(
    base: bases.Base, prompt: str, seeds: Sequence[int], steps: int, batch: int = 16
) -> list[Image.Image]:
    """Pictures of one prompt by whatever is attached, one a seed."""
    drawn: list[Image.Image] = []
    for start in range(0, len(seeds), batch):
        chunk = seeds[start : start + batch]
        drawn += base.pipe(
            [prompt] * len(chunk),
            num_inference_steps=steps,
            guidance_scale=base.guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in chunk],
        ).images
    return drawn


def interval(values: np.ndarray, over: np.ndarray | None = None, seed: int = 0) -> list[float]:
    """95 % bootstrap bounds of mean(values), or of mean(values) / mean(over), resampling the first axis."""
    picks = np.random.default_rng(seed).integers(len(values), size=(2000, len(values)))
    means = values[picks].mean(axis=1)
    shares = means if over is None else means / over[picks].mean(axis=1)
    low, high = np.nanpercentile(shares, [2.5, 97.5])
    return [float(low), float(high)]
