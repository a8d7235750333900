"""SuDe from one photo: does the subject inherit what its class can do, and does it stay itself?"""

from __future__ import annotations

import tempfile
from typing import Any

import click
import numpy as np
from PIL import Image

from benchmarks.learn_common import Pupil, Studio, briefly, lacking, options
from benchmarks.report import finish, use_own_cores
from benchmarks.taught import interval, mean, unseen
from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import Concept
from conceptkit.learn import config, trainer
from conceptkit.learn.config import DEFAULT_CONFIGS
from conceptkit.learn.methods.table import adapter_of
from conceptkit.registry.store import Registry
from conceptkit.storybook.world import scene

METHODS = ("dreambooth", "custom-diffusion", "custom")
FIDELITY = 0.98
"""Likeness to the subject with SuDe, as a share of that without."""
ARMS = ("sude", "without", "prompts alone")


def states(noun: str) -> tuple[str, ...]:
    """What a thing of this class can do or be, besides resting."""
    return scene.CLASSES[noun].states


def told(arm: str, pupil: Pupil) -> list[str]:
    """The prompts of an arm; "prompts alone" says the class once more, as a clause of its own."""
    if arm == "prompts alone":
        return [f"photo of a {pupil.name}, a {pupil.noun} {state}" for state in states(pupil.noun)]
    return [f"photo of a {pupil.name} {state}" for state in states(pupil.noun)]


def aligned(studio: Studio, noun: str, pictures: list[Image.Image]) -> float:
    """Share of pictures, of the states in turn, in which the judge sees that state before all others."""
    wanted = [state for state in states(noun) for _ in studio.seeds]
    seen = studio.what.best(studio.what.logits(pictures), f"state:{noun}")
    return float(np.mean([state == found for state, found in zip(wanted, seen, strict=True)]))


def score(studio: Studio, pupil: Pupil, concepts: dict[str, Concept]) -> dict[str, float]:
    """Alignment of each arm, of the class itself, and likeness with SuDe and without."""
    line = {arm: aligned(studio, pupil.noun, studio.draw(told(arm, pupil), concepts[arm])) for arm in ARMS}
    plain = [f"photo of a {pupil.noun} {state}" for state in states(pupil.noun)]
    line["class"] = aligned(studio, pupil.noun, studio.draw(plain))
    for arm in ("sude", "without"):
        line[f"likeness {arm}"] = studio.likeness(studio.in_places(pupil.name, concepts[arm]), pupil.real)
        line[f"gap {arm}"] = pupil.gap(line[f"likeness {arm}"])
    return line


def summary(lines: list[dict[str, float]]) -> dict[str, Any]:
    """Means over subjects, and with intervals what SuDe gains and what it costs."""
    columns = {key: np.array([line[key] for line in lines]) for key in lines[0]}
    figures: dict[str, Any] = {key: mean(column) for key, column in columns.items()}
    for arm in ARMS[1:]:
        gained = columns["sude"] - columns[arm]
        figures[f"gained over {arm}"] = float(gained.mean())
        figures[f"gained over {arm}, interval"] = interval(gained)
    kept, of = columns["likeness sude"], columns["likeness without"]
    both = np.isfinite(kept) & np.isfinite(of)
    figures["fidelity"] = float(kept[both].mean() / of[both].mean()) if both.any() else float("nan")
    figures["fidelity, interval"] = interval(kept[both], of[both]) if both.any() else None
    return figures


def misses(figures: dict[str, Any]) -> list[str]:
    """What SuDe does not keep of its promise: a gain beyond chance over both other arms, and fidelity."""
    reached = {f"gain over {arm}": figures[f"gained over {arm}, interval"][0] > 0 for arm in ARMS[1:]}
    reached["fidelity"] = figures["fidelity"] >= FIDELITY
    return [name for name, yes in reached.items() if not yes]


@click.command()
@options(METHODS)
def main(count: int, seeds: int, steps: int | None, methods: str, drawing: int) -> None:
    use_own_cores()
    wanted = methods.split(",")
    if unknown := [name for name in wanted if name not in DEFAULT_CONFIGS]:
        raise click.BadParameter(f"there is no method {unknown[0]}; choose of {', '.join(DEFAULT_CONFIGS)}")
    studio = Studio(bases.load(), seeds, drawing)
    pupils = [studio.pupil(f"thing{k}", subject, k, shown=1) for k, subject in enumerate(unseen(count))]
    table: dict[str, dict[str, Any]] = {}
    with Registry(tempfile.mkdtemp()) as registry:
        for method in wanted:
            plain = config.config_for(method, steps)
            weights = {"sude": adapter_of(plain).sude_weight, "without": 0.0}
            lines = []
            for pupil in pupils:
                concepts = {
                    arm: trainer.learn(
                        studio.base,
                        pupil.shown,
                        pupil.name,
                        pupil.noun,
                        config.config_for(method, steps, changes={"sude_weight": weight}),
                        registry=registry,
                    )
                    for arm, weight in weights.items()
                }
                lines.append(score(studio, pupil, {**concepts, "prompts alone": concepts["without"]}))
                print(f"{method}, {pupil.noun}: {briefly(lines[-1])}", flush=True)
            table[method] = summary(lines)
            print(f"{method}:", table[method], flush=True)
    missed = {row: found for row, line in table.items() if (found := misses(line))}
    finish(
        "learn_sude",
        table,
        "share of action and state prompts that pictures follow, from one photo",
        {"gain": "above 0 with 95 % confidence", "fidelity": FIDELITY},
        not missed,
        f"0..{seeds - 1}",
        trial=lacking(steps, count, seeds, drawing),
        missed=missed,
        subjects=count,
    )


if __name__ == "__main__":
    main()
