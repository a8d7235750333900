"""Three unseen subjects in one storybook frame, each confined to its part: what is left of each in its place.

The same layout is drawn four times: with class nouns, with each subject alone among class nouns, with all. A
subject is cut out where the layout has it, or has put it where the base drew none. Its likeness to its photos
is 0 with class nouns, 1 alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from rich.progress import track

from benchmarks.pictures import draw
from benchmarks.report import finish, shortfall, use_own_cores
from benchmarks.taught import Taught, interval, teach
from conceptkit.base import pipeline as bases
from conceptkit.base.autoencoder import pixels_of
from conceptkit.evaluate import metrics
from conceptkit.evaluate.scorers import SubjectJudge
from conceptkit.inference.attach import attach
from conceptkit.inference.generate import STEPS
from conceptkit.inference.layout import Layout, Placed
from conceptkit.registry.store import Registry
from conceptkit.storybook.world import scene

PROMPT = "a {} next to a {} and a {}"
SIZE, MARGIN = 64, 4
APART = 5
"""Classes between one subject and the next."""
TRIPLES, SEEDS = 10, 4
BAR = 0.85


def cut(picture: Image.Image, place: Placed) -> Image.Image:
    """A thing with a margin, as a square of the judge's size."""
    x0, y0, x1, y1 = (edge * SIZE for edge in place.box)
    half = max(x1 - x0, y1 - y0) / 2 + MARGIN
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    box = tuple(round(edge) for edge in (x - half, y - half, x + half, y + half))
    return picture.crop(box).resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def score(
    base: bases.Base, judge: SubjectJudge, registry: Registry, trio: Sequence[Taught], seeds: int, steps: int
) -> dict[str, Any]:
    """together, alone (3,): likeness beyond that of class nouns. complete: share of pictures in which the
    base drew all three."""
    nouns, names = [one.noun for one in trio], [one.name for one in trio]

    def drawn(words: Sequence[str], *attached: str) -> tuple[list[Image.Image], list[Layout]]:
        pictures, layouts = [], []
        with attach(base.pipe, *attached, registry=registry, confine=True) as attachment:
            for seed in range(seeds):
                pictures += draw(base, [PROMPT.format(*words)], [seed], steps=steps)
                assert attachment.layout is not None
                layouts.append(attachment.layout)
        return pictures, layouts

    every, layouts = drawn(names, *names)
    plain = [_of_class_nouns(base, layout) for layout in layouts]
    together, alone = [], []
    for i, one in enumerate(trio):
        single, _ = drawn([*nouns[:i], one.name, *nouns[i + 1 :]], one.name)
        likeness = [
            metrics.similarity(
                judge.embed(
                    [
                        cut(picture, layout.pictures[0].things[i])
                        for picture, layout in zip(shown, layouts, strict=True)
                    ]
                ),
                one.real,
            )
            for shown in (plain, single, every)
        ]
        together.append(likeness[2] - likeness[0])
        alone.append(likeness[1] - likeness[0])
    complete = [all(thing.found for thing in layout.pictures[0].things) for layout in layouts]
    return {"together": together, "alone": alone, "complete": float(np.mean(complete))}


def _of_class_nouns(base: bases.Base, layout: Layout) -> Image.Image:
    """The picture that the base itself drew for a layout."""
    assert layout.latents is not None
    pixels = pixels_of(base.pipe, layout.latents)[0].permute(1, 2, 0).cpu().numpy()
    return Image.fromarray((255 * pixels).round().astype(np.uint8))


@click.command()
@click.option("--triples", default=TRIPLES, show_default=True, help="Of three different classes.")
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option("--steps", default=STEPS, show_default=True, help="Denoising steps.")
@click.option("--learning-steps", type=int, help="Training steps of each subject.  [default: the recipe's]")
@click.option("--home", default="build/taught", show_default=True, help="Keeps what was taught.")
def main(triples: int, seeds: int, steps: int, learning_steps: int | None, home: str) -> None:
    use_own_cores()
    warnings.simplefilter("ignore")
    classes = len(scene.CLASSES)
    lines = []
    with Registry(Path(home)) as registry:
        base, judge = bases.load(), SubjectJudge()
        for k in track(range(triples), "triples"):
            numbers = (k, k + classes + APART, k + 2 * classes + 2 * APART)
            trio = [teach(base, judge, registry, n, learning_steps) for n in numbers]
            lines.append(score(base, judge, registry, trio, seeds, steps))
            print(lines[-1], flush=True)
    together, alone = (np.array([np.mean(line[key]) for line in lines]) for key in ("together", "alone"))
    share = float(together.mean() / alone.mean())
    finish(
        "compose_three",
        share,
        "share of the likeness alone that each of three subjects in one frame keeps",
        BAR,
        share >= BAR,
        f"0..{seeds - 1}",
        trial=shortfall(
            learning_steps, triples=(triples, TRIPLES), seeds=(seeds, SEEDS), denoising_steps=(steps, STEPS)
        ),
        interval=interval(together, alone),
        complete=float(np.mean([line["complete"] for line in lines])),
        lines=lines,
    )


if __name__ == "__main__":
    main()
