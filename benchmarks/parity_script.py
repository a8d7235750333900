"""Runs one example script of diffusers, in this process, on what a tape holds.

    python -m benchmarks.parity_script SCRIPT TAPE -- OPTIONS OF THE SCRIPT

The script is its own: its model, loss, optimizer, schedule and files. What is put in its place is chance: the
latents, the noise, the noise levels, the prompts in their order, and the first values of what learns.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.parity_tape import Part, Tape

IMAGES = ("instance_images", "class_images")


def main(script: Path, tape_file: Path, options: list[str]) -> None:
    stored = torch.load(tape_file, weights_only=True)
    _without_torchvision()
    module = _imported(script)
    args = module.parse_args(options) if module.parse_args.__code__.co_argcount else _parsed(module, options)
    play(module, Tape.from_json(stored["tape"]), stored["said"])
    if stored["alone"]:
        _learn_alone(stored["alone"])
    module.main(args) if module.main.__code__.co_argcount else module.main()


def _parsed(module: Any, options: list[str]) -> None:
    """For a script that reads its options in `main`."""
    sys.argv = [module.__file__, *options]


def play(module: Any, tape: Tape, said: dict[str, str]) -> None:
    """Put the tape in the place of a script's chance. said: what the script calls our words."""
    noises, levels = iter([part.noise for part in tape.parts]), iter([part.t for part in tape.parts])
    like, integers = torch.randn_like, torch.randint

    def randn_like(tensor: Tensor, *args: Any, **more: Any) -> Tensor:
        return next(noises) if tensor.ndim == 4 else like(tensor, *args, **more)

    def randint(*args: Any, **more: Any) -> Tensor:
        return next(levels) if args[:1] == (0,) and len(args) == 3 else integers(*args, **more)

    torch.randn_like, torch.randint = randn_like, randint
    for name in ("DreamBoothDataset", "CustomDiffusionDataset", "TextualInversionDataset"):
        if hasattr(module, name):
            setattr(module, name, lambda *args, **more: Views(module, tape, said, more))
    _begin_loras(tape)
    _encode_nothing()


class Views(torch.utils.data.Dataset):
    """The pictures of a tape in order, whatever index is asked for, as a script's own dataset gives them."""

    custom_instance_prompts = None

    def __init__(self, module: Any, tape: Tape, said: dict[str, str], given: dict[str, Any]) -> None:
        self.tokenizer, self.said, self.count = given.get("tokenizer"), said, sum(p.own for p in tape.parts)
        self.inversion = hasattr(module, "TextualInversionDataset")
        self.pictures = self._pictures(tape)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return next(self.pictures)

    def _pictures(self, tape: Tape) -> Iterator[dict[str, Any]]:
        for part in tape.parts:
            for k in range(part.own):
                yield self._picture(part, k)

    def _picture(self, part: Part, k: int) -> dict[str, Any]:
        own = self._ids(part.prompts[k])
        if self.inversion:
            return {"pixel_values": part.clean[k], "input_ids": own[0]}
        found = {
            "instance_images": part.clean[k],
            "instance_prompt_ids": own,
            "instance_attention_mask": torch.ones_like(own),
            "instance_prompt": part.prompts[k],
            "mask": part.masks[k],
            "original_size": (16, 16),
            "crop_top_left": (0, 0),
        }
        if len(part.prompts) > part.own:
            ids = self._ids(part.prompts[part.own + k])
            found |= {
                "class_images": part.clean[part.own + k],
                "class_prompt_ids": ids,
                "class_attention_mask": torch.ones_like(ids),
                "class_prompt": part.prompts[part.own + k],
                "class_mask": torch.ones_like(part.masks[k]),
            }
        return found

    def _ids(self, prompt: str) -> Tensor:
        for ours, theirs in self.said.items():
            prompt = prompt.replace(ours, theirs)
        if self.tokenizer is None:
            return torch.zeros(1, 1, dtype=torch.int64)
        return self.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids


def _begin_loras(tape: Tape) -> None:
    """A LoRA that PEFT lays on a UNet begins with the tape's down factors."""
    from diffusers.loaders import PeftAdapterMixin

    lay = PeftAdapterMixin.add_adapter

    def add_adapter(self: Any, *args: Any, **more: Any) -> None:
        lay(self, *args, **more)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("lora_A.default.weight"):
                    parameter.copy_(tape.downs[name.removesuffix(".lora_A.default.weight")])

    PeftAdapterMixin.add_adapter = add_adapter


def _learn_alone(maps: list[str]) -> None:
    """Of a UNet that learns in full these maps do, as in ours; convolutions, norms and biases stand still."""
    from diffusers import UNet2DConditionModel

    train = UNet2DConditionModel.train

    def training(self: Any, mode: bool = True) -> Any:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.removesuffix(".weight") in maps)
        return train(self, mode)

    UNet2DConditionModel.train = training


def _encode_nothing() -> None:
    """Pictures are latents already, scaled as a UNet reads them."""
    from diffusers import AutoencoderKL

    class Latents:
        def __init__(self, vae: Any, latents: Tensor) -> None:
            self.latent_dist, self.given = self, latents / vae.config.scaling_factor

        def sample(self) -> Tensor:
            return self.given

    AutoencoderKL.encode = lambda self, pictures: Latents(self, pictures)


def _imported(script: Path) -> Any:
    """The script as a module; it asks for the very newest diffusers, of which it needs nothing here."""
    spec = importlib.util.spec_from_file_location("script", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch("diffusers.utils.check_min_version"):
        spec.loader.exec_module(module)
    return module


def _without_torchvision() -> None:
    """Where torchvision is not installed the scripts can be imported; nothing of it is used here."""
    import diffusers  # noqa: F401  (it looks for torchvision, and must not find this)
    import transformers  # noqa: F401

    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = mock.MagicMock(__spec__=ModuleSpec(name, None))


if __name__ == "__main__":
    end = sys.argv.index("--")
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[end + 1 :])
