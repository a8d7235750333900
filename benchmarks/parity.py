"""Published methods beside diffusers' own example scripts: the same weights after 1 and 20 steps.

The scripts are run as they are, from the `examples` folder of a checkout of diffusers, each on a miniature
pipeline and on the latents, noise, noise levels, prompts and first values that a run of ours had. Printed is
the relative difference of what has learned, over all of it together.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.parity_cases import CASES, MODIFIER, WORD, Case, Weights, denoiser
from benchmarks.parity_tape import recording
from benchmarks.report import finish
from conceptkit.base import pipeline
from conceptkit.data.photos import PhotoSet
from conceptkit.features import caption_statistics
from conceptkit.features.captions import captions
from conceptkit.learn.config import TrainConfig, config_for
from conceptkit.learn.request import TrainRequest
from conceptkit.learn.session import Session
from conceptkit.learn.subject import Subject
from conceptkit.learn.trainer import train
from tests import tiny

BAR = 1e-4
SIDE = 16
STEPS = (1, 20)
FEW: dict[str, Any] = {
    "num_augmented_views": 5,
    "num_class_images": 4,
    "class_image_steps": 2,
    "gradient_accumulation_steps": 1,
    "train_batch_size": 2,
    "prior_batch_size": 2,
}


def photos(count: int = 3) -> PhotoSet:
    """Pictures of noise."""
    dice = np.random.default_rng(0)
    shots = [Image.fromarray(dice.integers(0, 255, (36, 44, 3), dtype=np.uint8)) for _ in range(count)]
    return PhotoSet(tuple(shots), tuple(map(str, range(count))), "noise")


def relative(found: Weights, wanted: Weights, first: Weights) -> tuple[float, float]:
    """Difference of what has learned, of its own length and of the way that it has gone since `first`."""
    apart = sum(float((found[name].float() - wanted[name].float()).square().sum()) for name in found)
    length = sum(float(wanted[name].float().square().sum()) for name in found)
    way = sum(float((wanted[name].float() - first.get(name, 0)).square().sum()) for name in found)
    return (apart / length) ** 0.5, (apart / way) ** 0.5


def compare(case: Case, examples: Path, steps: int, room: Path) -> tuple[float, float]:
    """How far the weights are apart after so many steps, as `relative` says it."""
    pipe = case.build()
    length = "token_train_steps" if case.method == "textual-inversion" else "max_train_steps"
    recipe = config_for(case.method, family=case.family, changes={**FEW, length: steps, **case.changes})
    # Statistics of captions say nothing to these loops, and take most of the time.
    few = mock.patch.object(caption_statistics, "captions", lambda family: captions("")[:4])
    with few, recording() as tape:
        request = TrainRequest((Subject("my_dog", "dog", photos()),), recipe)
        concept = train(request, Session(pipeline.of(pipe, "pico"))).whole
    rare = str(concept.provenance.get("identifier", ""))
    said = {WORD: rare or (MODIFIER if "custom" in case.script else WORD)}
    alone = list(concept.delta) if case.method == "dreambooth-full" else []
    stored = {"tape": tape.to_json(), "said": said, "alone": alone, "prompts": _chat(pipe)}
    torch.save(stored, room / "tape.pt")
    tiny.save(pipe, room / "model")
    _run(case, examples, room, _options(case, recipe, steps, room, said[WORD]))
    weights = dict(denoiser(pipe).named_parameters())
    first = {f"{name}.weight": weights[f"{name}.weight"].detach() for name in concept.delta}
    first |= {f"word.{k}": row for k, row in enumerate(tape.rows)}
    first |= {f"{name}.lora_A.weight": down for name, down in tape.downs.items()}
    return relative(case.ours(concept, pipe), case.theirs(room / "made", pipe), first)


def _chat(pipe: Any) -> int | None:
    """How many tokens of a templated prompt are none of it: another number with a small tokenizer."""
    found: int | None = getattr(pipe, "prompt_template_encode_start_idx", None)
    return found


def _run(case: Case, examples: Path, room: Path, options: dict[str, Any]) -> None:
    """The script, in a process of its own."""
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    program = [sys.executable, "-m", "benchmarks.parity_script", examples / case.script, room / "tape.pt"]
    done = subprocess.run(
        [*program, "--", *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise click.ClickException(f"{case.script} failed: {done.stderr.strip()[-1500:]}")


def _options(case: Case, recipe: TrainConfig, steps: int, room: Path, word: str) -> dict[str, Any]:
    """The script's options: what its README says, and what makes it a miniature.

    What decays and what is clipped, how noise levels are drawn and a LoRA's rank are the script's own.
    """
    told: dict[str, Any] = {
        "pretrained_model_name_or_path": room / "model",
        "output_dir": room / "made",
        "resolution": SIDE,
        "train_batch_size": recipe.train_batch_size // recipe.gradient_accumulation_steps,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "max_train_steps": steps,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 10**6,
        "seed": 0,
        **case.options,
    }
    if case.method == "textual-inversion":
        return told | {
            "train_data_dir": room,
            "placeholder_token": WORD,
            "initializer_token": "dog",
            "save_steps": 10**6,
        }
    told |= {"instance_data_dir": room, "instance_prompt": f"a photo of {word} dog"}
    if recipe.prior_loss_weight:
        classes = room / "classes"
        classes.mkdir()
        for k in range(recipe.num_class_images):
            Image.new("RGB", (SIDE, SIDE)).save(classes / f"{k}.png")
        told |= {
            "with_prior_preservation": True,
            "class_data_dir": classes,
            "class_prompt": "a photo of dog",
            "num_class_images": recipe.num_class_images,
            "prior_loss_weight": recipe.prior_loss_weight,
        }
    return told


@click.command()
@click.option("--examples", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--cases", default=",".join(CASES), show_default=True)
def main(examples: Path, cases: str) -> None:
    wanted = cases.split(",")
    if unknown := [name for name in wanted if name not in CASES]:
        raise click.BadParameter(f"there is no case {unknown[0]}; choose of {', '.join(CASES)}")
    table: dict[str, dict[str, float]] = {}
    for name in wanted:
        for steps in STEPS:
            with tempfile.TemporaryDirectory() as room:
                apart, of_way = compare(CASES[name], examples.resolve(), steps, Path(room))
            table.setdefault(name, {})[f"{steps}"] = apart
            table[name][f"{steps}, of the way"] = of_way
            print(f"{name}, {steps} steps: {apart:.1e} of the weights, {of_way:.1e} of the way", flush=True)
    worst = max(line[f"{steps}"] for line in table.values() for steps in STEPS)
    finish(
        "parity",
        worst,
        "largest relative difference of weights from those that diffusers' script has learned",
        BAR,
        worst <= BAR,
        1,
        trial="" if set(wanted) == set(CASES) else f"{len(wanted)} cases of {len(CASES)}",
        table=table,
    )


if __name__ == "__main__":
    main()
