"""Runs one example script of diffusers, in this process, on what a tape holds.

    python -m benchmarks.parity_script SCRIPT TAPE -- OPTIONS OF THE SCRIPT

The script is its own: its model, loss, optimizer, schedule and files. What is put in its place is chance: the
latents, the noise, the noise levels, the prompts in their order, and the first values of what learns.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from functools import wraps
from importlib.machinery import ModuleSpec
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.parity_tape import Part, Tape
from tests import language_model_tiny

LEVELS = 1000
DATASETS = ("DreamBoothDataset", "CustomDiffusionDataset", "TextualInversionDataset")
SIDE = 16


def main(script: Path, tape_file: Path, options: list[str]) -> None:
    stored = torch.load(tape_file, weights_only=True)
    _without_torchvision()
    module = _imported(script)
    args = module.parse_args(options) if module.parse_args.__code__.co_argcount else _parsed(module, options)
    module.args = args  # which its functions read, as where it is run as a program
    play(module, Tape.from_json(stored["tape"]), stored["said"])
    _miniature(module, stored["prompts"])
    if "z_image" in script.name:
        _mend(module)
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
        if tensor.ndim < 4:
            return like(tensor, *args, **more)
        noise = next(noises)
        if noise.shape[-2:] != tensor.shape[-2:]:  # FLUX.2's is of patches
            return patched(noise)
        return noise.unsqueeze(2) if tensor.ndim == 5 else noise

    def randint(*args: Any, **more: Any) -> Tensor:
        return next(levels) if args[:1] == (0,) and len(args) == 3 else integers(*args, **more)

    def share(*args: Any, **more: Any) -> Tensor:
        """Of the way from noise to picture: the scripts count levels down from the noise."""
        return (LEVELS - next(levels) - 0.5) / LEVELS

    torch.randn_like, torch.randint = randn_like, randint
    if hasattr(module, "compute_density_for_timestep_sampling"):
        module.compute_density_for_timestep_sampling = share
    for name in DATASETS:
        if hasattr(module, name):
            setattr(module, name, lambda *args, **more: Views(module, tape, said, more))
    _begin_loras(tape)
    _encode_nothing()


class Views(torch.utils.data.Dataset):
    """The pictures of a tape in order, whatever index is asked for, as a script's own dataset gives them."""

    custom_instance_prompts = None

    def __init__(self, module: Any, tape: Tape, said: dict[str, str], given: dict[str, Any]) -> None:
        names = [name for name in ("tokenizer", "tokenizer_1", "tokenizer_2") if given.get(name)]
        self.tokenizers = {name.replace("tokenizer", "input_ids"): given[name] for name in names}
        self.said, self.count = said, sum(p.own for p in tape.parts)
        self.inversion = hasattr(module, "TextualInversionDataset")
        self.pictures = self._pictures(tape)
        self.num_instance_images, self.buckets = self.count, [(SIDE, SIDE)]
        self.pixel_values = [(None, 0)] * self.count  # where pictures of a size are looked for

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return next(self.pictures)

    def _pictures(self, tape: Tape) -> Iterator[dict[str, Any]]:
        for part in tape.parts:
            for k in range(part.own):
                yield self._picture(part, k)

    def _picture(self, part: Part, k: int) -> dict[str, Any]:
        sizes = {"original_size": (SIDE, SIDE), "crop_top_left": (0, 0)}
        if self.inversion:
            ids = {name: self._ids(part.prompts[k], name)[0] for name in self.tokenizers}
            return {"pixel_values": part.clean[k], **ids, **sizes}
        found = {"index": 0, "bucket_idx": 0, "mask": part.masks[k], **sizes}
        found |= self._read("instance", part.prompts[k], part.clean[k])
        if len(part.prompts) > part.own:
            found |= self._read("class", part.prompts[part.own + k], part.clean[part.own + k])
            found |= {"class_mask": torch.ones_like(part.masks[k])}
        return found

    def _read(self, whose: str, prompt: str, latents: Tensor) -> dict[str, Any]:
        ids = self._ids(prompt)
        return {
            f"{whose}_images": latents,
            f"{whose}_prompt": self._words(prompt),
            f"{whose}_prompt_ids": ids,
            f"{whose}_attention_mask": torch.ones_like(ids),
        }

    def _words(self, prompt: str) -> str:
        for ours, theirs in self.said.items():
            prompt = prompt.replace(ours, theirs)
        return prompt

    def _ids(self, prompt: str, name: str = "input_ids") -> Tensor:
        if name not in self.tokenizers:
            return torch.zeros(1, 1, dtype=torch.int64)
        return self.tokenizers[name](
            self._words(prompt), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
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
    """Pictures are latents already, scaled as a denoiser reads them."""
    from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage

    for kind in (AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage):
        kind.encode = lambda self, pictures: Latents(self, pictures)


class Latents:
    """What an autoencoder would have given: its distribution, with nothing to draw, or the latents."""

    def __init__(self, vae: Any, latents: Tensor) -> None:
        config, self.latent_dist = vae.config, self
        if "latents_std" in config and config.latents_std:
            shift, scale = (torch.tensor(config[name]) for name in ("latents_mean", "latents_std"))
            self.latent = latents * scale.view(1, -1, 1, 1, 1) + shift.view(1, -1, 1, 1, 1)
        elif hasattr(vae, "bn"):
            scale = (vae.bn.running_var + config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
            self.latent = unpatched(patched(latents) * scale + vae.bn.running_mean.view(1, -1, 1, 1))
        else:
            self.latent = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)

    def sample(self) -> Tensor:
        return self.latent

    mode = sample


def patched(cells: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, 4 c, h / 2, w / 2), as torch takes squares of 2 x 2 cells apart."""
    return torch.nn.functional.pixel_unshuffle(cells, 2)


def unpatched(squares: Tensor) -> Tensor:
    """The way back."""
    return torch.nn.functional.pixel_shuffle(squares, 2)


def _miniature(module: Any, skipped: int | None) -> None:
    """A miniature's tokenizers and text encoder are of other classes, and its template is of other tokens."""
    from diffusers import QwenImagePipeline
    from diffusers.pipelines import pipeline_utils
    from transformers import PreTrainedTokenizerFast, Qwen3Model

    if hasattr(module, "Qwen3ForCausalLM"):
        module.Qwen3ForCausalLM = language_model_tiny.DeepQwen
        pipeline_utils.maybe_raise_or_warn = lambda *parts, **more: None  # a class that no library has
    if hasattr(module, "T5TokenizerFast"):
        module.T5TokenizerFast = PreTrainedTokenizerFast
    if skipped is None:
        return
    module.Qwen2_5_VLForConditionalGeneration = Qwen3Model
    begin = QwenImagePipeline.__init__

    @wraps(begin)
    def begun(self: Any, *args: Any, **parts: Any) -> None:
        begin(self, *args, **parts)
        self.prompt_template_encode_start_idx = skipped

    QwenImagePipeline.__init__ = begun


def _mend(module: Any) -> None:
    """Z-Image's script cannot keep a class as it is, as it takes lists of prompts for tensors; mended here.

    It would stop at putting both prompts together, and then repeat them from step to step: the class's
    picture would get the subject's prompt.
    """
    collate = module.collate_fn

    class Joining:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def cat(self, parts: Any, dim: int = 0) -> Any:
            return list(chain(*parts)) if isinstance(parts[0], list) else torch.cat(parts, dim)

    def one_prompt_each(*args: Any, **more: Any) -> Any:
        batch = collate(*args, **more)
        return batch | {"prompts": batch["prompts"][:1]}

    module.torch, module.collate_fn = Joining(), one_prompt_each


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
