"""The storybook's UNet teaches a flow: what it predicts at a noise, as the velocity at that noise.

A sample's own velocity, noise minus picture, tells of one picture among all that the caption allows. The
UNet's prediction is their mean, so a small model learns from far fewer samples of it (progressive
distillation, 2202.00512, matches a student to a teacher's prediction in the same way). Predictions are
written to shards once, and read again and again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from conceptkit.storybook.training import autoencoder, timed_training

BLOCK = 2000
"""Scenes in a shard."""
SHARDS = "shards"
"""Their folder in the cache."""
TIMES = 0.4, 1.0, 0.2
"""Of flow times: mean and deviation of their logit, and the share that is uniform."""


class Batch(NamedTuple):
    """Samples of a shard: noisy latents and velocities (n, 8, 16, 16), timesteps (n,), tokens (n, length)."""

    noisy: Tensor
    velocity: Tensor
    timestep: Tensor
    ids: Tensor


def flow_times(schedule: DDIMScheduler) -> Tensor:
    """Flow times s (1000,) of the schedule's timesteps, growing, the last one 1.

    (1 - s) x + s e has the signal-to-noise ratio of sqrt(a) x + sqrt(1 - a) e.
    """
    signal, noise = schedule.alphas_cumprod.sqrt(), (1 - schedule.alphas_cumprod).sqrt()
    return noise / (signal + noise)


def velocity(predicted: Tensor, noisy: Tensor, t: Tensor, schedule: DDIMScheduler) -> Tensor:
    """The flow's velocity e - x (n, c, h, w) that a v-prediction (n, c, h, w) stands for.

    noisy: sqrt(a) x + sqrt(1 - a) e, the schedule's own noisy latents; t: integer timesteps (n,). With
    v = sqrt(a) e - sqrt(1 - a) x (2202.00512, appendix D), x and e follow by rotation.
    """
    a = schedule.alphas_cumprod.to(noisy)[t][:, None, None, None]
    signal, noise = a.sqrt(), (1 - a).sqrt()
    return (noise - signal) * noisy + (signal + noise) * predicted


def draw_timesteps(count: int, schedule: DDIMScheduler, generator: torch.Generator) -> Tensor:
    """Timesteps (count,) whose flow times are logit-normal (Esser et al. 2024, 3.1), some uniform."""
    mean, deviation, anywhere = TIMES
    shaped = (mean + deviation * torch.randn(count, generator=generator)).sigmoid()
    uniform = torch.rand(count, generator=generator)
    wanted = torch.where(torch.rand(count, generator=generator) < anywhere, uniform, shaped)
    return torch.searchsorted(flow_times(schedule), wanted).clamp(max=999)


class Teacher:
    """The UNet with its text encoder and schedule, all standing still."""

    def __init__(
        self, unet: UNet2DConditionModel, encoder: CLIPTextModelWithProjection, schedule: DDIMScheduler
    ) -> None:
        self.unet = unet.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.encoder = encoder.requires_grad_(False).eval()
        self.schedule = schedule

    @torch.no_grad()
    def targets(self, clean: Tensor, ids: Tensor, seed: int, batch: int = 100) -> Batch:
        """Noise latents (n, 8, 16, 16) of captions (n, length) and predict their velocities, in float16."""
        generator = torch.Generator().manual_seed(seed)
        t = draw_timesteps(len(clean), self.schedule, generator)
        s = flow_times(self.schedule)[t][:, None, None, None]
        noise = torch.randn(clean.shape, generator=generator)
        noisy = (1 - s) * clean.float() + s * noise
        a = self.schedule.alphas_cumprod[t][:, None, None, None]
        x = noisy * (a.sqrt() + (1 - a).sqrt())
        out = []
        for k in range(0, len(x), batch):
            part = slice(k, k + batch)
            with timed_training.half():
                context = self.encoder(input_ids=ids[part].long()).last_hidden_state
                seen = x[part].contiguous(memory_format=torch.channels_last)
                predicted = self.unet(seen, t[part], context).sample.float()
            out.append(velocity(predicted, x[part], t[part], self.schedule).half())
        return Batch(noisy.half(), torch.cat(out).contiguous(), t.short(), ids.short())


def write_shards(
    teacher: Teacher,
    vae: AutoencoderKL,
    pictures: np.ndarray,
    ids: np.ndarray,
    count: int,
    cache: Path,
) -> None:
    """Write shards 0 to count - 1 that are missing, each of the next BLOCK scenes with their next captions.

    pictures uint8 (n, 64, 64, 3), n a multiple of BLOCK; ids int (n, variants, length).
    """
    blocks, variants = len(pictures) // BLOCK, ids.shape[1]
    folder = cache / SHARDS
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        file = folder / f"{k:04}.pt"
        if file.exists():
            continue
        scenes = slice(k % blocks * BLOCK, (k % blocks + 1) * BLOCK)
        store = cache / "latents" / f"{k % blocks:04}.pt"
        if not store.exists():
            store.parent.mkdir(exist_ok=True)
            _save(autoencoder.encode(vae, pictures[scenes]), store)
        clean = torch.load(store, weights_only=True)
        told = torch.from_numpy(ids[scenes, k // blocks % variants])
        _save(dict(teacher.targets(clean, told, seed=k)._asdict()), file)
        timed_training.console.print(f"shard {k + 1} of {count}")


def _save(what: Tensor | dict[str, Tensor], file: Path) -> None:
    part = file.with_suffix(".part")
    torch.save(what, part)
    part.replace(file)


class Shards:
    """The shards of a folder, mapped into memory; more may come while they are read."""

    def __init__(self, cache: Path, weights: np.ndarray) -> None:
        """weights (n,): how often each scene is seen."""
        self.folder, self.weights, self.files = cache / SHARDS, weights, list[Path]()
        self.opened: list[Batch] = []

    def refresh(self) -> None:
        """Open the shards that are new."""
        files = sorted(self.folder.glob("*.pt"))
        if files == self.files:
            return
        self.opened = [Batch(**torch.load(f, weights_only=True, mmap=True)) for f in files]
        blocks = len(self.weights) // BLOCK
        parts = [self.weights.reshape(blocks, -1)[int(f.stem) % blocks] for f in files]
        chance = np.concatenate(parts).cumsum()
        self.files, self.chance = files, chance / chance[-1]

    def sample(self, rng: np.random.Generator, count: int) -> Batch:
        """Random samples in float32, of all shards that are open."""
        picks = np.searchsorted(self.chance, rng.uniform(size=count)).clip(max=len(self.chance) - 1)
        size = len(self.chance) // len(self.opened)
        rows = [[part[int(k % size)] for part in self.opened[int(k // size)]] for k in picks]
        noisy, speed, t, ids = (torch.stack(column) for column in zip(*rows, strict=True))
        return Batch(noisy.float(), speed.float(), t.long(), ids.long())
