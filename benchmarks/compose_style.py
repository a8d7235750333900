"""A subject in a style, both learned: what is left of each of the look that it has alone.

Styles are one change of all colours, learned from pictures of other things. How near a picture is to one is
how far its colours are from those of the style's pictures: 0 with the class noun alone, 1 with the class noun
in the style. A subject is compared with its photos: 0 with the class noun in the style, 1 when it is drawn
without one. So what a style takes of the colours that a subject is known by counts as lost. How much that is
stands beside it: what is left of the subject when the pictures of it alone are given the style's colours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageOps
from rich.progress import track
from scipy.spatial import KDTree

from benchmarks.pictures import draw
from benchmarks.report import finish, shortfall, use_own_cores
from benchmarks.taught import Taught, interval, teach, unseen
from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import read
from conceptkit.errors import UnknownConcept
from conceptkit.evaluate import metrics
from conceptkit.evaluate.scorers import SubjectJudge
from conceptkit.inference.attach import attach
from conceptkit.inference.generate import STEPS
from conceptkit.registry.store import Registry
from conceptkit.storybook.world import scene
from conceptkit.workflows import add

Style = Callable[[Image.Image], Image.Image]


def _grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L")


STYLES: Mapping[str, Style] = {
    "inky": lambda picture: ImageOps.posterize(_grey(picture).convert("RGB"), 2),
    "blueprint": lambda picture: ImageOps.colorize(_grey(picture), "navy", "white"),
    "embers": lambda picture: ImageOps.colorize(_grey(picture), "black", "gold", "crimson"),
}
PROMPTS = ("a {}{}", "photo of a {} on the beach{}")
IN_STYLE = " in the style of {}"
SUBJECTS, SEEDS, PICTURES = 5, 4, 5
FROM = 40
"""The first of the unseen subjects whose pictures styles are learned from."""
BAR = 0.9


def learn_style(base: bases.Base, registry: Registry, name: str) -> list[Image.Image]:
    """The pictures of a style, which the registry knows afterwards."""
    those = unseen(FROM + PICTURES)[FROM:]
    pictures = [STYLES[name](scene.photos(one, 1, 3000 + k)[0]) for k, one in enumerate(those)]
    try:
        read(registry, name)
    except UnknownConcept:
        folder = Path(registry.home) / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        for k, picture in enumerate(pictures):
            picture.save(folder / f"{k}.png")
        add.add(name, folder, kind="style", base=base, registry=registry)
    return pictures


def off_palette(pictures: Sequence[Image.Image], style: KDTree) -> float:
    """Mean distance of the colours of pictures to the nearest one of a style, from 0 to 255."""
    colours = np.concatenate([np.asarray(picture).reshape(-1, 3) for picture in pictures])
    return float(style.query(colours)[0].mean())


def score(
    base: bases.Base, judge: SubjectJudge, registry: Registry, one: Taught, name: str, seeds: int, steps: int
) -> dict[str, float]:
    """What is left of the style and of the subject when both are on the pipeline."""
    dice = list(range(seeds))
    palette = KDTree(
        np.concatenate([np.asarray(p).reshape(-1, 3) for p in learn_style(base, registry, name)])
    )

    def drawn(word: str, *attached: str) -> list[Image.Image]:
        words = IN_STYLE.format(name) if name in attached else ""
        return [
            picture
            for prompt in PROMPTS
            for picture in _drawn(base, registry, attached, prompt.format(word, words), dice, steps)
        ]

    noun, styled, alone = drawn(one.noun), drawn(one.noun, name), drawn(one.name, one.name)
    both = drawn(one.name, one.name, name)
    far = [off_palette(pictures, palette) for pictures in (noun, styled, both)]
    coloured = [STYLES[name](picture).convert("RGB") for picture in alone]
    like = [
        metrics.similarity(judge.embed(pictures), one.real) for pictures in (styled, alone, both, coloured)
    ]
    return {
        "style alone": far[0] - far[1],
        "style together": far[0] - far[2],
        "subject alone": like[1] - like[0],
        "subject together": like[2] - like[0],
        "subject coloured": like[3] - like[0],
    }


def _drawn(
    base: bases.Base,
    registry: Registry,
    attached: Sequence[str],
    prompt: str,
    seeds: Sequence[int],
    steps: int,
) -> list[Image.Image]:
    with attach(base.pipe, *attached, registry=registry) if attached else nullcontext():
        return draw(base, [prompt] * len(seeds), list(seeds), steps=steps)


def share(lines: Sequence[Mapping[str, float]], what: str, how: str) -> dict[str, Any]:
    """Kept of a subject or a style, and its interval over pairs of both."""
    together, alone = (np.array([line[f"{what} {each}"] for line in lines]) for each in (how, "alone"))
    return {"share": float(together.mean() / alone.mean()), "interval": interval(together, alone)}


@click.command()
@click.option("--subjects", default=SUBJECTS, show_default=True, help="Each in every style.")
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option("--steps", default=STEPS, show_default=True, help="Denoising steps.")
@click.option("--learning-steps", type=int, help="Training steps of each subject.  [default: the recipe's]")
@click.option("--home", default="build/taught", show_default=True, help="Keeps what was taught.")
def main(subjects: int, seeds: int, steps: int, learning_steps: int | None, home: str) -> None:
    use_own_cores()
    warnings.simplefilter("ignore")
    lines = []
    with Registry(Path(home)) as registry:
        base, judge = bases.load(), SubjectJudge()
        for k in track(range(subjects), "subjects"):
            one = teach(base, judge, registry, k, learning_steps)
            for name in STYLES:
                lines.append(score(base, judge, registry, one, name, seeds, steps))
                print(one.noun, name, lines[-1], flush=True)
    kept = {what: share(lines, what, "together") for what in ("style", "subject")}
    beside = {"subject, in the style's colours": share(lines, "subject", "coloured")}
    for what, line in (kept | beside).items():
        low, high = line["interval"]
        print(f"{what:34} {line['share']:.2f} [{low:.2f}, {high:.2f}]")
    finish(
        "compose_style",
        min(line["share"] for line in kept.values()),
        "smaller share that a style and a subject in it keep of the look of each alone",
        BAR,
        all(line["share"] >= BAR for line in kept.values()),
        f"0..{seeds - 1}",
        trial=shortfall(
            learning_steps,
            subjects=(subjects, SUBJECTS),
            seeds=(seeds, SEEDS),
            denoising_steps=(steps, STEPS),
        ),
        kept=kept,
        beside=beside,
        lines=lines,
    )


if __name__ == "__main__":
    main()
