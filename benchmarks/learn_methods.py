"""Every way to learn on the storybook base, one row each: likeness, side effects, seconds and bytes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from typing import Any

import click
import numpy as np
from torch import Tensor

from benchmarks.learn_common import SEEDS, SHOWN, SUBJECTS, Pupil, Studio, briefly, lacking
from benchmarks.report import finish, use_own_cores
from benchmarks.taught import interval, mean, unseen
from conceptkit.base import pipeline as bases
from conceptkit.base.attention import kv_maps
from conceptkit.base.text_features import encode
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import ENCODERS
from conceptkit.evaluate import metrics
from conceptkit.features import caption_statistics
from conceptkit.inference.generate import STEPS
from conceptkit.learn import config, trainer
from conceptkit.learn.config import DEFAULT_CONFIGS
from conceptkit.learn.methods.table import method_of_adapter
from conceptkit.registry.store import Registry
from conceptkit.storybook.world import scene
from conceptkit.tuners.inject import install_on, uninstall_from

BARS = {"gap": 0.8, "captions": 0.05, "cpu_seconds": 90.0, "keyed_cpu_seconds": 45.0}
DISTRACTORS = 20

ROWS: dict[str, dict[str, Any]] = {
    "custom": {},
    "custom-narrow": {
        "gated_lora_rank": 0,
        "max_timestep_fraction": 1.0,
        "token_train_steps": 170,
        "max_train_steps": 80,
        "learning_rate": 4e-2,
    },
    "custom-locked": {"lock_keys": True},
    "custom-guarded": {"caption_preservation_weight": 1.0, "special_token_preservation_weight": 1.0},
    "custom-sude": {"sude_weight": method_of_adapter("keyed").adapter.sude_weight},
    "custom-diffusion": {},
    "custom-diffusion-kv": {
        "rank": 0,
        "caption_preservation_weight": 0.0,
        "num_class_images": 24,
        "target_modules": "kv",
        "full_learning_rate": 2e-4,
        "max_timestep_fraction": 1.0,
        "train_batch_size": 6,
        "max_train_steps": 250,
    },
    "custom-diffusion-guarded": {
        "caption_preservation_weight": 1.0,
        "special_token_preservation_weight": 1.0,
    },
    "custom-diffusion-full": {"rank": 0, "caption_preservation_weight": 0.0, "num_class_images": 24},
    "dreambooth": {},
    "dreambooth-no-prior": {"prior_loss_weight": 0.0},
    "dreambooth-kv": {"target_modules": "kv"},
    "dreambooth-ff": {"target_modules": "attn+ff"},
    "dreambooth-unet": {"text_encoder_rank": 0},
    "dreambooth-sude": {"sude_weight": method_of_adapter("lora").adapter.sude_weight},
    "dreambooth-full": {},
    "dreambooth-full-cut": {"extract_rank": 8},
    "textual-inversion": {},
    "textual-inversion-4": {"num_vectors": 4},
    "vico": {},
    "vico-free": {"attention_regularization_weight": 0.0},
    "vico-full": {"rank": 0},
    "vico-sude": {"sude_weight": method_of_adapter("image").adapter.sude_weight},
}
"""A row's name begins with its method; the rest is what it changes of the method's recipe."""


def method_of(row: str) -> str:
    known = [name for name in DEFAULT_CONFIGS if row == name or row.startswith(f"{name}-")]
    return max(known, key=len)


def captions_change(base: bases.Base, concept: Concept) -> float:
    """||(W0 + D) Y' - W0 Y|| / ||W0 Y|| over held-out captions, of the maps that read text.

    None mentions the concept. Y (n, d) is what the base's text encoder makes of them, Y' what it makes of
    them with the concept's maps in it.
    Maps beyond these act on every caption as well; what those do is in the pictures of the class alone.
    """
    _, texts = caption_statistics.split(caption_statistics.captions(base.name))
    usual = read = encode(base.pipe, texts).hidden.float()
    upstream = {n: factors for n, factors in concept.delta.items() if n.partition(".")[0] in ENCODERS}
    if upstream:
        install_on(base.pipe, upstream)
        try:
            read = encode(base.pipe, texts).hidden.float()
        finally:
            uninstall_from(base.pipe)
    moved, size = 0.0, 0.0
    for name, linear in kv_maps(base.unet).items():
        weight = linear.weight.detach().float()
        change = (read - usual) @ weight.T
        if name in concept.delta:
            change = change + concept.delta[name].apply(read)
        moved += float(change.square().sum())
        size += float((usual @ weight.T).square().sum())
    return (moved / size) ** 0.5


def rivals(studio: Studio, pupil: Pupil) -> Tensor:
    """Photos of others of the same class and colour: (DISTRACTORS, 5, d)."""
    rng, hue = np.random.default_rng(7), pupil.subject.hue
    others = [scene.draw_subject(rng, pupil.noun, "scored", hue=hue) for _ in range(DISTRACTORS)]
    seen = studio.who.embed([shot for k, other in enumerate(others) for shot in scene.photos(other, 5, k)])
    return seen.view(DISTRACTORS, 5, -1)


def score(studio: Studio, pupil: Pupil, others: Tensor, concept: Concept) -> dict[str, float]:
    """Gap closed, share named among distractors, and what became of the class noun's own pictures.

    The gap and the names are told from pictures in which the prompt's place is seen.
    """
    found = studio.in_places(pupil.name, concept)
    right = studio.right(found)
    own = studio.who.embed(right) if right else None
    left = studio.who.embed(studio.in_places(pupil.noun, concept))
    plain, turned = (metrics.similarity(seen, pupil.real) for seen in (pupil.usual, left))
    return {
        "gap": float("nan") if own is None else pupil.gap(metrics.similarity(own, pupil.real)),
        "floor": pupil.floor,
        "ceiling": pupil.ceiling,
        "confirmed": len(right) / len(found),
        "named": float("nan") if own is None else metrics.identified(own, pupil.real, others),
        # of the class noun's own pictures: 0 they are as before, 1 they have become the subject
        "class_turned": metrics.gap(turned, plain, pupil.ceiling),
        "class_same": float((pupil.usual * left).sum(1).mean()),
    }


def misses(row: str, line: Mapping[str, Any]) -> list[str]:
    """The bars that apply to a row and that it does not reach; a word alone has no gap that it must close."""
    recipe = config.config_for(method_of(row), changes=ROWS[row])
    keyed = bool(recipe.max_train_steps) and recipe.adapter == "keyed"
    checks = {
        "gap": not recipe.max_train_steps or line["gap"] >= BARS["gap"],
        "captions": not keyed or line["captions"] <= BARS["captions"],
        "cpu_seconds": line["cpu_seconds"] <= BARS["cpu_seconds"],
        "keyed_cpu_seconds": not keyed or line["cpu_seconds"] <= BARS["keyed_cpu_seconds"],
    }
    return [name for name, reached in checks.items() if not reached]


@click.command()
@click.option("--subjects", "count", default=SUBJECTS, show_default=True, help="Unseen subjects.")
@click.option("--seeds", default=SEEDS, show_default=True, help="Pictures of each prompt.")
@click.option("--photos", default=SHOWN, show_default=True, help="Photos to learn from, 1 to 5.")
@click.option("--methods", default=",".join(ROWS), help="Rows, with commas between.")
@click.option("--steps", type=int, help="Training steps, to try the program itself.")
@click.option("--drawing", default=STEPS, show_default=True, help="Denoising steps of a picture.")
def main(count: int, seeds: int, photos: int, methods: str, steps: int | None, drawing: int) -> None:
    use_own_cores()
    wanted = methods.split(",")
    if unknown := [row for row in wanted if row not in ROWS]:
        raise click.BadParameter(f"there is no row {unknown[0]}; choose of {', '.join(ROWS)}")
    studio = Studio(bases.load(), seeds, drawing)
    base = studio.base
    pupils = [studio.pupil(f"thing{k}", subject, k, photos) for k, subject in enumerate(unseen(count))]
    others = [rivals(studio, pupil) for pupil in pupils]
    table: dict[str, dict[str, Any]] = {}
    for row in wanted:
        recipe = config.config_for(method_of(row), steps, changes=ROWS[row])
        lines = []
        # A registry of its own: each row draws, and pays for, the class pictures that it holds on to.
        with Registry(tempfile.mkdtemp()) as registry:
            caption_statistics.statistics_of(base, registry)
            for pupil, alike in zip(pupils, others, strict=True):
                begun = time.process_time()
                concept = trainer.learn(base, pupil.shown, pupil.name, pupil.noun, recipe, registry=registry)
                seconds = time.process_time() - begun
                lines.append(score(studio, pupil, alike, concept))
                lines[-1] |= {
                    "captions": captions_change(base, concept),
                    "cpu_seconds": seconds,
                    "bytes": len(concept.to_bytes()),
                }
                print(f"{row}, {pupil.noun}: {briefly(lines[-1])}", flush=True)
        means = {key: mean(np.array([line[key] for line in lines])) for key in lines[0]}
        table[row] = means | {"interval": interval(np.array([line["gap"] for line in lines]))}
        print(f"{row}: {briefly(means)}", flush=True)
    missed = {row: found for row, line in table.items() if (found := misses(row, line))}
    finish(
        "learn_methods",
        table,
        "share of the gap between class noun and held-out photos, and what it costs",
        BARS,
        not missed,
        f"0..{seeds - 1}",
        trial=lacking(steps, count, seeds, drawing),
        subjects=count,
        photos=photos,
        steps=steps,
        missed=missed,
    )


if __name__ == "__main__":
    main()
