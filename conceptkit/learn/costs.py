"""What learning will cost: memory by arithmetic, time by one pass of the base."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conceptkit.base import conditioning
from conceptkit.base.noise_schedule import schedule_of
from conceptkit.base.pipeline import Base
from conceptkit.learn import latent_dataset
from conceptkit.learn.freeze import frozen, gradient_checkpointing
from conceptkit.learn.methods.table import adapter_of
from conceptkit.learn.train_config import TrainConfig

MOMENTS = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}
"""Bytes that an optimizer keeps for each number that learns."""
BACKWARD = 2
"""Passes forward that one backward takes as long as."""


@dataclass(frozen=True)
class Costs:
    """weights, learning, activations: bytes of the base, of what learns with gradients and moments, and of
    what one part of a batch keeps for going back. seconds: of all steps. class_seconds: of class pictures.
    numbers: how many learn.
    """

    numbers: int
    weights: int
    learning: int
    activations: int
    seconds: float
    class_seconds: float

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.weights + self.learning + self.activations


def costs_of(base: Base, recipe: TrainConfig, class_images: int) -> Costs:
    """What a recipe costs on a base here, with so many class pictures to draw."""
    numbers = learned_numbers(base, recipe)
    kept, seconds = one_pass(base, recipe)
    beside = recipe.prior_batch_size if recipe.prior_loss_weight else 0
    batch = recipe.train_batch_size + beside
    passes = recipe.token_train_steps * recipe.train_batch_size + recipe.max_train_steps * batch
    guided = 2 if recipe.class_image_guidance_scale > 1 else 1
    modules = {id(m): m for m in base.pipe.components.values() if isinstance(m, nn.Module)}
    return Costs(
        numbers=numbers,
        weights=sum(p.numel() * p.element_size() for m in modules.values() for p in m.parameters()),
        learning=numbers * (8 + MOMENTS[recipe.optimizer]),
        activations=kept * -(-batch // recipe.gradient_accumulation_steps),
        seconds=passes * (1 + BACKWARD) * seconds,
        class_seconds=class_images * recipe.class_image_steps * guided * seconds,
    )


def learned_numbers(base: Base, recipe: TrainConfig) -> int:
    """How many numbers learn at most at once: those of maps, and the word's."""
    widths = [encoder.get_input_embeddings().weight.shape[1] for _, encoder in base.encoders]
    found = recipe.num_vectors * sum(widths)
    return found + (adapter_of(recipe).learned_numbers(base, recipe) if recipe.max_train_steps else 0)


def one_pass(base: Base, recipe: TrainConfig) -> tuple[int, float]:
    """Bytes that a picture's pass forward keeps for the way back, and the seconds that it takes."""
    side = latent_dataset.picture_size(base)
    clean = latent_dataset.encode(base, torch.zeros(1, 3, side, side)).requires_grad_()
    t = schedule_of(base.pipe.scheduler).told(torch.tensor([0])).to(base.device)
    with torch.no_grad():
        read = conditioning.encode(base.pipe, ["a picture"])
    kept: dict[int, int] = {}
    own = {p.data_ptr() for p in base.denoiser.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with frozen(base), gradient_checkpointing(base, recipe):
        seconds = []
        for _ in range(2):  # the first one finds its way
            kept.clear()
            begun = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                found = conditioning.predict(base.pipe, clean.to(base.dtype), t, read)
            float(found.detach().float().sum())  # an accelerator has finished then
            seconds.append(time.perf_counter() - begun)
    return sum(kept.values()), min(seconds)
