"""What can be known to fail before anything is drawn, encoded or learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

from conceptkit.base.noise_schedule import schedule_of
from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import encoders
from conceptkit.errors import BadRecipe, ConceptError
from conceptkit.learn import mixed_precision, target_modules
from conceptkit.learn.config import CHOICES, TrainConfig
from conceptkit.learn.methods.vico import IMAGE, check_reference_attention, uses_reference
from conceptkit.learn.subject import Subject
from conceptkit.tuners import targets
from conceptkit.tuners.inject import ADAPTER
from conceptkit.tuners.kv_delta import carrier

LEAST = {
    "batch": 1,
    "views": 1,
    "vectors": 1,
    "accumulate": 1,
    "token_steps": 0,
    "steps": 0,
    "rank": 0,
    "prior_batch": 0,
    "prior_size": 0,
    "prior_steps": 1,
    "text_rank": 0,
    "validate": 0,
    "patience": 0,
    "extract": 0,
    "hold": 0,
    "wide": 0,
}
TARGETED = ("lora", "kv")
"""Adapters that go where `targets` says."""
RATES = ("token_lr", "lr", "full_lr", "wide_lr")
WEIGHTS = ("key_lr", "prior_weight", "leak", "edges", "sude", "aside", "attention")


def check(base: Base, subjects: Sequence[Subject], recipe: TrainConfig) -> None:
    """Raises BadRecipe, BadBase or ConceptError with one sentence; nothing has been done then."""
    check_numbers(recipe)
    _check_together(recipe)
    mixed_precision.check(base.device, recipe)
    schedule_of(base.pipe.scheduler)
    present = getattr(base.pipe.encode_prompt, "attachment", None)
    if present is not None and present.attached:
        carried, names = ", ".join(present.concepts), " and ".join(s.name for s in subjects)
        raise ConceptError(f"This pipeline carries {carried}, which {names} would build on; detach first")
    if uses_reference(recipe):
        check_reference_attention(base, subjects, recipe)
    elif recipe.attention and recipe.adapter != IMAGE:
        raise BadRecipe(
            f"attention = {recipe.attention} is about a reference photo, and no one looks at one here; "
            "use the adapter image"
        )
    for subject in subjects:
        _check_subject(subject, recipe)
    _check_layers(base, recipe)
    _check_words(base, subjects, recipe)


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
        if getattr(recipe, name) <= 0:
            raise BadRecipe(f"{name} = {getattr(recipe, name)} learns nothing; give a positive rate")
    for name in WEIGHTS:
        if getattr(recipe, name) < 0:
            raise BadRecipe(f"{name} = {getattr(recipe, name)} would learn the opposite; give 0 or more")
    if not 0 < recipe.until <= 1:
        raise BadRecipe(f"until = {recipe.until:g} is no share of the noise levels; give above 0 and up to 1")
    if recipe.steps + recipe.token_steps == 0:
        raise BadRecipe("0 steps teach nothing; give at least one")


def _check_together(recipe: TrainConfig) -> None:
    """What each makes sense alone, but not with the other."""
    if not recipe.steps and recipe.adapter != "keyed":
        raise BadRecipe(
            f"{recipe.method} learns a word and no delta, so the adapter {recipe.adapter} means nothing; "
            "leave it out, or give it --set steps=100"
        )
    if recipe.adapter == "lora" and recipe.steps and not recipe.rank:
        raise BadRecipe("A LoRA of rank 0 holds nothing; give --rank 1 or more, or the adapter kv or unet")
    if recipe.adapter == "unet" and recipe.rank:
        raise BadRecipe(
            f"The adapter unet learns full matrices, so rank {recipe.rank} means nothing; "
            f"use extract = {recipe.rank} to cut what it has learned"
        )
    if recipe.targets != "kv" and recipe.adapter not in TARGETED:
        raise BadRecipe(
            f"targets = {recipe.targets} is about a LoRA or a kv delta, and the adapter {recipe.adapter} has "
            f"its own maps; use the adapter {' or '.join(TARGETED)}, or leave it out"
        )
    if recipe.lock_keys and (recipe.adapter != "keyed" or not recipe.rank):
        raise BadRecipe(
            "lock_keys holds keys at a keyed delta's rows; use the adapter keyed and a rank above 0"
        )
    if recipe.hold and (recipe.adapter != "keyed" or not recipe.rank):
        raise BadRecipe(
            f"hold = {recipe.hold} is about rows of a keyed delta; use the adapter keyed and a rank above 0, "
            "or hold = 0"
        )
    if recipe.key_lr and (recipe.adapter != "keyed" or not recipe.rank):
        raise BadRecipe(
            f"key_lr = {recipe.key_lr:g} is about keys of a keyed delta; use the adapter keyed and a rank "
            "above 0, or key_lr = 0"
        )
    if recipe.wide and (recipe.adapter != "keyed" or not recipe.rank):
        raise BadRecipe(
            f"wide = {recipe.wide} is what learns beside a keyed delta; use the adapter keyed and a rank "
            "above 0, or wide = 0"
        )
    words_learn = recipe.token_steps or recipe.token_goes_on or recipe.text_rank
    if recipe.sude and recipe.sude_prompts == "states" and not words_learn:
        raise BadRecipe(
            "sude_prompts = states asks for states while a word learns, and here none does; "
            "give sude_prompts = own, or token_steps above 0"
        )
    if recipe.accumulate > recipe.batch:
        raise BadRecipe(f"A batch of {recipe.batch} has no {recipe.accumulate} parts; lower accumulate")
    if recipe.patience and not recipe.validate:
        raise BadRecipe(f"patience = {recipe.patience} waits for a validation; give validate, for example 20")


def _check_subject(subject: Subject, recipe: TrainConfig) -> None:
    name = subject.name
    if subject.kind == "style" and subject.noun:
        raise BadRecipe(
            f"The style {name} was given the class {subject.noun!r}, but a style has none; leave --class out"
        )
    if subject.noun is not None:
        return
    style = subject.kind == "style"
    if recipe.sude:
        advice = "a style has none; leave --sude out" if style else "it has none; give --class NOUN"
        raise BadRecipe(f"SuDe draws {name} towards its class, and {advice}")
    if recipe.lock_keys:
        advice = "leave it out for a style" if style else "give --class NOUN"
        raise BadRecipe(f"lock_keys takes the keys of a class noun, and {name} has none; {advice}")
    if subject.kind == "subject" and len(subject.photos) == 1 and recipe.prior_weight and recipe.steps:
        raise BadRecipe(
            f"One photo of {name} and no class noun: there is no class to hold on to; "
            "give --class NOUN, or prior_weight = 0"
        )


def _check_layers(base: Base, recipe: TrainConfig) -> None:
    """The maps that will learn are free, and large enough for the rank."""
    if not recipe.steps:
        return
    if ADAPTER in getattr(base.unet, "peft_config", {}):
        raise ConceptError(f"This UNet already carries {ADAPTER!r}; take it off before anything is learned")
    for place, maps in target_modules.components(base, recipe).items():
        for name, module in maps.items():
            carrier(name, module)
            rank, most = target_modules.rank(recipe, place), min(module.weight.shape)
            if not place and targets.READS_TEXT.search(name):
                rank = recipe.rank
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
            if len(spelt) + recipe.vectors > room:
                raise BadRecipe(
                    f"{recipe.vectors} vectors and the class {subject.noun!r} leave no room in a prompt of "
                    f"{tokenizer.model_max_length} tokens; give fewer"
                )
