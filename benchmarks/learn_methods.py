"""Every way to learn on the storybook base, one row each: likeness, side effects, seconds and bytes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import click
import numpy as np
import torch

from benchmarks.report import finish
from benchmarks.subjects import PROMPTS
from conceptkit import base as bases
from conceptkit import learn, metric
from conceptkit.base import kv_maps
from conceptkit.concept import READS_TEXT, Concept, apply
from conceptkit.drawing import draw_with
from conceptkit.evaluate import metrics
from conceptkit.photos import PhotoSet
from conceptkit.recipes import RECIPES, SUDE
from conceptkit.registry.store import Registry
from conceptkit.storybook import world

BARS = {"gap": 0.8, "captions": 0.05, "cpu_seconds": 90.0, "keyed_cpu_seconds": 45.0}
DISTRACTORS = 20

ROWS: dict[str, dict[str, Any]] = {
    "custom": {},
    "custom-locked": {"lock_keys": True},
    "custom-guarded": {"leak": 1.0, "edges": 1.0},
    "custom-sude": {"sude": SUDE["keyed"]},
    "custom-diffusion": {},
    "custom-diffusion-guarded": {"leak": 1.0, "edges": 1.0},
    "custom-diffusion-low": {"rank": 8},
    "dreambooth": {},
    "dreambooth-no-prior": {"prior_weight": 0.0},
    "dreambooth-kv": {"targets": "kv"},
    "dreambooth-ff": {"targets": "attn+ff"},
    "dreambooth-text": {"text_rank": 4},
    "dreambooth-sude": {"sude": SUDE["lora"]},
    "dreambooth-full": {},
    "dreambooth-full-cut": {"extract": 8},
    "textual-inversion": {},
    "textual-inversion-4": {"vectors": 4},
}
"""A row's name begins with its method; the rest is what it changes of the method's recipe."""


def method_of(row: str) -> str:
    known = [name for name in RECIPES if row == name or row.startswith(f"{name}-")]
    return max(known, key=len)


def captions_change(base: bases.Base, concept: Concept, shape: metric.Metric) -> float:
    """||D Y|| / ||W0 Y|| over held-out captions Y without the concept, of the maps that read text.

    Maps beyond them act on every caption as well; what those do is in the pictures of the class alone.
    """
    moved, size = 0.0, 0.0
    for name, linear in kv_maps(base.unet).items():
        rows = shape.held_out.float()
        size += float((rows @ linear.weight.detach().float().T).square().sum())
        if name in concept.delta and name.endswith(READS_TEXT):
            moved += float(apply(concept.delta[name], rows).square().sum())
    return (moved / size) ** 0.5


def score(
    base: bases.Base, judge: metrics.SubjectJudge, subject: Any, concept: Concept, shots: Any, seeds: int
) -> dict[str, float]:
    """Gap closed, share named among distractors, and what became of the class noun's own pictures."""
    name = concept.name
    real = judge.embed(shots[:5])
    held_out = judge.embed(metrics.round_trips(base.pipe.vae, shots[5:]))
    plain = [p for text in PROMPTS for p in draw_with(base, None, text.format(subject.noun), range(seeds))]
    found = [p for text in PROMPTS for p in draw_with(base, concept, text.format(name), range(seeds))]
    after = [p for text in PROMPTS for p in draw_with(base, concept, text.format(subject.noun), range(seeds))]
    usual, own, left = (judge.embed(pictures) for pictures in (plain, found, after))
    rng = np.random.default_rng(7)
    others = [world.draw_subject(rng, subject.noun, "scored", hue=subject.hue) for _ in range(DISTRACTORS)]
    rivals = judge.embed([s for k, other in enumerate(others) for s in world.photos(other, 5, k)])
    floor, ceiling = metrics.similarity(usual, real), metrics.similarity(held_out, real)
    return {
        "gap": metrics.gap(metrics.similarity(own, real), floor, ceiling),
        "floor": floor,
        "ceiling": ceiling,
        "named": metrics.identified(own, real, rivals.view(DISTRACTORS, 5, -1)),
        # of the class noun's own pictures: 0 they are as before, 1 they have become the subject
        "class_turned": metrics.gap(metrics.similarity(left, real), floor, ceiling),
        "class_same": float((usual * left).sum(1).mean()),
    }


def misses(row: str, line: Mapping[str, Any]) -> list[str]:
    """The bars that apply to a row and that it does not reach; a word alone has no gap that it must close."""
    recipe = learn.recipe_for(method_of(row), changes=ROWS[row])
    keyed = bool(recipe.steps) and recipe.adapter == "keyed"
    checks = {
        "gap": not recipe.steps or line["gap"] >= BARS["gap"],
        "captions": not keyed or line["captions"] <= BARS["captions"],
        "cpu_seconds": line["cpu_seconds"] <= BARS["cpu_seconds"],
        "keyed_cpu_seconds": not keyed or line["cpu_seconds"] <= BARS["keyed_cpu_seconds"],
    }
    return [name for name, reached in checks.items() if not reached]


@click.command()
@click.option("--subjects", "count", default=10, show_default=True, help="Unseen subjects.")
@click.option("--seeds", default=2, show_default=True, help="Pictures of each prompt.")
@click.option("--photos", default=5, show_default=True, help="Photos to learn from, 1 to 5.")
@click.option("--methods", default=",".join(ROWS), help="Rows, with commas between.")
@click.option("--steps", type=int, help="Training steps, to try the program itself.")
def main(count: int, seeds: int, photos: int, methods: str, steps: int | None) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    wanted = methods.split(",")
    if unknown := [row for row in wanted if row not in ROWS]:
        raise click.BadParameter(f"there is no row {unknown[0]}; choose of {', '.join(ROWS)}")
    base, judge = bases.load(), metrics.SubjectJudge()
    nouns, rng = list(world.CLASSES), np.random.default_rng(2026)
    told = [world.draw_subject(rng, nouns[k % len(nouns)], "scored") for k in range(count)]
    table: dict[str, dict[str, Any]] = {}
    with Registry(tempfile.mkdtemp()) as registry:
        shape = metric.of_base(base, registry)
        for row in wanted:
            recipe = learn.recipe_for(method_of(row), steps, changes=ROWS[row])
            lines = []
            for k, subject in enumerate(told):
                shots = tuple(world.photos(subject, 10, 1000 + k))
                shown = PhotoSet(shots[:photos], tuple(str(n) for n in range(photos)), str(k))
                begun = time.process_time()
                concept = learn.learn(base, shown, f"thing{k}", subject.noun, recipe, registry=registry)
                seconds = time.process_time() - begun
                lines.append(score(base, judge, subject, concept, shots, seeds))
                lines[-1] |= {
                    "captions": captions_change(base, concept, shape),
                    "cpu_seconds": seconds,
                    "bytes": len(concept.to_bytes()),
                }
            means = {key: float(np.mean([line[key] for line in lines])) for key in lines[0]}
            gaps = np.array([line["gap"] for line in lines])
            picks = np.random.default_rng(0).integers(len(gaps), size=(2000, len(gaps)))
            interval = [float(x) for x in np.percentile(gaps[picks].mean(1), [2.5, 97.5])]
            table[row] = means | {"interval": interval}
            shown_figures = "  ".join(f"{key} {value:.3g}" for key, value in means.items())
            print(f"{row:26} {shown_figures}", flush=True)
    missed = {row: found for row, line in table.items() if (found := misses(row, line))}
    finish(
        "learn_methods",
        table,
        "share of the gap between class noun and held-out photos, and what it costs",
        BARS,
        None if steps else not missed,
        f"0..{seeds - 1}",
        subjects=count,
        photos=photos,
        steps=steps,
        missed=missed,
    )


if __name__ == "__main__":
    main()
