"""Rates that carry over: the default method by one row with no tuned number, on bases of several kinds.

On the storybook, which the default's own rates were tuned on; on a copy of it whose weights are rescaled
without changing what it draws, so that a rate means something else there; and on whatever other bases are
named. Both rows learn the same unseen subjects in as many steps; the gap is that of `learn_methods`. With
`--keep FILE.json` a run that was stopped, or one of fewer subjects, is gone on with.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

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
from conceptkit.storybook.world.subject import Subject

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


@dataclass
class Kept:
    """Gaps measured before, by all that they depend on, in a file; without one they are forgotten."""

    file: Path | None = None
    gaps: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._read()

    def _read(self) -> None:
        """What runs beside this one have measured, too."""
        if self.file is not None and self.file.is_file():
            self.gaps |= json.loads(self.file.read_text())

    def get(self, what: str, depends_on: object, measure: Callable[[], float]) -> float:
        """The gap called `what`, measured now where it was not yet, or where it depended on other things."""
        written = json.dumps(depends_on, sort_keys=True, default=str)
        key = f"{what}, {hashlib.sha256(written.encode()).hexdigest()[:16]}"
        if key not in self.gaps:
            begun = time.monotonic()
            self.gaps[key] = measure()
            print(f"{what}: gap {self.gaps[key]:.3f} in {time.monotonic() - begun:.0f} s", flush=True)
            self._read()
            if self.file is not None:
                self.file.write_text(json.dumps(self.gaps, indent=1))
        return self.gaps[key]


@dataclass(eq=False)
class Learner:
    """An unseen subject on a base, which is drawn and learned only when a gap has to be measured."""

    base_name: str
    studio: Studio
    number: int
    subject: Subject
    registry: Registry

    @cached_property
    def pupil(self) -> Pupil:
        """With pictures of its class."""
        caption_statistics.statistics_of(self.studio.base, self.registry)
        return self.studio.pupil(f"thing{self.number}", self.subject, self.number)

    def gap(self, row: str, recipe: TrainConfig, kept: Kept) -> float:
        """The gap that a row closes."""
        studio = self.studio
        asked = [studio.base.fingerprint, self.number, len(studio.seeds), studio.steps, recipe.to_json()]
        what = f"{self.base_name}, {self.subject.noun}, {row}"
        return kept.get(what, asked, lambda: gap(studio, self.pupil, recipe, self.registry))


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
@click.option("--keep", type=click.Path(dir_okay=False, path_type=Path), help="JSON of gaps measured before.")
def main(bases: str, count: int, seeds: int, steps: int | None, drawing: int, keep: Path | None) -> None:
    use_own_cores()
    found: dict[str, dict[str, list[float]]] = {}
    kept = Kept(keep)
    with Registry(tempfile.mkdtemp()) as registry:
        for name in bases.split(","):
            studio = Studio(base_of(name), seeds, drawing)
            chosen = rows(steps)
            if name == RESCALED:
                del chosen["tuned"]  # its rates mean nothing there: the storybook's gap is what counts
            table = found.setdefault(name, {row: [] for row in chosen})
            for k, subject in enumerate(unseen(count)):
                learner = Learner(name, studio, k, subject, registry)
                for row, recipe in chosen.items():
                    table[row].append(learner.gap(row, recipe, kept))
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
        gaps=found,
    )


if __name__ == "__main__":
    main()
