"""Whether a base can learn on the GPU that it is on: what that takes, what is saved there, what would fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from conceptkit.base.loading import DTYPES
from conceptkit.base.memory import GIB, LearningPlan, MemoryEstimate, estimate
from conceptkit.base.pipeline import Base
from conceptkit.base.quantization import bits_of, is_quantized
from conceptkit.errors import BadDevice
from conceptkit.learn import latent_dataset
from conceptkit.learn.methods.table import adapter_of
from conceptkit.learn.target_modules import UNET
from conceptkit.learn.train_config import TrainConfig


def capacity(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; None where there is no such limit, or nobody says it."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def plan_of(base: Base, recipe: TrainConfig, gradient_checkpointing: bool) -> LearningPlan:
    """What decides over the memory of a recipe on a base."""
    beside = recipe.prior_batch_size if recipe.prior_loss_weight else 0
    batch = -(-(recipe.train_batch_size + beside) // recipe.gradient_accumulation_steps)
    return LearningPlan(
        maps=_learned(base, recipe),
        pixels=latent_dataset.picture_size(base),
        batch=batch,
        dtype=next((name for name, one in DTYPES.items() if one == base.dtype), "fp32"),
        quantization=bits_of(base.denoiser),
        gradient_checkpointing=gradient_checkpointing,
        optimizer=recipe.optimizer,
        keeps_encoders=bool(
            recipe.text_encoder_rank or recipe.token_train_steps or recipe.train_token_jointly
        ),
        numbers=learned_numbers(base, recipe),
    )


def learned_numbers(base: Base, recipe: TrainConfig) -> int:
    """How many numbers learn at most at once: those of maps, and the word's."""
    widths = [encoder.get_input_embeddings().weight.shape[1] for _, encoder in base.encoders]
    found = recipe.num_vectors * sum(widths)
    return found + (adapter_of(recipe).learned_numbers(base, recipe) if recipe.max_train_steps else 0)


def needed(base: Base, recipe: TrainConfig, gradient_checkpointing: bool) -> MemoryEstimate:
    """The memory that a recipe takes on a base, by shapes alone."""
    plan = plan_of(base, recipe, gradient_checkpointing)
    return estimate(base.denoiser, idle_parts(base), base.architecture.cell(base.pipe), plan)


def saves_activations(base: Base, recipe: TrainConfig) -> bool:
    """Whether activations are computed twice: where the recipe says so, or the GPU is too small otherwise."""
    if recipe.gradient_checkpointing:
        return True
    room = capacity(base.device)
    if room is None or adapter_of(recipe).uses_reference(recipe):  # what is looked at is kept in between
        return False
    return needed(base, recipe, False).peak > room


def check(base: Base, recipe: TrainConfig) -> None:
    """Raises BadDevice where the GPU is too small for the recipe, with what it needs and what would fit."""
    room = capacity(base.device)
    if room is None:
        return
    found = needed(base, recipe, saves_activations(base, recipe))
    if found.peak <= room:
        return
    fitting = [text for text, size in _smaller(base, recipe) if size.peak <= room]
    advice = f"{fitting[0]} would fit" if fitting else "use a larger one, or a smaller base"
    raise BadDevice(
        f"{base.name} needs about {found.text()}, and {base.device} has {room / GIB:.1f} GiB; {advice}"
    )


def notices(base: Base, recipe: TrainConfig) -> list[str]:
    """A sentence where activations are computed twice though nobody asked for it."""
    if recipe.gradient_checkpointing or not saves_activations(base, recipe):
        return []
    room = capacity(base.device) or 0
    return [
        f"{base.device} has {room / GIB:.1f} GiB, so activations are computed twice (gradient "
        "checkpointing), which takes about a third more time."
    ]


def idle_parts(base: Base, text_encoders: bool = True) -> list[nn.Module]:
    """The parts that no step of learning reads once features and latents are cached."""
    encoders = [encoder for _, encoder in base.encoders] if text_encoders else []
    vae = getattr(base.pipe, "vae", None)
    return [*encoders, *([vae] if isinstance(vae, nn.Module) else [])]


@contextlib.contextmanager
def put_away(base: Base, text_encoders: bool) -> Iterator[None]:
    """The idle parts of a base wait on the CPU meanwhile, and are back on their devices afterwards."""
    waiting: list[tuple[nn.Module, torch.device]] = []
    try:
        for part in idle_parts(base, text_encoders) if base.device.type != "cpu" else ():
            device = next(part.parameters()).device
            if device == base.device:
                waiting.append((part, device))
                part.to("cpu")
        if waiting and base.device.type == "cuda":
            torch.cuda.empty_cache()
        yield
    finally:
        for part, device in waiting:
            part.to(device)


def _smaller(base: Base, recipe: TrainConfig) -> Iterator[tuple[str, MemoryEstimate]]:
    """Ways to need less, the least painful ones first."""
    beside, cell = idle_parts(base), base.architecture.cell(base.pipe)
    plan = plan_of(base, recipe, not adapter_of(recipe).uses_reference(recipe))
    fewer = {
        "--train-batch-size 1 --set prior_batch_size=1": 2,
        "--train-batch-size 1 and no class images": 1,
    }
    for text, batch in fewer.items():
        yield text, estimate(base.denoiser, beside, cell, replace(plan, batch=batch))
    if plan.dtype == "fp32":
        for text, batch in {"--dtype bf16": plan.batch, "--dtype bf16 --train-batch-size 1": 2}.items():
            yield text, estimate(base.denoiser, beside, cell, replace(plan, dtype="bf16", batch=batch))
    if not is_quantized(base.denoiser):
        few = replace(plan, dtype="bf16", quantization="bnb-4bit", batch=2)
        text = "--dtype bf16 --quantization bnb-4bit --train-batch-size 1"
        yield text, estimate(base.denoiser, beside, cell, few)


def _learned(base: Base, recipe: TrainConfig) -> dict[str, int]:
    """Map of the denoiser that learns -> how many numbers, with factors of its own or as a full matrix."""
    if not recipe.max_train_steps:
        return {}
    target = adapter_of(recipe).target_modules(base, recipe).get(UNET)
    found = {}
    for name, module in target.maps.items() if target else ():
        rank = recipe.rank if base.architecture.reads_text(name) else target.rank if target else 0
        outputs, inputs = module.out_features, module.in_features
        found[name] = rank * (outputs + inputs) if rank else outputs * inputs
    return found
