"""All that waits for a GPU, in one program of parts that each take less than nine minutes.

    python -m benchmarks.gpu [--part NAME ...] [--list] [--device cuda] [--size full] [--examples DIR]

`--device cpu --size tiny` proves the program where there is none. Weights are random, and shapes published.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig
from PIL import Image
from torch import nn

from benchmarks.gpu_bases import pipeline
from benchmarks.learn_speed import forget_peak, peak_gb
from benchmarks.report import finish, use_own_cores
from conceptkit.base import conditioning, devices
from conceptkit.base import pipeline as bases
from conceptkit.base.noise_schedule import schedule_of
from conceptkit.concepts.concept import Concept
from conceptkit.data.photos import PhotoSet
from conceptkit.errors import ConceptError
from conceptkit.features import caption_statistics, captions
from conceptkit.inference.attach import attach
from conceptkit.inference.generate import draw
from conceptkit.learn import latent_dataset
from conceptkit.learn.config import config_for
from conceptkit.learn.request import TrainRequest
from conceptkit.learn.session import Session
from conceptkit.learn.subject import Subject
from conceptkit.learn.trainer import train
from conceptkit.tuners import targets
from tests.tiny import pico_concept

LIMIT = 540.0
"""Seconds that a part may take."""
CAPTIONS = 24
SWAPS = 20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Bench:
    """Where it runs, at which size, in how many steps, and where diffusers' examples are."""

    device: torch.device
    size: str
    steps: int
    examples: Path | None = None

    @property
    def half(self) -> str:
        """The precision in which real bases learn there."""
        return "bf16" if self.device.type == "cuda" else "fp32"

    def base(self, family: str = "sd15", dtype: str = "", size: str = "") -> bases.Base:
        """A base of a family."""
        return bases.of(pipeline(family, size or self.size, self.device, DTYPES[dtype or self.half]), family)


def synchronized(device: torch.device) -> float:
    """The time, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def photo(base: bases.Base) -> Image.Image:
    """Noise, of the size that the base learns from."""
    side = latent_dataset.picture_size(base)
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))


def learned(base: bases.Base, steps: int, **changes: Any) -> tuple[Concept, dict[str, Any]]:
    """A LoRA by the row of the base's family, and what it cost: seconds of a step and of all, peak memory."""
    recipe = config_for("dreambooth", family=base.family.name)
    recipe = replace(
        recipe,
        max_train_steps=steps,
        train_batch_size=1,
        gradient_accumulation_steps=1,
        num_augmented_views=1,
        prior_loss_weight=0.0,
        gradient_checkpointing=True,
    )
    ends: list[float] = []

    def tick(done: int, total: int, text: str) -> None:
        if text == "learning the delta":
            ends.append(synchronized(base.device))

    few = captions.captions(base.family.name)[:CAPTIONS]
    forget_peak(base.device)
    begun = synchronized(base.device)
    with mock.patch.object(caption_statistics, "captions", lambda name: few):
        subject = Subject("my_dog", "dog", PhotoSet((photo(base),), ("noise",), "noise"))
        made = train(TrainRequest((subject,), replace(recipe, **changes)), Session(base, progress=tick)).whole
    whole = synchronized(base.device) - begun
    each = float(np.median(np.diff(ends))) if len(ends) > 2 else None
    return made, {"seconds_per_step": each, "seconds": whole, "peak_gb": peak_gb(base.device)}


def plain_loop(base: bases.Base, steps: int, half: str) -> dict[str, Any]:
    """The same as diffusers' scripts do it: in each step the picture and the prompt are encoded anew."""
    denoiser, schedule = base.denoiser, schedule_of(base.pipe.scheduler)
    maps = targets.find(denoiser, base.architecture.presets["attn"])
    for part in (denoiser, base.pipe.vae, *(encoder for _, encoder in base.encoders)):
        part.requires_grad_(False)
    denoiser.add_adapter(
        LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=list(maps))
    )
    denoiser.enable_gradient_checkpointing()
    denoiser.train()
    weights = [p for p in denoiser.parameters() if p.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    optimizer, dice = torch.optim.AdamW(weights, lr=1e-4, weight_decay=1e-2), torch.Generator().manual_seed(0)
    pixels = (
        torch.from_numpy(np.array(photo(base))).permute(2, 0, 1)[None].float().to(base.device) / 127.5 - 1
    )
    forget_peak(base.device)
    ends = [synchronized(base.device)]
    for _ in range(steps):
        with torch.no_grad():
            clean = base.architecture.latents(base.pipe, pixels)
            read = conditioning.encode(base.pipe, ["a photo of sks dog"])
        noise = torch.randn(clean.shape, generator=dice).to(clean)
        t = torch.randint(len(schedule), (1,), generator=dice)
        noisy, wanted = schedule.add_noise(clean, noise, t), schedule.target(clean, noise, t)
        with torch.autocast(base.device.type, DTYPES[half], enabled=half != "fp32"):
            noisy = noisy.to(base.dtype)
            found = conditioning.predict(base.pipe, noisy, schedule.told(t).to(base.device), read)
        F.mse_loss(found.float(), wanted.float()).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(synchronized(base.device))
    denoiser.unload_lora()
    denoiser.disable_gradient_checkpointing()
    denoiser.eval()
    return {"seconds_per_step": float(np.median(np.diff(ends))), "peak_gb": peak_gb(base.device)}


def attempt(action: Callable[[], Any]) -> Any:
    """What it gives, or the sentence with which it is refused here."""
    try:
        return action()
    except ConceptError as error:
        return {"refused": str(error)}


def precision(bench: Bench) -> dict[str, Any]:
    """CPU in float32 against the device in float32, bf16 and fp16: a LoRA and a picture of a miniature."""
    there = replace(bench, device=torch.device("cpu"))
    wanted, picture = _learned_and_drawn(there, "fp32")
    found: dict[str, Any] = {}
    for dtype in DTYPES:

        def compare(dtype: str = dtype) -> dict[str, float]:
            delta, drawn = _learned_and_drawn(bench, dtype)
            off = (delta - wanted).norm() / wanted.norm()
            return {"delta_off": float(off), "pixels_off": float(np.abs(drawn - picture).mean())}

        found[dtype] = attempt(compare)
    return found


def _learned_and_drawn(bench: Bench, dtype: str) -> tuple[torch.Tensor, np.ndarray]:
    """All of a delta, and a picture drawn in that precision with one that was learned in float32."""
    made, _ = learned(bench.base(dtype="fp32", size="tiny"), 8, mixed_precision=dtype)
    delta = torch.cat([made.delta[name].dense().float().flatten() for name in made.delta])
    base = bench.base(dtype=dtype, size="tiny")
    concept = pico_concept(base.pipe)
    with attach(base.pipe, concept):
        (drawn,) = draw(base, ["a photo of a my_dog"], [0], steps=4)
    return delta, np.asarray(drawn, dtype=np.float32) / 255


def _steps(family: str) -> Callable[[Bench], dict[str, Any]]:
    def run(bench: Bench) -> dict[str, Any]:
        base = bench.base(family)
        _, mine = learned(base, bench.steps, mixed_precision=bench.half)
        plain = plain_loop(base, bench.steps, bench.half)
        share = mine["seconds_per_step"] / plain["seconds_per_step"] if mine["seconds_per_step"] else None
        return {"ours": mine, "plain": plain, "share_of_plain": share}

    return run


def compiled(bench: Bench) -> dict[str, Any]:
    """A step with torch.compile and without."""
    base, found = bench.base(), {}
    for name, wish in (("plain", False), ("compiled", True)):
        found[name] = attempt(
            lambda wish=wish: learned(base, bench.steps, mixed_precision=bench.half, torch_compile=wish)[1]
        )
    return found


def few_bits(bench: Bench) -> dict[str, Any]:
    """A base in 4 bits beside itself: a picture, a step, memory."""
    with _saved(bench, "sdxl") as folder:
        return {
            "as it is": _loaded(bench, folder, bench.steps),
            "4 bit": _loaded(bench, folder, bench.steps, quantization="bnb-4bit"),
        }


def offloaded(bench: Bench) -> dict[str, Any]:
    """Drawing with parts that wait on the CPU, beside none that do."""
    with _saved(bench, "sdxl") as folder:
        return {
            "none": _loaded(bench, folder),
            "model": _loaded(bench, folder, offload="model"),
            "group": _loaded(bench, folder, offload="group"),
        }


@contextmanager
def _saved(bench: Bench, family: str) -> Iterator[str]:
    """The folder of a base, made on the device."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline(family, bench.size, bench.device, DTYPES[bench.half]).save_pretrained(folder)
        gc.collect()
        yield folder


def _loaded(bench: Bench, folder: str, steps: int = 0, **options: str) -> Any:
    """A base loaded from its folder in some way: what a picture with a concept costs, and some steps."""

    def run() -> dict[str, Any]:
        base = bases.load(folder, device=str(bench.device), dtype=bench.half, **options)
        forget_peak(bench.device)
        begun = synchronized(bench.device)
        with attach(base.pipe, pico_concept(base.pipe)):
            draw(base, ["a photo of a my_dog"], [0], steps=4)
        spent = synchronized(bench.device) - begun
        found: dict[str, Any] = {"draw_seconds": spent, "draw_peak_gb": peak_gb(bench.device)}
        if steps:
            found["learn"] = learned(base, steps, mixed_precision=bench.half)[1]
        return found

    gc.collect()
    return attempt(run)


def swapped(bench: Bench) -> dict[str, Any]:
    """Attaching a concept and exchanging it for another: milliseconds, and whether the base is as it was."""
    base = bench.base()
    pair = [pico_concept(base.pipe, name, rank=4, seed=i) for i, name in enumerate(("my_dog", "my_cat"))]
    before, spent = bases.fingerprint_of(base.pipe), []
    begun = synchronized(bench.device)
    attachment = attach(base.pipe, pair[0])
    attaching = synchronized(bench.device) - begun
    for i in range(SWAPS):
        begun = synchronized(bench.device)
        attachment.swap(pair[i % 2].name, pair[1 - i % 2])
        spent.append(synchronized(bench.device) - begun)
    attachment.detach()
    same = bases.fingerprint_of(base.pipe) == before
    return {"attach_ms": 1e3 * attaching, "swap_ms": 1e3 * statistics.median(spent), "base_as_before": same}


def scripts(bench: Bench) -> dict[str, Any]:
    """diffusers' own train_dreambooth_lora.py on the same base: seconds of a step."""
    if bench.examples is None:
        return {"left_out": "diffusers' scripts are run where --examples names their folder"}
    script = bench.examples / "dreambooth" / "train_dreambooth_lora.py"
    with tempfile.TemporaryDirectory() as home:
        folder, shots = Path(home) / "base", Path(home) / "photos"
        base = bases.of(pipeline("sd15", bench.size, torch.device("cpu"), torch.float32), "sd15")
        base.pipe.save_pretrained(folder)
        shots.mkdir()
        photo(base).save(shots / "noise.png")
        spent = []
        for steps in (bench.steps, 3 * bench.steps):
            told = {
                "pretrained_model_name_or_path": folder,
                "instance_data_dir": shots,
                "instance_prompt": "a photo of sks dog",
                "output_dir": Path(home) / "out",
                "resolution": latent_dataset.picture_size(base),
                "train_batch_size": 1,
                "max_train_steps": steps,
                "mixed_precision": {"fp32": "no"}.get(bench.half, bench.half),
            }
            command = [sys.executable, str(script), *(f"--{name}={value}" for name, value in told.items())]
            begun = time.perf_counter()
            ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT / 2)
            if ended.returncode:
                return {"refused": f"{script.name} ends with: {ended.stderr.strip()[-300:]}"}
            spent.append(time.perf_counter() - begun)
    return {"seconds_per_step": (spent[1] - spent[0]) / (2 * bench.steps)}


PARTS: Mapping[str, tuple[str, Callable[[Bench], dict[str, Any]]]] = {
    "precision": ("CPU in float32 against the device in float32, bf16 and fp16", precision),
    "sd15": ("a step at Stable Diffusion 1.5's shape beside a plain loop", _steps("sd15")),
    "sdxl": ("a step at SDXL's shape beside a plain loop", _steps("sdxl")),
    "flux": ("a step at FLUX.1's shape beside a plain loop", _steps("flux")),
    "compile": ("a step with torch.compile and without", compiled),
    "4bit": ("SDXL's shape in 4 bits: drawing, learning, memory", few_bits),
    "offload": ("SDXL's shape with parts that wait on the CPU", offloaded),
    "swap": ("attaching and exchanging concepts", swapped),
    "scripts": ("diffusers' own script on the same base, with --examples", scripts),
}


@click.command()
@click.option("--part", "names", multiple=True, type=click.Choice(list(PARTS)), help="[default: all]")
@click.option("--list", "listed", is_flag=True, help="Only say what parts there are.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--size", type=click.Choice(("full", "tiny")), default="full", show_default=True)
@click.option("--steps", default=20, show_default=True, help="Steps that are timed.")
@click.option("--examples", type=click.Path(path_type=Path, exists=True), help="diffusers' examples.")
def main(
    names: tuple[str, ...], listed: bool, device: str, size: str, steps: int, examples: Path | None
) -> None:
    if listed:
        for name, (told, _) in PARTS.items():
            click.echo(f"{name:10} {told}")
        return
    if device.startswith("cuda") and not torch.cuda.is_available():
        click.echo(
            "There is no CUDA device here; give --device cpu --size tiny to try the program without one."
        )
        return
    use_own_cores()
    bench = Bench(torch.device(devices.choose(device)), size, steps, examples)
    found: dict[str, Any] = {}
    for name in names or PARTS:
        begun = time.perf_counter()
        found[name] = PARTS[name][1](bench)
        found[name]["part_seconds"] = time.perf_counter() - begun
        print(name, found[name], flush=True)
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    slowest = max(part["part_seconds"] for part in found.values())
    full = size == "full" and set(found) == set(PARTS) and bench.device.type == "cuda"
    finish(
        "gpu",
        slowest,
        "seconds of the slowest part",
        LIMIT,
        slowest <= LIMIT,
        [0],
        trial="" if full else f"{', '.join(found)} on {bench.device} at size {size}",
        parts=found,
        device=torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "cpu",
    )


if __name__ == "__main__":
    main()
