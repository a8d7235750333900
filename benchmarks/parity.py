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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.parity_tape import recording
from benchmarks.report import finish
from conceptkit.base import pipeline
from conceptkit.concepts.concept import Concept
from conceptkit.data.photos import PhotoSet
from conceptkit.learn.config import TrainConfig, config_for
from conceptkit.learn.request import TrainRequest
from conceptkit.learn.session import Session
from conceptkit.learn.subject import Subject
from conceptkit.learn.trainer import train
from tests import tiny

BAR = 1e-4
STEPS = (1, 20)
WORD, MODIFIER = "<my_dog>", "<new1>"
FEW: dict[str, Any] = {
    "num_augmented_views": 5,
    "num_class_images": 4,
    "class_image_steps": 2,
    "gradient_accumulation_steps": 1,
    "train_batch_size": 2,
    "prior_batch_size": 2,
}
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A script, the recipe of ours that is its like, and how to read what each has learned.

    options: of the script, besides those that all have. theirs: from the script's folder, ours: from the
    concept, each with the pipeline that both began with.
    """

    script: str
    method: str
    family: str
    theirs: Callable[[Path, Any], Weights]
    ours: Callable[[Concept, Any], Weights]
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def _lora_file(made: Path, pipe: Any) -> Weights:
    found = load_file(made / "pytorch_lora_weights.safetensors")
    names = {name: name.removeprefix("unet.").replace(".lora.down.", ".lora_A.") for name in found}
    return {names[name].replace(".lora.up.", ".lora_B."): value for name, value in found.items()}


def _lora(concept: Concept, pipe: Any) -> Weights:
    found = {}
    for name, (up, down) in concept.delta.items():
        found |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return found


def _unet_file(made: Path, pipe: Any) -> Weights:
    return load_file(made / "unet" / "diffusion_pytorch_model.safetensors")


def _whole(concept: Concept, pipe: Any) -> Weights:
    return {
        f"{name}.weight": pipe.unet.get_submodule(name).weight.detach() + factors.dense()
        for name, factors in concept.delta.items()
    }


def _word_file(made: Path, pipe: Any) -> Weights:
    (row,) = load_file(made / "learned_embeds.safetensors").values()
    return {"word": row}


def _word(concept: Concept, pipe: Any) -> Weights:
    return {"word": concept.tokens[WORD][0]}


def _custom_file(made: Path, pipe: Any) -> Weights:
    found = load_file(made / "pytorch_custom_diffusion_weights.safetensors")
    maps = {
        name.replace(".processor.", ".").replace("_custom_diffusion", ""): value
        for name, value in found.items()
    }
    (row,) = load_file(made / f"{MODIFIER}.safetensors").values()
    return maps | {"word": row.reshape(1, -1)}


def _custom(concept: Concept, pipe: Any) -> Weights:
    return _whole(concept, pipe) | _word(concept, pipe)


PRIOR = {"prior_loss_weight": 1.0}
LORA = ("dreambooth/train_dreambooth_lora.py", "dreambooth", "stable-diffusion", _lora_file, _lora)
LORA_XL = ("dreambooth/train_dreambooth_lora_sdxl.py", "dreambooth", "sdxl", _lora_file, _lora)
CASES = {
    "dreambooth-lora-sd": Case(*LORA),
    "dreambooth-lora-sd-prior": Case(*LORA, PRIOR),
    "dreambooth-lora-sdxl": Case(*LORA_XL),
    "dreambooth-lora-sdxl-prior": Case(*LORA_XL, PRIOR),
    "dreambooth-full-sd": Case(
        "dreambooth/train_dreambooth.py", "dreambooth-full", "stable-diffusion", _unet_file, _whole
    ),
    "textual-inversion-sd": Case(
        "textual_inversion/textual_inversion.py", "textual-inversion", "stable-diffusion", _word_file, _word
    ),
    "custom-diffusion-sd": Case(
        "custom_diffusion/train_custom_diffusion.py",
        "custom-diffusion",
        "stable-diffusion",
        _custom_file,
        _custom,
        {"initializer_token": "dog"},
        {
            "modifier_token": MODIFIER,
            "initializer_token": "dog",
            "freeze_model": "crossattn_kv",
            "dataloader_num_workers": 0,  # workers would each begin the tape anew
        },
    ),
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
    pipe = tiny.pico_sdxl() if case.family == "sdxl" else tiny.pico_sd()
    length = "token_train_steps" if case.method == "textual-inversion" else "max_train_steps"
    recipe = config_for(case.method, family=case.family, changes={**FEW, length: steps, **case.changes})
    with recording() as tape:
        request = TrainRequest((Subject("my_dog", "dog", photos()),), recipe)
        concept = train(request, Session(pipeline.of(pipe, "pico"))).whole
    rare = str(concept.provenance.get("identifier", ""))
    said = {WORD: rare or (MODIFIER if "custom" in case.script else WORD)}
    alone = list(concept.delta) if case.method == "dreambooth-full" else []
    torch.save({"tape": tape.to_json(), "said": said, "alone": alone}, room / "tape.pt")
    tiny.save(pipe, room / "model")
    learned = {
        name for name, _ in pipe.unet.named_parameters() if name.removesuffix(".weight") in concept.delta
    }
    told = _options(case, recipe, steps, room, said[WORD]) | dict(case.options)
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in told.items()]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.parity_script",
            examples / case.script,
            room / "tape.pt",
            "--",
            *words,
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise click.ClickException(f"{case.script} failed: {done.stderr.strip()[-1500:]}")
    first = {name: dict(pipe.unet.named_parameters())[name].detach() for name in learned}
    first |= {"word": tape.rows[0]} | {f"{n}.lora_A.weight": down for n, down in tape.downs.items()}
    return relative(case.ours(concept, pipe), case.theirs(room / "made", pipe), first)


def _options(case: Case, recipe: TrainConfig, steps: int, room: Path, word: str) -> dict[str, Any]:
    """The script's options that say what the recipe does."""
    rate = recipe.learning_rate if recipe.rank else recipe.full_learning_rate
    told: dict[str, Any] = {
        "pretrained_model_name_or_path": room / "model",
        "output_dir": room / "made",
        "resolution": 16,
        "train_batch_size": recipe.train_batch_size,
        "max_train_steps": steps,
        "learning_rate": rate if recipe.max_train_steps else recipe.token_learning_rate,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "adam_weight_decay": recipe.adam_weight_decay,
        "checkpointing_steps": 10**6,
        "seed": 0,
    }
    if case.method == "textual-inversion":
        return told | {
            "train_data_dir": room,
            "placeholder_token": WORD,
            "initializer_token": "dog",
            "save_steps": 10**6,
        }
    told |= {"instance_data_dir": room, "instance_prompt": f"a photo of {word} dog"}
    told |= {"rank": recipe.rank} if recipe.rank else {}
    if recipe.prior_loss_weight:
        classes = room / "classes"
        classes.mkdir()
        for k in range(recipe.num_class_images):
            Image.new("RGB", (16, 16)).save(classes / f"{k}.png")
        told |= {
            "with_prior_preservation": True,
            "class_data_dir": classes,
            "class_prompt": "photo of a dog",
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
