"""What a picture of two concepts costs beside one drawn without a layout: times of whole calls, in pairs.

Of each seed a picture is drawn by every way in turn, so that they meet the same machine: everywhere in the
frame, then by a new layout, then by the same layout kept; in the frame itself and with parts at full size.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import track

from benchmarks.pictures import draw
from benchmarks.report import finish, shortfall, use_own_cores
from benchmarks.taught import teach
from conceptkit.base import pipeline as bases
from conceptkit.evaluate.scorers import SubjectJudge
from conceptkit.inference.attach import attach
from conceptkit.inference.generate import STEPS
from conceptkit.registry.store import Registry

PROMPT = "photo of a {} next to a {} on the beach"
PAIR = (0, 19)
"""A dog and a robot."""
WAYS: Mapping[str, Mapping[str, Any]] = {"in the frame": {"detail": False}, "at full size": {"detail": True}}
SEEDS = 8
BAR = 1.5


def seconds(action: Callable[[], object]) -> float:
    """Of one call."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def times(base: bases.Base, registry: Registry, names: tuple[str, str], seeds: range) -> dict[str, float]:
    """Seconds of a call that draws the pictures of some seeds, by each way."""

    def drawing() -> None:
        draw(base, [PROMPT.format(*names)] * len(seeds), list(seeds), steps=STEPS)

    found = {}
    with attach(base.pipe, *names, registry=registry, confine=False):
        found["everywhere"] = seconds(drawing)
    for way, options in WAYS.items():
        with attach(base.pipe, *names, registry=registry, confine=True, **options):
            for layout in ("new", "kept"):
                found[f"{way}, {layout} layout"] = seconds(drawing)
    return found


@click.command()
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option("--pictures", default=1, show_default=True, help="In one call.")
@click.option("--learning-steps", type=int, help="Training steps of each subject.  [default: the recipe's]")
@click.option("--home", default="build/taught", show_default=True, help="Keeps what was taught.")
def main(seeds: int, pictures: int, learning_steps: int | None, home: str) -> None:
    use_own_cores()
    warnings.simplefilter("ignore")
    with Registry(Path(home)) as registry:
        base, judge = bases.load(), SubjectJudge()
        a, b = (teach(base, judge, registry, number, learning_steps).name for number in PAIR)
        unseen = range(seeds * pictures, (seeds + 1) * pictures)
        times(base, registry, (a, b), unseen)  # what is made once is made now, and no layout of these seeds
        drawn = [
            times(base, registry, (a, b), range(first, first + pictures))
            for first in track(range(0, seeds * pictures, pictures), "seeds")
        ]
    ratios = {way: [each[way] / each["everywhere"] for each in drawn] for way in drawn[0]}
    for way, found in ratios.items():
        print(f"{way:26} {np.median(found):.2f} times [{min(found):.2f}, {max(found):.2f}]")
    medians = {way: float(np.median(found)) for way, found in ratios.items()}
    value = medians["at full size, new layout"]
    finish(
        "compose_cost",
        value,
        "times as long as a picture without a layout, two concepts at full size, a new layout",
        BAR,
        value <= BAR,
        f"0..{seeds * pictures - 1}",
        trial=shortfall(seeds=(seeds, SEEDS)),
        pictures=pictures,
        times=medians,
        seconds={way: float(np.median([each[way] for each in drawn])) for way in drawn[0]},
    )


if __name__ == "__main__":
    main()
