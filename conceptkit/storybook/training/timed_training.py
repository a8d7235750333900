"""A training loop given minutes instead of steps: it survives being stopped and picks up where it was."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from conceptkit.base import devices
from conceptkit.storybook.training.muon import Muon

console = Console()
WEIGHT_DECAY, MAX_NORM = 0.01, 1.0


class CoreMinutes(float):
    """Minutes of the processor's time, all threads counted, for where other work shares the processor."""


def half(device: str = "cpu") -> torch.autocast:
    """bfloat16 on accelerators and on a CPU that multiplies it, float32 elsewhere."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind != "cpu" or devices.has_bfloat16())


def one_cycle(done: float, warm: float = 0.02, hold: float = 0.5) -> float:
    """Learning-rate factor at the fraction `done` of the time: short warm-up, plateau, cosine to zero."""
    if done < warm:
        return max(done / warm, 0.02)
    if done < hold:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((done - hold) / (1 - hold), 1.0)))


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    minutes: float,
    lr: float,
    checkpoint: Path,
    decay: float | None = None,
    hold: float = 0.5,
    muon: bool = False,
) -> nn.Module:
    """Train `model` in place for `minutes`; returns its moving average (decay given) or the model itself.

    `loss_of(step)` must depend on the step alone for its randomness. A checkpoint is kept every minute
    (every 20 seconds of CoreMinutes); a finished one is recognised, so that calling again costs nothing.
    """
    optimiser: torch.optim.Optimizer | Muon = (
        Muon(model.parameters(), lr, WEIGHT_DECAY)
        if muon
        else torch.optim.AdamW(
            model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98), fused=True
        )
    )
    average = copy.deepcopy(model).requires_grad_(False) if decay else model
    step, spent = 0, 0.0
    cores = isinstance(minutes, CoreMinutes)
    clock, keep_every = (time.process_time, 20) if cores else (time.monotonic, 60)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average.load_state_dict(saved["average"])
        step, spent = saved["step"], saved["spent"]
    last, shown, running = clock(), 0.0, None

    def save() -> None:
        part = checkpoint.with_suffix(".part")
        state = {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average.state_dict(),
        }
        torch.save({**state, "step": step, "spent": spent}, part)
        part.replace(checkpoint)

    model.train()
    saved_at = spent
    while spent < minutes * 60:
        for group in optimiser.param_groups:
            group["lr"] = lr * one_cycle(spent / (minutes * 60), hold=hold)
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimiser.step()
        step += 1
        if decay:
            rate = min(decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - rate)
        now = clock()
        # a pause of the whole process (a suspended laptop) is not training time
        spent, last = spent + min(now - last, 30.0), now
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if spent - shown > 20:
            console.print(
                f"{checkpoint.stem}: {spent / 60:.1f} of {minutes:g} min, step {step}, loss {running:.5f}"
            )
            shown = spent
        if spent - saved_at > keep_every:
            save()
            saved_at = spent
    save()
    for buffer, source in zip(average.buffers(), model.buffers(), strict=True):
        buffer.copy_(source)
    return average.eval()
