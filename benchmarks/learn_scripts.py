"""This loop beside diffusers' own example scripts of the same methods, on one base in one run.

CPU seconds to the same likeness to the subject, and per step. The scripts are run as they are, in processes
of their own, from the `examples` folder of a checkout of diffusers; they need torchvision besides. Neither
side's start is counted, nor the class pictures, which both are given.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from benchmarks.learn_common import Pupil, Studio, lacking, options
from benchmarks.learn_speed import SUBJECTS, budgets, class_pictures, conclude, ours, side_by_side
from benchmarks.plain_loop import recipe_of
from benchmarks.report import use_own_cores
from benchmarks.taught import unseen
from conceptkit.base import pipeline
from conceptkit.base.rare_tokens import choose
from conceptkit.features import caption_statistics, captions
from conceptkit.learn import latent_dataset
from conceptkit.learn.config import TrainConfig
from conceptkit.registry.store import Registry

SHARES = (1 / 3, 2 / 3, 1.0)
"""Of the recipe's steps, at which likeness is measured."""
TOKEN = "<script>"


@dataclass(frozen=True)
class Script:
    """A script of diffusers.

    told: its options for a lesson, besides those that all scripts have. load: what it wrote, onto a pipeline.
    word: what stands for the subject in prompts.
    rates: learning rates; the one that comes nearest on the first subject is taken for all.
    """

    path: str
    told: Callable[[Lesson], dict[str, Any]]
    load: Callable[[Any, Path], None]
    word: Callable[[Lesson], str]
    rates: Callable[[TrainConfig], tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a script is to learn: folders of the base, photos and class pictures, their size, its words."""

    recipe: TrainConfig
    model: Path
    size: int
    photos: Path
    of_class: Path
    rare: str
    noun: str

    @property
    def half(self) -> int:
        """Photos in a step of a script that shows as many class pictures, with all as many as in ours."""
        return max(1, (self.recipe.train_batch_size + self.recipe.prior_batch_size) // 2)


def _with_class_pictures(lesson: Lesson) -> dict[str, Any]:
    return {
        "instance_data_dir": lesson.photos,
        "train_batch_size": lesson.half,
        "with_prior_preservation": True,
        "num_class_images": lesson.recipe.num_class_images,
        "class_data_dir": lesson.of_class,
        "class_prompt": f"photo of a {lesson.noun}",
    }


def _dreambooth(lesson: Lesson) -> dict[str, Any]:
    return {
        **_with_class_pictures(lesson),
        "instance_prompt": f"photo of a {lesson.rare} {lesson.noun}",
        "train_text_encoder": True,
        "rank": lesson.recipe.rank,
    }


def _custom_diffusion(lesson: Lesson) -> dict[str, Any]:
    return {
        **_with_class_pictures(lesson),
        "instance_prompt": f"photo of a {TOKEN} {lesson.noun}",
        "modifier_token": TOKEN,
        "initializer_token": lesson.rare,
        "freeze_model": "crossattn" if lesson.recipe.target_modules == "cross" else "crossattn_kv",
        "hflip": True,
    }


def _textual_inversion(lesson: Lesson) -> dict[str, Any]:
    return {
        "train_data_dir": lesson.photos,
        "placeholder_token": TOKEN,
        "initializer_token": lesson.noun,
        "train_batch_size": lesson.recipe.train_batch_size,
        "num_vectors": lesson.recipe.num_vectors,
        "save_steps": 10**6,
    }


def _load_custom_diffusion(pipe: Any, made: Path) -> None:
    pipe.unet.load_attn_procs(made, weight_name="pytorch_custom_diffusion_weights.safetensors")
    pipe.load_textual_inversion(str(made), weight_name=f"{TOKEN}.safetensors")


SCRIPTS = {
    "dreambooth": Script(
        "dreambooth/train_dreambooth_lora.py",
        _dreambooth,
        lambda pipe, made: pipe.load_lora_weights(made),
        lambda lesson: f"{lesson.rare} {lesson.noun}",
        lambda recipe: (recipe.learning_rate, recipe.learning_rate / 3),
    ),
    "custom-diffusion": Script(
        "custom_diffusion/train_custom_diffusion.py",
        _custom_diffusion,
        _load_custom_diffusion,
        lambda lesson: f"{TOKEN} {lesson.noun}",
        lambda recipe: (recipe.token_learning_rate, recipe.full_learning_rate),
    ),
    "textual-inversion": Script(
        "textual_inversion/textual_inversion.py",
        _textual_inversion,
        lambda pipe, made: pipe.load_textual_inversion(str(made / "learned_embeds.safetensors")),
        lambda lesson: TOKEN,
        lambda recipe: (recipe.token_learning_rate, recipe.token_learning_rate / 5),
    ),
}


def steps_of(recipe: TrainConfig) -> int:
    return recipe.token_train_steps + recipe.max_train_steps


def run(script: Path, model: Path, told: dict[str, Any], steps: int, rate: float, out: Path) -> float:
    """CPU seconds of a script's process. Raises ClickException with what it said last when it fails."""
    told = {
        "pretrained_model_name_or_path": model,
        "max_train_steps": steps,
        "learning_rate": rate,
        "lr_scheduler": "linear",
        "lr_warmup_steps": max(1, steps // 20),
        "output_dir": out,
        "seed": 0,
        "checkpointing_steps": 10**6,
        **told,
    }
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in told.items()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, script, *words],
        cwd=out.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise click.ClickException(f"{script.name} failed: {done.stderr.strip()[-600:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def save(pictures: Sequence[Image.Image], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for k, picture in enumerate(pictures):
        picture.save(folder / f"{k}.png")
    return folder


def theirs(
    studio: Studio, pupil: Pupil, script: Script, examples: Path, lesson: Lesson, rates: Sequence[float]
) -> tuple[list[tuple[float, float]], float, float]:
    """(seconds, gap closed) at the stops, at the best of the rates; seconds per step; that rate."""
    path, stops = examples / script.path, budgets(steps_of(lesson.recipe), SHARES)
    room = lesson.photos.parent
    told = {"resolution": lesson.size, **script.told(lesson)}
    out = room / "made"

    def learned(steps: int, rate: float) -> tuple[float, float]:
        shutil.rmtree(out, ignore_errors=True)
        seconds = run(path, lesson.model, told, steps, rate, out)
        drawer = Studio(pipeline.load(str(lesson.model)), len(studio.seeds), studio.steps)
        script.load(drawer.base.pipe, out)
        return seconds, pupil.gap(drawer.likeness(drawer.in_places(script.word(lesson)), pupil.real))

    start = run(path, lesson.model, told, 1, rates[0], out)
    whole = {rate: learned(stops[-1], rate) for rate in rates}
    best = max(rates, key=lambda rate: np.nan_to_num(whole[rate][1], nan=-np.inf))
    found = [*(learned(steps, best) for steps in stops[:-1]), whole[best]]
    per_step = (found[-1][0] - start) / max(1, stops[-1] - 1)
    curve = [(steps * per_step, gap) for steps, (_, gap) in zip(stops, found, strict=True)]
    return curve, per_step, best


def compare(
    studio: Studio,
    pupils: Sequence[Pupil],
    method: str,
    recipe: TrainConfig,
    examples: Path,
    registry: Registry,
) -> dict[str, Any]:
    """One row: both curves, seconds per step, and seconds to the likeness that the script ends with."""
    script = SCRIPTS[method]
    (rare,) = choose(studio.base.pipe, captions.captions(studio.base.name), 0, 1)
    stops = budgets(steps_of(recipe), SHARES)
    curves: tuple[list[Any], list[Any]] = ([], [])
    each, rates = [], script.rates(recipe)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        studio.base.pipe.save_pretrained(model)
        for pupil in pupils:
            beside = class_pictures(studio.base, recipe, pupil.noun) if recipe.prior_loss_weight else []
            room = Path(scratch) / pupil.name
            lesson = Lesson(
                recipe,
                model,
                latent_dataset.picture_size(studio.base),
                save(pupil.shown.pictures, room / "photos"),
                save(beside, room / "class"),
                rare.text,
                pupil.noun,
            )
            curve, per_step, rate = theirs(studio, pupil, script, examples, lesson, rates)
            points = []
            for steps in stops:
                concept, whole, _ = ours(studio.base, pupil, recipe_of(method, steps), beside, registry)
                likeness = studio.likeness(studio.in_places(pupil.name, concept), pupil.real)
                points.append((whole, pupil.gap(likeness)))
            for curves_of, found in zip(curves, (curve, points), strict=True):
                curves_of.append(found)
            each.append((per_step, points[-1][0] / stops[-1]))
            rates = (rate,)
            print(f"{method}, {pupil.noun}: script {curve} at {rate}, ours {points}", flush=True)
    return side_by_side("script", *curves, each) | {"rate": rates[0]}


@click.command()
@click.option("--examples", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@options(SCRIPTS, full=SUBJECTS)
def main(examples: Path, count: int, seeds: int, steps: int | None, methods: str, drawing: int) -> None:
    use_own_cores()
    wanted = methods.split(",")
    if unknown := [name for name in wanted if name not in SCRIPTS]:
        raise click.BadParameter(f"there is no script of {unknown[0]}; choose of {', '.join(SCRIPTS)}")
    if missing := [
        one.path for name, one in SCRIPTS.items() if name in wanted and not (examples / one.path).is_file()
    ]:
        raise click.BadParameter(f"{examples} has no {missing[0]}; give the examples folder of diffusers")
    studio = Studio(pipeline.load(), seeds, drawing)
    pupils = [studio.pupil(f"thing{k}", subject, k) for k, subject in enumerate(unseen(count))]
    table: dict[str, dict[str, Any]] = {}
    with Registry(tempfile.mkdtemp()) as registry:
        caption_statistics.statistics_of(studio.base, registry)  # once for each base, and kept
        for method in wanted:
            recipe = recipe_of(method, steps)
            table[method] = compare(studio, pupils, method, recipe, examples.resolve(), registry)
            print(f"{method}:", table[method], flush=True)
    conclude(
        "learn_scripts",
        "CPU time to the likeness that diffusers' script of the method ends with, as a share of the script's",
        table,
        count,
        seeds,
        lacking(steps, count, seeds, drawing, full=SUBJECTS),
    )


if __name__ == "__main__":
    main()
