"""What can be known to be wrong with how a recipe's loop goes: optimizer, rates, noise levels, prompts."""

from __future__ import annotations

from conceptkit.base.noise_schedule import FLOW, NoiseSchedule
from conceptkit.errors import BadRecipe
from conceptkit.learn.train_config import PRODIGY, TrainConfig

LEAST_OF_PRODIGY = 0.1
"""A rate below which Prodigy, whose own is 1, would learn next to nothing; diffusers' scripts warn there."""
WARM = ("constant_with_warmup", "linear", "cosine")


def check_numbers(recipe: TrainConfig) -> None:
    """Raises BadRecipe where a number of the loop is out of its range, or has no effect beside the others."""
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(recipe, name) < 1:
            raise BadRecipe(f"{name} = {getattr(recipe, name):g} is no decay rate; give 0 up to below 1")
    if recipe.adam_epsilon <= 0:
        raise BadRecipe(f"adam_epsilon = {recipe.adam_epsilon:g} divides by zero; give 1e-8")
    if not 0 < recipe.train_text_encoder_ti_frac <= 1:
        raise BadRecipe(
            f"train_text_encoder_ti_frac = {recipe.train_text_encoder_ti_frac:g} is no share of the steps; "
            "give above 0 and up to 1"
        )
    if recipe.lr_warmup_steps and recipe.lr_scheduler not in WARM:
        raise BadRecipe(
            f"lr_warmup_steps = {recipe.lr_warmup_steps} has no effect with lr_scheduler = "
            f"{recipe.lr_scheduler}; give lr_scheduler = constant_with_warmup, or leave it out"
        )
    if recipe.instance_prompt and recipe.instance_prompt.count("{}") != 1:
        raise BadRecipe(
            f"instance_prompt = {recipe.instance_prompt!r} has no one place for the subject; "
            'write {} where its words go, as in "a photo of {}"'
        )
    if recipe.center_crop and recipe.augmentation != "crop":
        raise BadRecipe("center_crop is about crops; give augmentation = crop, or leave it out")
    if recipe.optimizer == PRODIGY:
        _check_prodigy(recipe)


def _check_prodigy(recipe: TrainConfig) -> None:
    used = {"token_learning_rate": bool(recipe.token_train_steps or recipe.train_token_jointly)}
    used |= dict.fromkeys(("learning_rate",), bool(recipe.max_train_steps and recipe.rank))
    used |= {"full_learning_rate": bool(recipe.max_train_steps and not recipe.rank)}
    used |= {"gated_lora_learning_rate": bool(recipe.gated_lora_rank)}
    used |= {name: bool(getattr(recipe, name)) for name in ("key_learning_rate", "text_encoder_lr")}
    for name, learns in used.items():
        if learns and getattr(recipe, name) < LEAST_OF_PRODIGY:
            raise BadRecipe(
                f"{name} = {getattr(recipe, name):g} is a rate for adamw, by which prodigy would multiply "
                f"its own; give {name} = 1, or optimizer = adamw"
            )


def check_schedule(recipe: TrainConfig, schedule: NoiseSchedule) -> None:
    """Raises BadRecipe where the loss is weighted as the base's kind of noise does not allow."""
    flow = schedule.prediction == FLOW
    if recipe.snr_gamma and flow:
        raise BadRecipe(
            f"snr_gamma = {recipe.snr_gamma:g} weighs the noise levels of a diffusion, and this base is a "
            "flow; give weighting_scheme = logit_normal instead"
        )
    if recipe.precondition_outputs and not flow:
        raise BadRecipe(
            "precondition_outputs weighs the noise levels of a flow, and this base is a diffusion; "
            "leave it out"
        )
    if recipe.weighting_scheme in ("sigma_sqrt", "cosmap") and not flow:
        raise BadRecipe(
            f"weighting_scheme = {recipe.weighting_scheme} weighs the noise levels of a flow, and this base "
            "is a diffusion; give snr_gamma = 5 instead"
        )
