"""What the fields of a recipe are called, and what earlier versions called them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLD_FIELDS: dict[str, str] = {
    "steps": "max_train_steps",
    "token_steps": "token_train_steps",
    "lr": "learning_rate",
    "full_lr": "full_learning_rate",
    "token_lr": "token_learning_rate",
    "key_lr": "key_learning_rate",
    "batch": "train_batch_size",
    "accumulate": "gradient_accumulation_steps",
    "prior_batch": "prior_batch_size",
    "prior_weight": "prior_loss_weight",
    "prior_size": "num_class_images",
    "prior_steps": "class_image_steps",
    "prior_guidance": "class_image_guidance_scale",
    "targets": "target_modules",
    "text_rank": "text_encoder_rank",
    "precision": "mixed_precision",
    "optimiser": "optimizer",
    "compile": "torch_compile",
    "checkpointing": "gradient_checkpointing",
    "validate": "validation_steps",
    "patience": "early_stopping_patience",
    "extract": "extract_rank",
    "views": "num_augmented_views",
    "wide": "gated_lora_rank",
    "wide_lr": "gated_lora_learning_rate",
    "until": "max_timestep_fraction",
    "scene": "auto_caption",
    "begin": "token_init",
    "aside": "token_init_noise",
    "vectors": "num_vectors",
    "token_goes_on": "train_token_jointly",
    "hold": "class_noun_rows",
    "leak": "caption_preservation_weight",
    "edges": "special_token_preservation_weight",
    "attention": "attention_regularization_weight",
    "sude": "sude_weight",
    "sude_weight": "sude_timestep_weighting",
}
"""Old name -> name. `sude_weight` is both: a text under it is the old one, a number the new."""


OLD_VALUES: dict[tuple[str, object], str] = {("adapter", "unet"): "full"}
"""A field of today and a value that it had -> that value's name of today."""


def renamed(name: str, value: object) -> str | None:
    """What a field of this name and value is called now; None where the name is no old one."""
    if name == "sude_weight" and not isinstance(value, str):
        return None
    return OLD_FIELDS.get(name)


def current_fields(recipe: Mapping[str, object]) -> dict[str, Any]:
    """A stored recipe under the names of today; what it has beside fields of a method stays."""
    found = {renamed(name, value) or name: value for name, value in recipe.items()}
    return {name: todays_value(name, value) for name, value in found.items()}


def todays_value(name: str, value: object) -> object:
    """A field's value under its name of today; one that was never renamed stays."""
    return OLD_VALUES.get((name, value), value) if isinstance(value, str) else value


def recipe_field(recipe: Mapping[str, object], name: str, default: object = None) -> object:
    """A field of a stored recipe, by its name of today, whichever name it was stored under."""
    return current_fields(recipe).get(name, default)
