"""What learning will cost: memory by shapes alone, time by one pass of the base."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from conceptkit.base import conditioning
from conceptkit.base.memory import MemoryEstimate
from conceptkit.base.noise_schedule import schedule_of
from conceptkit.base.pipeline import Base
from conceptkit.learn import latent_dataset, memory
from conceptkit.learn.freeze import frozen, gradient_checkpointing
from conceptkit.learn.train_config import TrainConfig

BACKWARD = 2
"""Passes forward that one backward takes as long as."""


@dataclass(frozen=True)
class Costs:
    """memory: by shapes alone. seconds: of all steps. class_seconds: of class pictures. numbers: how many
    learn.
    """

    numbers: int
    memory: MemoryEstimate
    seconds: float
    class_seconds: float


def costs_of(base: Base, recipe: TrainConfig, class_images: int) -> Costs:
    """What a recipe costs on a base here, with so many class pictures to draw."""
    seconds = one_pass(base, recipe)
    beside = recipe.prior_batch_size if recipe.prior_loss_weight else 0
    batch = recipe.train_batch_size + beside
    passes = recipe.token_train_steps * recipe.train_batch_size + recipe.max_train_steps * batch
    guided = 2 if recipe.class_image_guidance_scale > 1 else 1
    return Costs(
        numbers=memory.learned_numbers(base, recipe),
        memory=memory.needed(base, recipe, memory.saves_activations(base, recipe)),
        seconds=passes * (1 + BACKWARD) * seconds,
        class_seconds=class_images * recipe.class_image_steps * guided * seconds,
    )


def one_pass(base: Base, recipe: TrainConfig) -> float:
    """The seconds that a picture's pass forward takes, with what it keeps for the way back.

    On a processor that has nothing else to do: other programs do not count.
    """
    side = latent_dataset.picture_size(base)
    clean = latent_dataset.encode(base, torch.zeros(1, 3, side, side)).requires_grad_()
    t = schedule_of(base.pipe.scheduler).told(torch.tensor([0])).to(base.device)
    with torch.no_grad():
        read = conditioning.encode(base.pipe, ["a picture"])
    with frozen(base), gradient_checkpointing(base, recipe):
        seconds = []
        for _ in range(2):  # the first one finds its way
            begun, computed = time.perf_counter(), time.process_time()
            found = conditioning.predict(base.pipe, clean.to(base.dtype), t, read)
            float(found.detach().float().sum())  # an accelerator has finished then
            seconds.append(time.perf_counter() - begun)
            if torch.device(base.pipe._execution_device).type == "cpu":
                own = (time.process_time() - computed) / torch.get_num_threads()
                seconds[-1] = min(own, seconds[-1])
    return min(seconds)
