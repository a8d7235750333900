"""The example scripts of diffusers that recipes of ours are held to, each with a miniature base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from conceptkit.concepts.concept import Concept
from tests import language_model_tiny, tiny, transformers_tiny

WORD, MODIFIER = "<my_dog>", "<new1>"
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A script, the recipe of ours that is its like, and how to read what each has learned.

    build: the miniature pipeline that both begin with. theirs: from the script's folder, ours: from the
    concept, each with that pipeline. changes: of the recipe. options: of the script, besides those that all
    have: what the script's README gives, and what the recipe of ours says of itself in its row.
    """

    script: str
    method: str
    family: str
    build: Callable[[], Any]
    theirs: Callable[[Path, Any], Weights]
    ours: Callable[[Concept, Any], Weights]
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def denoiser(pipe: Any) -> Any:
    """The UNet or transformer of a pipeline."""
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def _lora_file(made: Path, pipe: Any) -> Weights:
    found = load_file(made / "pytorch_lora_weights.safetensors")
    return {_lora_name(name): value for name, value in found.items()}


def _lora_name(name: str) -> str:
    for part in ("unet.", "transformer."):
        name = name.removeprefix(part)
    return name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


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


def _word_files(made: Path, pipe: Any) -> Weights:
    names = sorted(path for path in made.glob("learned_embeds*.safetensors") if "steps" not in path.name)
    return {f"word.{k}": row for k, name in enumerate(names) for row in load_file(name).values()}


def _word(concept: Concept, pipe: Any) -> Weights:
    return {f"word.{k}": row for k, row in enumerate(concept.tokens[WORD])}


def _custom_file(made: Path, pipe: Any) -> Weights:
    found = load_file(made / "pytorch_custom_diffusion_weights.safetensors")
    maps = {
        name.replace(".processor.", ".").replace("_custom_diffusion", ""): value
        for name, value in found.items()
    }
    (row,) = load_file(made / f"{MODIFIER}.safetensors").values()
    return maps | {"word.0": row.reshape(1, -1)}


def _custom(concept: Concept, pipe: Any) -> Weights:
    return _whole(concept, pipe) | _word(concept, pipe)


def _sana() -> Any:
    """The script reads prompts in bfloat16, whatever it learns in."""
    pipe = language_model_tiny.pico_sana()
    pipe.text_encoder.to(torch.bfloat16)
    return pipe


PRIOR = {"prior_loss_weight": 1.0}
IN_PARTS = {"gradient_accumulation_steps": 2}
"""A picture at a time: some of these scripts take no more with the prompt that they encode once."""


def _dreambooth(
    script: str, family: str, build: Callable[[], Any], parts: bool = True, **options: Any
) -> dict[str, Case]:
    path, changes = f"dreambooth/train_dreambooth_lora{script}.py", IN_PARTS if parts else {}
    name = f"dreambooth-lora-{'sd' if family == 'stable-diffusion' else family}"
    one = Case(path, "dreambooth", family, build, _lora_file, _lora, changes, options)
    with_prior = Case(path, "dreambooth", family, build, _lora_file, _lora, changes | PRIOR, options)
    return {name: one, f"{name}-prior": with_prior}


CASES = {
    **_dreambooth("", "stable-diffusion", tiny.pico_sd, parts=False, learning_rate=1e-4),
    **_dreambooth("_sdxl", "sdxl", tiny.pico_sdxl, learning_rate=1e-4),
    **_dreambooth("_sd3", "sd3", transformers_tiny.pico_sd3, learning_rate=4e-4, max_sequence_length=256),
    **_dreambooth("_flux", "flux", transformers_tiny.pico_flux, learning_rate=1e-4, guidance_scale=1),
    **_dreambooth("_flux2_klein", "flux2", language_model_tiny.pico_klein, learning_rate=1e-4),
    **_dreambooth("_sana", "sana", _sana, learning_rate=1e-4),
    **_dreambooth("_qwen_image", "qwen-image", language_model_tiny.pico_qwen_image, learning_rate=2e-4),
    **_dreambooth("_z_image", "z-image", language_model_tiny.pico_z_image, learning_rate=1e-4),
    "dreambooth-full-sd": Case(
        "dreambooth/train_dreambooth.py",
        "dreambooth-full",
        "stable-diffusion",
        tiny.pico_sd,
        _unet_file,
        _whole,
        options={"learning_rate": 5e-6},
    ),
    "textual-inversion-sd": Case(
        "textual_inversion/textual_inversion.py",
        "textual-inversion",
        "stable-diffusion",
        tiny.pico_sd,
        _word_files,
        _word,
        options={"learning_rate": 2e-3},
    ),
    "textual-inversion-sdxl": Case(
        "textual_inversion/textual_inversion_sdxl.py",
        "textual-inversion",
        "sdxl",
        tiny.pico_sdxl,
        _word_files,
        _word,
        options={"learning_rate": 2e-3},
    ),
    "custom-diffusion-sd": Case(
        "custom_diffusion/train_custom_diffusion.py",
        "custom-diffusion",
        "stable-diffusion",
        tiny.pico_sd,
        _custom_file,
        _custom,
        {"initializer_token": "dog"},
        {
            "learning_rate": 4e-5,
            "modifier_token": MODIFIER,
            "initializer_token": "dog",
            "freeze_model": "crossattn_kv",
            "dataloader_num_workers": 0,  # workers would each begin the tape anew
        },
    ),
}
