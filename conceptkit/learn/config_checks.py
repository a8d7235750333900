"""What can be known to fail before anything is drawn, encoded or learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

from conceptkit.base.attention import kv_maps
from conceptkit.base.distilled import check_learnable
from conceptkit.base.fused_projections import check_unfused
from conceptkit.base.noise_schedule import schedule_of
from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import encoders
from conceptkit.errors import BadBase, BadRecipe, ConceptError
from conceptkit.learn import loop_checks, mixed_precision
from conceptkit.learn.methods.base import Adapter
from conceptkit.learn.methods.table import METHODS, adapter_of
from conceptkit.learn.subject import Subject
from conceptkit.learn.target_modules import UNET
from conceptkit.learn.train_config import CHOICES, RATES, TrainConfig
from conceptkit.tuners.inject import ADAPTER
from conceptkit.tuners.kv_delta import carrier

LEAST = {
    "train_batch_size": 1,
    "num_augmented_views": 1,
    "num_vectors": 1,
    "gradient_accumulation_steps": 1,
    "token_train_steps": 0,
    "max_train_steps": 0,
    "rank": 0,
    "prior_batch_size": 0,
    "num_class_images": 0,
    "class_image_steps": 1,
    "text_encoder_rank": 0,
    "validation_steps": 0,
    "early_stopping_patience": 0,
    "extract_rank": 0,
    "class_noun_rows": 0,
    "gated_lora_rank": 0,
    "lr_warmup_steps": 0,
}
LAYERWISE_CASTING = "layerwise_casting"
"""What diffusers calls the hook of layers that are kept in less precision."""
MAY_BE_ZERO = ("key_learning_rate", "text_encoder_lr")
"""Rates of which 0 stands for another one."""
WEIGHTS = (
    "prior_loss_weight",
    "caption_preservation_weight",
    "special_token_preservation_weight",
    "sude_weight",
    "token_init_noise",
    "attention_regularization_weight",
    "adam_weight_decay",
    "max_grad_norm",
    "snr_gamma",
    "logit_std",
)


def check(base: Base, subjects: Sequence[Subject], recipe: TrainConfig) -> None:
    """Raises BadRecipe, BadBase or ConceptError with one sentence; nothing has been done then."""
    adapter = adapter_of(recipe)
    check_numbers(recipe)
    _check_together(recipe, adapter)
    mixed_precision.check(base.device, recipe)
    _check_precision(base)
    check_learnable(base)
    _check_dtype(base, recipe)
    loop_checks.check_schedule(recipe, schedule_of(base.pipe.scheduler))
    present = getattr(base.pipe.encode_prompt, "attachment", None)
    if present is not None and present.attached:
        carried, names = ", ".join(present.concepts), " and ".join(s.name for s in subjects)
        raise ConceptError(f"This pipeline carries {carried}, which {names} would build on; detach first")
    for subject in subjects:
        _check_subject(subject, recipe)
    adapter.check(base, subjects, recipe)
    _check_layers(base, recipe, adapter)
    _check_words(base, subjects, recipe)


def _check_dtype(base: Base, recipe: TrainConfig) -> None:
    """Raises BadRecipe where the weights are in a half precision that does not go with that of the pass."""
    autocast = mixed_precision.HALF.get(recipe.mixed_precision)
    if autocast is not None and base.dtype in mixed_precision.HALF.values() and base.dtype != autocast:
        own = next(name for name, one in mixed_precision.HALF.items() if one == base.dtype)
        raise BadRecipe(
            f"{base.name} is in {own}, which does not go with mixed_precision = {recipe.mixed_precision}; "
            f"give --mixed-precision {own}, or load the base in fp32"
        )


def check_drawing(base: Base) -> None:
    """Raises BadBase where the pipeline cannot draw with its scheduler, which class images need."""
    scheduler = base.pipe.scheduler
    if not hasattr(scheduler, "init_noise_sigma"):
        raise BadBase(
            f"{base.name} cannot draw: its scheduler {type(scheduler).__name__} has no init_noise_sigma, "
            f"which {type(base.pipe).__name__} asks for; load it with another one, for example DDIMScheduler"
        )


def check_numbers(recipe: TrainConfig) -> None:
    """Every number is in its range, every choice a known one."""
    for name, least in LEAST.items():
        if (value := getattr(recipe, name)) < least:
            raise BadRecipe(f"{name} = {value} makes no sense; give {least} or more")
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise BadRecipe(f"{f.name} = {value} is no number to learn with; give a finite one")
        if f.name in CHOICES and value not in CHOICES[f.name]:
            raise BadRecipe(f"{f.name} = {value!r} is unknown; choose one of {', '.join(CHOICES[f.name])}")
    for name in RATES:
        if getattr(recipe, name) <= 0 and name not in MAY_BE_ZERO:
            raise BadRecipe(f"{name} = {getattr(recipe, name)} learns nothing; give a positive rate")
    for name in (*WEIGHTS, *MAY_BE_ZERO):
        if getattr(recipe, name) < 0:
            raise BadRecipe(f"{name} = {getattr(recipe, name)} would learn the opposite; give 0 or more")
    if not 0 < recipe.max_timestep_fraction <= 1:
        raise BadRecipe(
            f"max_timestep_fraction = {recipe.max_timestep_fraction:g} is no share of the noise levels; "
            "give above 0 and up to 1"
        )
    loop_checks.check_numbers(recipe)
    if recipe.max_train_steps + recipe.token_train_steps == 0:
        raise BadRecipe("0 steps teach nothing; give at least one")


def _check_together(recipe: TrainConfig, adapter: Adapter) -> None:
    """What each makes sense alone, but not with the other."""
    if not recipe.max_train_steps and not adapter.word_alone:
        raise BadRecipe(
            f"{recipe.method} learns a word and no delta, so the adapter {adapter.name} means nothing; "
            "leave it out, or give it --set max_train_steps=100"
        )
    own = {method.adapter.name: method.adapter for method in METHODS.own()}
    if recipe.target_modules != "kv" and not adapter.has_target_modules:
        others = " or ".join(name for name, one in own.items() if one.has_target_modules)
        raise BadRecipe(
            f"target_modules = {recipe.target_modules} is about a LoRA or a kv delta, and the adapter "
            f"{adapter.name} has its own maps; use the adapter {others}, or leave it out"
        )
    adapter.check_recipe(recipe)
    for name, one in own.items():
        for field, why in one.own_fields.items():
            value = getattr(recipe, field)
            if value and not (name == adapter.name and one.reads_field(recipe, field)):
                raise BadRecipe(f"{field} {why}" if value is True else f"{field} = {value:g} {why}")
    words_learn = recipe.token_train_steps or recipe.train_token_jointly or recipe.text_encoder_rank
    if recipe.sude_weight and recipe.sude_prompts == "states" and not words_learn:
        raise BadRecipe(
            "sude_prompts = states asks for states while a word learns, and here none does; "
            "give sude_prompts = own, or token_train_steps above 0"
        )
    if recipe.gradient_accumulation_steps > recipe.train_batch_size:
        raise BadRecipe(
            f"A batch of {recipe.train_batch_size} has no {recipe.gradient_accumulation_steps} parts; "
            "lower gradient_accumulation_steps"
        )
    if recipe.early_stopping_patience and not recipe.validation_steps:
        raise BadRecipe(
            f"early_stopping_patience = {recipe.early_stopping_patience} waits for a validation; "
            "give validation_steps, for example 20"
        )


def _check_subject(subject: Subject, recipe: TrainConfig) -> None:
    name = subject.name
    if subject.kind == "style" and subject.noun:
        raise BadRecipe(
            f"The style {name} was given the class {subject.noun!r}, but a style has none; leave --class out"
        )
    if subject.noun is not None:
        return
    style = subject.kind == "style"
    if recipe.sude_weight:
        advice = "a style has none; leave --sude out" if style else "it has none; give --class NOUN"
        raise BadRecipe(f"SuDe draws {name} towards its class, and {advice}")
    if (
        subject.kind == "subject"
        and len(subject.photos) == 1
        and recipe.prior_loss_weight
        and recipe.max_train_steps
    ):
        raise BadRecipe(
            f"One photo of {name} and no class noun: there is no class to hold on to; "
            "give --class NOUN, or prior_loss_weight = 0"
        )


def _check_precision(base: Base) -> None:
    """Gradients need the weights as they were in the forward pass; diffusers puts such layers away again."""
    for part in (base.denoiser, *(encoder for _, encoder in encoders(base.pipe))):
        for name, module in part.named_modules():
            hooks = getattr(module, "_diffusers_hook", None)
            if hooks is not None and hooks.get_hook(LAYERWISE_CASTING) is not None:
                raise BadBase(
                    f"{base.name} keeps {name} in less precision than it computes in, as "
                    "enable_layerwise_casting() does it, and cannot learn through that; load it without"
                )


def _check_layers(base: Base, recipe: TrainConfig, adapter: Adapter) -> None:
    """The maps that will learn are free, and large enough for the rank."""
    if not recipe.max_train_steps:
        return
    if ADAPTER in getattr(base.denoiser, "peft_config", {}):
        raise ConceptError(f"This UNet already carries {ADAPTER!r}; take it off before anything is learned")
    check_unfused(base.denoiser, list(kv_maps(base.denoiser)), "which learns")
    for part, target in adapter.target_modules(base, recipe).items():
        for name, module in target.maps.items():
            carrier(name, module)
            reads_text = part == UNET and base.architecture.reads_text(name)
            rank, most = recipe.rank if reads_text else target.rank, min(module.weight.shape)
            if rank > most:
                raise BadRecipe(f"Rank {rank} is larger than {name}, which has {most}; give at most {most}")


def _check_words(base: Base, subjects: Sequence[Subject], recipe: TrainConfig) -> None:
    """A subject's words fit into a prompt, however many tokens they are."""
    for subject in subjects:
        for tokenizer, _ in encoders(base.pipe):
            spelt = tokenizer(subject.noun or "", add_special_tokens=False).input_ids
            room = tokenizer.model_max_length - 12
            if subject.noun is not None and not spelt:
                raise BadRecipe(f"{base.name} cannot read the class noun {subject.noun!r}; give a plain word")
            if len(spelt) + recipe.num_vectors > room:
                raise BadRecipe(
                    f"{recipe.num_vectors} vectors and the class {subject.noun!r} leave no room in a "
                    f"prompt of {tokenizer.model_max_length} tokens; give fewer"
                )
