"""Rates that carry over: the default method by one row with no tuned number, on bases of several kinds.

On the storybook, which the default's own rates were tuned on; on a copy of it whose weights are rescaled
without changing what it draws, so that a rate means something else there; and on whatever other bases are
named. Both rows learn the same unseen subjects in as many steps; the gap is that of `learn_methods`.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace

import click
import numpy as np
import torch

from benchmarks.learn_common import SEEDS, Pupil, Studio
from benchmarks.report import finish, shortfall, use_own_cores
from benchmarks.taught import unseen
from conceptkit.base import pipeline
from conceptkit.base.families import STORYBOOK
from conceptkit.features import caption_statistics
from conceptkit.inference.generate import STEPS
from conceptkit.learn import recipes
from conceptkit.learn.config import TrainConfig, config_for
from conceptkit.learn.trainer import learn
from conceptkit.registry.store import Registry

RESCALED = "storybook-rescaled"
SUBJECTS = 5
BAR = 0.1
"""How much less of the gap than the tuned row the carried one may close, as a share."""


@torch.no_grad()
def rescaled(base: pipeline.Base, values: float = 4.0, queries: float = 3.0) -> pipeline.Base:
    """A copy of a base that draws the same from other weights.

    In every attention values are `values` times larger and what reads them as much smaller, queries
    `queries` times larger and keys as much smaller.
    """
    unet = copy.deepcopy(base.unet)
    for module in unet.modules():
        if not all(hasattr(module, name) for name in ("to_q", "to_k", "to_v", "to_out")):
            continue
        for name, by in (("to_q", queries), ("to_k", 1 / queries), ("to_v", values)):
            for parameter in getattr(module, name).parameters():
                parameter.mul_(by)
        module.to_out[0].weight.div_(values)
    pipe = type(base.pipe)(**{**base.pipe.components, "unet": unet}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return replace(pipeline.of(pipe, base.name), family=base.family)


def base_of(name: str) -> pipeline.Base:
    """A base by its name, or the rescaled storybook."""
    return rescaled(pipeline.load()) if name == RESCALED else pipeline.load(name)


def rows(steps: int | None) -> dict[str, TrainConfig]:
    """The tuned recipe, and the one for bases that nothing was tuned on, in the same steps and batches."""
    tuned = config_for(steps=steps, family=STORYBOOK)
    names = ("token_train_steps", "max_train_steps", "train_batch_size", "gated_lora_rank")
    carried = config_for(family=recipes.USUAL, changes={name: getattr(tuned, name) for name in names})
    return {"tuned": tuned, "carried": carried}


def gap(studio: Studio, pupil: Pupil, recipe: TrainConfig, registry: Registry) -> float:
    """What of the way from the class to the subject a learned concept's pictures go."""
    concept = learn(studio.base, pupil.shown, pupil.name, pupil.noun, recipe, registry=registry)
    return pupil.gap(studio.likeness(studio.in_places(pupil.name, concept), pupil.real))


def shares_of(means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The carried row's gap by base, as a share of the tuned one's: the storybook's where a copy has none."""
    tuned = means[STORYBOOK]["tuned"] if STORYBOOK in means else float("nan")
    return {
        name: line["carried"] / (tuned if name == RESCALED else line["tuned"]) for name, line in means.items()
    }


@click.command()
@click.option("--bases", default=f"{STORYBOOK},{RESCALED}", show_default=True, help="Names, with commas.")
@click.option("--subjects", "count", default=SUBJECTS, show_default=True, help="Unseen subjects.")
@click.option("--seeds", default=SEEDS, show_default=True, help="Pictures of each prompt.")
@click.option("--steps", type=int, help="Learning steps, to try the program itself.")
@click.option("--drawing", default=STEPS, show_default=True, help="Denoising steps of a picture.")
def main(bases: str, count: int, seeds: int, steps: int | None, drawing: int) -> None:
    use_own_cores()
    found: dict[str, dict[str, list[float]]] = {}
    with Registry(tempfile.mkdtemp()) as registry:
        for name in bases.split(","):
            studio = Studio(base_of(name), seeds, drawing)
            caption_statistics.statistics_of(studio.base, registry)
            table = found.setdefault(name, {row: [] for row in rows(steps)})
            for k, subject in enumerate(unseen(count)):
                pupil = studio.pupil(f"thing{k}", subject, k)
                for row, recipe in rows(steps).items():
                    begun = time.monotonic()
                    table[row].append(gap(studio, pupil, recipe, registry))
                    line = f"{name}, {subject.noun}, {row}: gap {table[row][-1]:.3f}"
                    print(f"{line} in {time.monotonic() - begun:.0f} s", flush=True)
    means = {
        base: {row: float(np.mean(gaps)) for row, gaps in table.items()} for base, table in found.items()
    }
    shares = shares_of(means)
    finish(
        "carry_over",
        min(shares.values()),
        "gap of the carried row as a share of the tuned one's, of the base where it is least",
        1 - BAR,
        min(shares.values()) >= 1 - BAR,
        seeds,
        trial=shortfall(
            steps, subjects=(count, SUBJECTS), seeds=(seeds, SEEDS), denoising_steps=(drawing, STEPS)
        ),
        subjects=count,
        means=means,
        shares=shares,
    )


if __name__ == "__main__":
    main()
