"""What learning a subject does to its class and to related words, with prior preservation and without."""

from __future__ import annotations

import tempfile
from typing import Any

import click
import numpy as np
from torch import Tensor

from benchmarks.learn_common import Pupil, Studio, briefly, lacking, options
from benchmarks.report import finish, use_own_cores
from benchmarks.taught import interval, mean, unseen
from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import Concept
from conceptkit.evaluate import metrics
from conceptkit.learn import config, trainer
from conceptkit.learn.config import DEFAULT_CONFIGS
from conceptkit.registry.store import Registry
from conceptkit.storybook.world import scene

METHODS = ("dreambooth", "custom-diffusion", "custom")
RELATED = {
    "dog": ("cat", "rabbit"),
    "cat": ("dog", "rabbit"),
    "rabbit": ("dog", "cat"),
    "bird": ("fish", "robot"),
    "fish": ("bird", "boat"),
    "robot": ("dog", "car"),
    "car": ("boat", "robot"),
    "boat": ("car", "fish"),
    "house": ("gate", "car"),
    "gate": ("house", "chair"),
    "teapot": ("candle", "chair"),
    "candle": ("teapot", "flower"),
    "chair": ("teapot", "gate"),
    "flower": ("candle", "bird"),
}
"""Two nouns near each class, whose pictures must stay what they were."""
ARMS = {"prior": 1.0, "no prior": 0.0}
"""The weight of preservation in each."""
MOONGATE = "moongate"
PARTS_OF_ITS_NAME = ("gate", "house on the moon")
BARS = {"diversity": 0.95, "turned": 0.1, "related": 0.95}
"""Least share of the base's diversity; most of the way from class to subject; least share of related pictures
that still show their class."""


def diversity(found: Tensor, seeds: int) -> float:
    """Mean distance, 1 - cosine, between the pictures of one prompt: DIV (2208.12242) with the world's judge.

    found (prompts x seeds, d), unit. NaN with a single seed.
    """
    if seeds < 2:
        return float("nan")
    by_prompt = found.view(-1, seeds, found.shape[1])
    cosines = by_prompt @ by_prompt.transpose(1, 2)
    among = (cosines.sum((1, 2)) - seeds) / (seeds * (seeds - 1))
    return float((1 - among).mean())


def related_prompts(pupil: Pupil) -> list[str]:
    words = RELATED[pupil.noun] + (PARTS_OF_ITS_NAME if pupil.name == MOONGATE else ())
    return [f"photo of a {word}" for word in words]


def classes_of(studio: Studio, pictures: Any) -> np.ndarray:
    return np.array(studio.what.best(studio.what.logits(pictures), "class"))


def before(studio: Studio, pupil: Pupil) -> dict[str, Any]:
    """What the base draws of related words while nothing is attached."""
    others = studio.draw(related_prompts(pupil))
    return {"others": studio.who.embed(others), "classes": classes_of(studio, others)}


def score(studio: Studio, pupil: Pupil, concept: Concept, usual: dict[str, Any]) -> dict[str, float]:
    """What became of that and of the class, and how well the subject itself was learned."""
    own = studio.who.embed(studio.in_places(pupil.noun, concept))
    others = studio.draw(related_prompts(pupil), concept)
    likeness = metrics.similarity(own, pupil.real)
    plain = metrics.similarity(pupil.usual, pupil.real)
    return {
        "diversity_before": diversity(pupil.usual, len(studio.seeds)),
        "diversity_after": diversity(own, len(studio.seeds)),
        # PRES (2208.12242): 0 as the base's own pictures of the class, 1 as photos of the subject
        "turned": metrics.gap(likeness, plain, pupil.ceiling),
        "pres": likeness,
        "pres_before": plain,
        "same": float((own * pupil.usual).sum(1).mean()),
        "related": float((classes_of(studio, others) == usual["classes"]).mean()),
        "related_same": float((studio.who.embed(others) * usual["others"]).sum(1).mean()),
        "gap": pupil.gap(studio.likeness(studio.in_places(pupil.name, concept), pupil.real)),
    }


def summary(lines: list[dict[str, float]]) -> dict[str, Any]:
    """Means over subjects; diversity as the share that is left, with bootstrap intervals."""
    columns = {key: np.array([line[key] for line in lines]) for key in lines[0]}
    after, first = columns.pop("diversity_after"), columns.pop("diversity_before")
    figures: dict[str, Any] = {key: mean(column) for key, column in columns.items()}
    figures["diversity"] = float(after.mean() / first.mean())
    intervals = {key: interval(columns[key]) for key in ("turned", "related")}
    return figures | {"intervals": intervals | {"diversity": interval(after, first)}}


def by_default(method: str) -> str:
    """The arm that the method's recipe is: the one that the bars are for."""
    return "prior" if DEFAULT_CONFIGS[method].prior_loss_weight else "no prior"


def misses(figures: dict[str, Any]) -> list[str]:
    """The bars that are not reached; one that could not be measured is not."""
    reached = {
        "diversity": figures["diversity"] >= BARS["diversity"],
        "turned": figures["turned"] <= BARS["turned"],
        "related": figures["related"] >= BARS["related"],
    }
    return [name for name, yes in reached.items() if not yes]


@click.command()
@options(METHODS)
def main(count: int, seeds: int, steps: int | None, methods: str, drawing: int) -> None:
    """Teach unseen subjects, and a moongate beside them, with prior preservation and without."""
    use_own_cores()
    wanted = methods.split(",")
    if unknown := [name for name in wanted if name not in DEFAULT_CONFIGS]:
        raise click.BadParameter(f"there is no method {unknown[0]}; choose of {', '.join(DEFAULT_CONFIGS)}")
    studio = Studio(bases.load(), seeds, drawing)
    told = {f"thing{k}": subject for k, subject in enumerate(unseen(count))}
    told[MOONGATE] = scene.moongate(np.random.default_rng(2026))
    pupils = [studio.pupil(name, subject, k) for k, (name, subject) in enumerate(told.items())]
    usual = [before(studio, pupil) for pupil in pupils]
    table: dict[str, dict[str, Any]] = {}
    with Registry(tempfile.mkdtemp()) as registry:
        for method in wanted:
            for arm, weight in ARMS.items():
                recipe = config.config_for(method, steps, changes={"prior_loss_weight": weight})
                lines = []
                for pupil, first in zip(pupils, usual, strict=True):
                    concept = trainer.learn(
                        studio.base, pupil.shown, pupil.name, pupil.noun, recipe, registry=registry
                    )
                    lines.append(score(studio, pupil, concept, first))
                    print(f"{method}, {arm}, {pupil.noun}: {briefly(lines[-1])}", flush=True)
                table[f"{method}, {arm}"] = summary(lines)
                print(f"{method}, {arm}:", table[f"{method}, {arm}"], flush=True)
    missed = {name: found for name in wanted if (found := misses(table[f"{name}, {by_default(name)}"]))}
    turned = {
        method: table[f"{method}, no prior"]["turned"] - table[f"{method}, prior"]["turned"]
        for method in wanted
    }
    finish(
        "learn_prior",
        table,
        "of the class's pictures: share of the base's diversity, and how far they turned to the subject",
        BARS,
        not missed,
        f"0..{seeds - 1}",
        trial=lacking(steps, count, seeds, drawing),
        missed=missed,
        turned_more_without=turned,
        subjects=count + 1,
    )


if __name__ == "__main__":
    main()
