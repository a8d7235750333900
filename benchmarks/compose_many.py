"""How concepts fare as more of them are merged, by every way; what becomes of prompts without any."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import track

from benchmarks.pictures import draw
from benchmarks.report import finish, shortfall, use_own_cores
from benchmarks.storybook_base import prompt as prompt_of
from benchmarks.storybook_base import scenes, score
from benchmarks.taught import Taught, teach
from conceptkit.base import pipeline as bases
from conceptkit.errors import ConceptError
from conceptkit.evaluate import metrics, scorers
from conceptkit.inference.attach import attach
from conceptkit.inference.generate import STEPS
from conceptkit.merging.request import MERGE_METHOD
from conceptkit.pictures.charts import curves
from conceptkit.registry.store import Registry

COUNTS = (1, 2, 5, 10, 20, 50)
PROMPTS = ("photo of a {}", "photo of a {} on the beach")
WAYS = ("regmean", "closed-form", "routed", "sum", "linear", "svd", "ties")
PROBED = 4
"""Concepts that are drawn at every number merged: always the first ones, in several merges of a few."""
SEEDS, PLAIN = 4, 60
BAR = 0.01
"""Accuracy of class or place that the base may lose on prompts without any concept, over all merges."""


def fidelity(
    base: bases.Base,
    judge: scorers.SubjectJudge,
    probes: list[Taught],
    bounds: list[tuple[float, float]],
    seeds: int,
    steps: int,
) -> list[float]:
    """Share of the gap between class noun and photos that each probe closes, with what is attached."""
    gaps = []
    for one, (floor, ceiling) in zip(probes, bounds, strict=True):
        drawn = [
            p
            for text in PROMPTS
            for p in draw(base, [text.format(one.name)] * seeds, range(seeds), steps=steps)
        ]
        gaps.append(metrics.gap(metrics.similarity(judge.embed(drawn), one.real), floor, ceiling))
    return gaps


def groups(taught: Sequence[Taught], count: int) -> list[list[str]]:
    """Merges of so many concepts in which every probe is once."""
    whole = max(count, PROBED)
    return [[one.name for one in taught[k : k + count]] for k in range(0, whole, count)]


def accuracy(base: bases.Base, judge: scorers.AttributeJudge, count: int, steps: int) -> dict[str, float]:
    """Class and place on prompts that name no concept."""
    told = scenes(count, False)
    drawn = draw(base, [prompt_of(scene) for scene in told], range(len(told)), steps=steps)
    found = score(judge, told, drawn)
    return {name: found[name] for name in ("class", "place") if name in found}


def lost_most(merges: Sequence[dict[str, float]]) -> float:
    """The most that an attribute loses in the mean over merges; the prompts of one alone are too few."""
    names = merges[0] if merges else ()
    return max((float(np.mean([lost[name] for lost in merges])) for name in names), default=float("nan"))


@click.command()
@click.option("--most", default=50, show_default=True, help="Concepts to teach.")
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option("--plain", default=PLAIN, show_default=True, help="Prompts without a concept.")
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), help="Only these.")
@click.option("--steps", default=STEPS, show_default=True, help="Denoising steps.")
@click.option("--learning-steps", type=int, help="Training steps of each subject.  [default: the recipe's]")
@click.option("--home", default="build/taught", show_default=True, help="Keeps what was taught.")
@click.option("--plot", default="build/compose_many.png", show_default=True, help="Where the curves go.")
def main(
    most: int,
    seeds: int,
    plain: int,
    ways: tuple[str, ...],
    steps: int,
    learning_steps: int | None,
    home: str,
    plot: str,
) -> None:
    use_own_cores()
    warnings.simplefilter("ignore")
    base, judge, what = bases.load(), scorers.SubjectJudge(), scorers.AttributeJudge()
    lines: dict[str, list[dict[str, Any]]] = {way: [] for way in ways or WAYS}
    with Registry(Path(home)) as registry:
        taught = [
            teach(base, judge, registry, number, learning_steps) for number in track(range(most), "teaching")
        ]
        probes = taught[:PROBED]
        bounds = []
        for one in probes:
            usual = [
                p
                for text in PROMPTS
                for p in draw(base, [text.format(one.noun)] * seeds, range(seeds), steps=steps)
            ]
            best = judge.embed(scorers.round_trips(base.pipe.vae, one.shots[5:]))
            bounds.append(
                (metrics.similarity(judge.embed(usual), one.real), metrics.similarity(best, one.real))
            )
        bare = accuracy(base, what, plain, steps)
        for way in lines:
            for count in [c for c in COUNTS if c <= most]:
                close: list[float] = []
                reports = []
                try:
                    for k, names in enumerate(groups(taught, count)):
                        few = slice(k * count, min(PROBED, (k + 1) * count))
                        with attach(base.pipe, *names, registry=registry, merge_method=way) as attachment:
                            close += fidelity(base, judge, probes[few], bounds[few], seeds, steps)
                            if not reports:
                                right = accuracy(base, what, plain, steps)
                            reports.append(attachment.report)
                except ConceptError as error:
                    print(f"{way} {count}: {error}")
                    break
                report = reports[0]
                lines[way].append(
                    {
                        "count": count,
                        "gap": float(np.mean(close)),
                        "s/d": report.rows / report.width if report else None,
                        "problem": report.problem if report else None,
                        "words": float(np.mean([kept.words or 0 for kept in report.kept])) if report else 1.0,
                        "captions": report.captions if report else None,
                        "lost": {name: bare[name] - value for name, value in right.items()},
                    }
                )
                print(way, lines[way][-1], flush=True)
    curves(
        "How well concepts fare in a merge of many",
        "concepts merged",
        "share of the gap between class noun and photos",
        {way: [(line["count"], line["gap"]) for line in told_lines] for way, told_lines in lines.items()},
    ).save(_folder(plot))
    ours = lines.get(MERGE_METHOD) or next(iter(lines.values()))
    lost = lost_most([line["lost"] for line in ours])
    trial = shortfall(
        learning_steps,
        concepts=(max((line["count"] for line in lines.get(MERGE_METHOD, [])), default=0), max(COUNTS)),
        seeds=(seeds, SEEDS),
        plain_prompts=(plain, PLAIN),
        denoising_steps=(steps, STEPS),
    )
    finish(
        "compose_many",
        lost,
        "accuracy of class or place lost on prompts without a concept, by default, mean over merges",
        BAR,
        lost <= BAR,
        f"0..{seeds - 1}",
        trial=trial,
        base=bare,
        by_way=lines,
        plot=plot,
    )


def _folder(file: str) -> Path:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    return Path(file)


if __name__ == "__main__":
    main()
