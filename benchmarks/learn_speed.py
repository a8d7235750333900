"""This loop beside a plain one, on one base in one run.

Seconds per step and what they go to, seconds to the same likeness to the subject, and peak memory.
"""

from __future__ import annotations

import contextlib
import copy
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.learn_common import Pupil, Studio, lacking, options
from benchmarks.pictures import draw
from benchmarks.plain_loop import METHODS, OPTIMISER, UNET, Clock, Plain, recipe_of
from benchmarks.report import finish, use_own_cores
from benchmarks.taught import mean, unseen
from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import Concept
from conceptkit.data.photos import PhotoSet
from conceptkit.features import caption_statistics
from conceptkit.learn import prior_preservation
from conceptkit.learn.config import TrainConfig
from conceptkit.learn.request import TrainRequest
from conceptkit.learn.session import Session
from conceptkit.learn.subject import Subject
from conceptkit.learn.trainer import train
from conceptkit.registry.store import Registry

SUBJECTS = 3
BAR = 0.5
"""Most of the plain loop's time that ours may take to the same likeness."""
SHARES = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 1.0)
"""Of the recipe's steps, at which likeness is measured."""
PREPARED = "prepared once"
MEMORY_STEPS = 4


def budgets(steps: int, shares: Sequence[float]) -> list[int]:
    return sorted({max(1, round(share * steps)) for share in shares})


def class_pictures(base: bases.Base, recipe: TrainConfig, noun: str) -> list[Image.Image]:
    """What both loops hold on to; drawn beforehand, for both alike."""
    prompts = [f"photo of a {noun}"] * recipe.num_class_images
    steps, guidance = recipe.class_image_steps, recipe.class_image_guidance_scale
    return draw(base, prompts, range(len(prompts)), steps=steps, guidance=guidance)


def ours(
    base: bases.Base, pupil: Pupil, recipe: TrainConfig, beside: Sequence[Image.Image], registry: Registry
) -> tuple[Concept, float, list[float]]:
    """The concept, seconds of the whole run, and seconds of each step but the first."""
    shown = PhotoSet(tuple(beside), tuple(map(str, range(len(beside)))), "class")
    given = {pupil.noun: prior_preservation.of_photos(base, shown, pupil.noun)} if beside else {}
    clock, ends = Clock(base.device), []

    def tick(done: int, total: int, text: str) -> None:
        if text == "learning the delta":
            ends.append(clock.now())

    subject = Subject(pupil.name, pupil.noun, pupil.shown)
    begun = clock.now()
    request = TrainRequest((subject,), recipe)
    made = train(request, Session(base, registry, tick), class_images=given)
    return made.whole, clock.now() - begun, [float(s) for s in np.diff(ends)]


def plain(
    studio: Studio, pupil: Pupil, recipe: TrainConfig, beside: Sequence[Image.Image], stops: Sequence[int]
) -> tuple[list[tuple[float, float]], dict[str, float]]:
    """(seconds, gap closed) at the stops, and seconds per step by cause."""
    loop = Plain(studio.base, pupil.shown.pictures, beside, pupil.noun, recipe)
    drawer = copy.copy(studio)
    drawer.base = loop.base
    curve, seconds = [], 0.0
    for step in range(1, max(stops) + 1):
        begun = loop.clock.now()
        loop.step()
        seconds += loop.clock.now() - begun
        if step in stops:
            likeness = drawer.likeness(drawer.in_places(loop.word), pupil.real)
            curve.append((seconds, pupil.gap(likeness)))
    return curve, {cause: spent / max(stops) for cause, spent in loop.clock.spent.items()}


def reached(curve: Sequence[tuple[float, float]], wanted: float) -> float | None:
    """Seconds until a gap is closed so far, straight between the points; None when it never is.

    The curve begins at (0, 0): before anything is learned a subject looks like its class.
    """
    for (begun, low), (ended, high) in pairwise([(0.0, 0.0), *curve]):
        if high >= wanted:
            share = 1.0 if high <= low else max(0.0, (wanted - low) / (high - low))
            return begun + share * (ended - begun)
    return None


def causes(by_cause: dict[str, float], per_step: float, whole: float, steps: int) -> dict[str, float]:
    """Where the plain loop's seconds per step go that ours does not spend; they add up to the difference.

    What ours prepares once is shared out among the steps, and counts against it.
    """
    found = {cause: spent for cause, spent in by_cause.items() if cause not in (UNET, OPTIMISER)}
    found["UNet and optimiser"] = by_cause[UNET] + by_cause[OPTIMISER] - per_step
    found[PREPARED] = -(whole - per_step * steps) / steps
    return found


def memory(method: str, loop: str, drawing: int) -> float | None:
    """GB that a few steps of a loop add to a process of their own, at most."""
    words = ["--methods", method, "--only", loop, "--steps", MEMORY_STEPS, "--drawing", drawing]
    command = [sys.executable, "-m", "benchmarks.learn_speed", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        print(f"{method}, {loop}: memory could not be measured: {result.stderr.strip()[-300:]}")
        return None
    return float(json.loads(result.stdout.splitlines()[-1])["value"])


def alone(studio: Studio, pupil: Pupil, recipe: TrainConfig, loop: str, registry: Registry) -> float:
    """GB that one loop adds to what this process has held so far."""
    device = studio.base.device
    beside = class_pictures(
        studio.base, replace(recipe, num_class_images=recipe.prior_batch_size), pupil.noun
    )
    forget_peak(device)
    before = peak_gb(device)
    if loop == "ours":
        ours(studio.base, pupil, recipe, beside, registry)
    else:
        run = Plain(studio.base, pupil.shown.pictures, beside, pupil.noun, recipe, alone=True)
        for _ in range(recipe.max_train_steps):
            run.step()
    return peak_gb(device) - before


def forget_peak(device: torch.device) -> None:
    """From now on the peak is counted anew, where the system can do that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_gb(device: torch.device) -> float:
    """The most that this process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    told = Path("/proc/self/status")
    if told.is_file():
        line = next(line for line in told.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def compare(
    studio: Studio, pupils: Sequence[Pupil], recipe: TrainConfig, method: str, registry: Registry
) -> dict[str, Any]:
    """One row: both loops' curves, their seconds per step, and the causes of the difference."""
    stops = budgets(recipe.max_train_steps, SHARES)
    theirs, mine, rows = [], [], []
    for pupil in pupils:
        beside = class_pictures(studio.base, recipe, pupil.noun)
        curve, by_cause = plain(studio, pupil, recipe, beside, stops)
        theirs.append(curve)
        points = []
        for steps in stops:
            concept, whole, each = ours(
                studio.base, pupil, replace(recipe, max_train_steps=steps), beside, registry
            )
            likeness = studio.likeness(studio.in_places(pupil.name, concept), pupil.real)
            points.append((whole, pupil.gap(likeness)))
        mine.append(points)
        per_step = float(np.median(each)) if each else whole / stops[-1]
        rows.append((sum(by_cause.values()), per_step, causes(by_cause, per_step, whole, stops[-1])))
    by_cause = {cause: float(np.mean([row[2][cause] for row in rows])) for cause in rows[0][2]}
    return side_by_side("plain", theirs, mine, [row[:2] for row in rows]) | {"saved_per_step": by_cause}


def side_by_side(
    other: str,
    theirs: Sequence[Sequence[tuple[float, float]]],
    mine: Sequence[Sequence[tuple[float, float]]],
    per_steps: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """Means over subjects: seconds per step (theirs, ours), both curves, and seconds to where theirs ends."""
    curves = [
        [(mean(seconds), mean(gaps)) for seconds, gaps in np.array(found).transpose(1, 2, 0)]
        for found in (theirs, mine)
    ]
    wanted = curves[0][-1][1]
    times = [reached(curve, wanted) for curve in curves]
    per_step = [float(np.mean([pair[k] for pair in per_steps])) for k in (0, 1)]
    return {
        "seconds_per_step": {other: per_step[0], "ours": per_step[1], "ratio": per_step[1] / per_step[0]},
        "seconds_to_gap": {"gap": wanted, other: times[0], "ours": times[1]},
        "ratio": times[1] / times[0] if all(times) else None,
        "curves": {other: curves[0], "ours": curves[1]},
    }


def conclude(
    name: str, unit: str, table: dict[str, dict[str, Any]], subjects: int, seeds: int, trial: str
) -> None:
    """The last line: the ratios of time, which hold where all of them are within the bar."""
    ratios = {method: line["ratio"] for method, line in table.items()}
    holds = all(ratio is not None and ratio <= BAR for ratio in ratios.values())
    finish(name, ratios, unit, BAR, holds, f"0..{seeds - 1}", trial=trial, by_method=table, subjects=subjects)


@click.command()
@options(METHODS, full=SUBJECTS)
@click.option("--only", type=click.Choice(["ours", "plain"]), help="Measure one loop's memory, nothing else.")
def main(count: int, seeds: int, steps: int | None, methods: str, drawing: int, only: str | None) -> None:
    use_own_cores()
    wanted = methods.split(",")
    if unknown := [name for name in wanted if name not in METHODS]:
        raise click.BadParameter(f"there is no plain loop of {unknown[0]}; choose of {', '.join(METHODS)}")
    studio = Studio(bases.load(), 1 if only else seeds, drawing)
    told = unseen(1 if only else count)
    pupils = [studio.pupil(f"thing{k}", subject, k) for k, subject in enumerate(told)]
    table: dict[str, dict[str, Any]] = {}
    with Registry(tempfile.mkdtemp()) as registry:
        caption_statistics.statistics_of(studio.base, registry)  # once for each base, and kept
        for method in wanted:
            recipe = recipe_of(method, steps)
            if only:
                added = alone(studio, pupils[0], recipe, only, registry)
                finish("learn_speed", added, f"GB added by {only}", None, None, 0, method=method)
                return
            table[method] = compare(studio, pupils, recipe, method, registry)
            table[method]["peak_gb"] = {loop: memory(method, loop, drawing) for loop in ("plain", "ours")}
            print(f"{method}:", table[method], flush=True)
    conclude(
        "learn_speed",
        "time to the plain loop's likeness to the subject, as a share of the plain loop's",
        table,
        count,
        seeds,
        lacking(steps, count, seeds, drawing, full=SUBJECTS),
    )


if __name__ == "__main__":
    main()
