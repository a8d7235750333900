"""A recipe: the frozen hyper-parameters of learning one concept, its fields and what they may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from conceptkit.concepts.recipe_fields import OLD_FIELDS, current_fields, renamed, todays_value
from conceptkit.errors import BadRecipe
from conceptkit.registry.names import choose

__all__ = ["CHOICES", "OLD_FIELDS", "TrainConfig", "field_value", "todays_fields"]

CHOICES: dict[str, tuple[str, ...]] = {
    "target_modules": ("kv", "cross", "qkv", "attn", "attn+ff"),
    "token_init": ("aside", "described", "noun", "rare", "random"),
    "sude_timestep_weighting": ("code", "paper"),
    "sude_prompts": ("own", "states"),
    "mixed_precision": ("fp32", "bf16", "fp16"),
    "optimizer": ("adamw", "adamw8bit", "prodigy"),
    "lr_scheduler": ("annealed", "constant", "constant_with_warmup", "linear", "cosine"),
    "weighting_scheme": ("stratified", "none", "logit_normal", "mode", "sigma_sqrt", "cosmap"),
    "init_lora_weights": ("unit", "gaussian", "kaiming"),
    "augmentation": ("zoom", "crop"),
    "masked_loss": ("mean", "channel_sum"),
    "prior_source": ("class_images", "base_prediction"),
}


PRODIGY = "prodigy"
"""The optimizer that finds its rates by itself."""


def _off(value: Any) -> Any:
    """A field that a recipe may leave off; it is not written down then."""
    return field(default=value, metadata={"off": True})


RATES = (
    *(f"{what}learning_rate" for what in ("token_", "", "full_", "key_", "gated_lora_")),
    "text_encoder_lr",
)
"""Fields that say how fast something learns; they alone may change when learning goes on."""


@dataclass(frozen=True)
class TrainConfig:
    """How one concept is learned; "keyed" marks fields of that adapter alone.

    token_init: where the token's embedding starts: at the class "noun"; in a random direction "aside" of the
        noun; aside of the colour, pattern or material by which the base would have "described" the photos; or
        at a "rare" token of the vocabulary. Where no word describes them better than the noun, or there is no
        class, "described" starts far aside.
    initializer_token: text at whose tokens' mean the embedding starts instead, as in diffusers' scripts; "":
        as `token_init` says.
    token_init_noise: the distance from the word at which it starts, in lengths of the word's embedding.
    num_vectors: how many vectors the token has.
    token_train_steps: first the embedding is trained alone, at `token_learning_rate` (Adam, per step).
    max_train_steps: then the delta is trained at `learning_rate` (full matrices: `full_learning_rate`). A
        `learning_rate` given for a recipe in which it says nothing becomes that of what learns there.
    train_token_jointly: the embedding is trained together with the delta (Custom Diffusion, 2212.04488); else
        it stays fixed then.
    train_text_encoder_ti_frac: the share of the delta's steps in which it does (pivotal tuning, 2106.05744).
    rank: the rank of the delta; keyed: the number of constraint rows, as many as its words have and at most
        8; 0: full matrices.
    train_batch_size, prior_batch_size: the number of views of the subject, and of class images, in one step.
    prior_loss_weight: lambda of prior preservation (DreamBooth, 2208.12242, eq. 2).
    num_class_images: how many pictures of the class the frozen base draws.
    prior_source: the prior is that of "class_images", or a "base_prediction": what the frozen base predicts
        for the noised photos and their class, which needs no pictures.
    class_image_steps, class_image_guidance_scale: the denoising steps and the guidance scale of class images.
    caption_preservation_weight: the weight of tr(D G D^T) / tr(W0 G W0^T), what the delta does to captions
        without the concept.
    special_token_preservation_weight: the weight of what the delta does to BOS, EOT and padding of its own
        prompts.
    num_augmented_views: how many augmented views are encoded beforehand; each step draws from them.
    augmentation: views "zoom" in and out, with a mask and words that say so (Custom Diffusion, 2212.04488);
        or show a "crop" of the whole height or width. center_crop: of its middle. random_flip: every other
        view is mirrored.
    sample_latents: each step draws from the distribution that the autoencoder gives, instead of its mean.
    instance_prompt: of photos without a caption, with {} for the subject's words; without one, eight in turn.

    adapter: where a concept is learned: "keyed" values at its own rows, a "kv" delta or a "lora" on
        `target_modules`, every linear map of the denoiser in "full", or attention to the first photo, the
        "image".
    target_modules: keys and values of cross-attention ("kv"), all of it ("cross"), of self-attention too
        ("attn"), of both without the map of their output ("qkv"), or feed-forward maps besides ("attn+ff").
    attention_regularization_weight: ViCo's (2306.00971): attention to the word as to the end of text.
    text_encoder_rank: the rank of a LoRA on the text encoders; 0: none.
    text_encoder_lr: its rate, 0 for `learning_rate`.
    init_lora_weights: the down factors of a LoRA begin with rows of "unit" length on average; as PEFT's
        "gaussian" does, of deviation 1/rank, or as its default, "kaiming", uniform within 1/sqrt(inputs).
    relative_to_weights: rates are in units of the base, so that one means the same at any scale of its
        weights: a map's of its own weight's root mean square, a keyed map's of what it gives for the
        concept's words, a word's of the token table's.
    gated_lora_rank: keyed: the rank of a LoRA beside the delta, on the maps of attention that read no text,
        trained at `gated_lora_learning_rate`. In a pipeline it acts only on pictures whose prompts name the
        concept.
    detach_bos: keys and values at BOS get no gradient.
    lock_keys: keyed: at the concept's rows keys are those of the class noun (Perfusion, 2305.01644).
    class_noun_rows: keyed: the number of principal rows of the class noun alone at which the delta is zero,
        up to 8 together with the concept's own.
    auto_caption: a single photo without a caption gets the words for a state and a place that the base
        recognises in it; otherwise what a thing does there, and where, is learned as a part of it.
    key_learning_rate: keyed: the rate of keys, 0 for that of values. Keys say where attention goes: shapes
        break up when they move as far as values do.
    max_timestep_fraction: the share of the noise levels, the lowest ones, at which the delta is trained. At
        the others the place and the pose of a thing are decided, and would become those of the photos.
    sude_weight: w_s of SuDe (2403.06775); 0: without it.
    sude_timestep_weighting: w_t of the authors' "code" or of the "paper".
    sude_prompts: the photos' "own", as published; or those with other "states" in them that the base has
        words for, while the embedding is trained, so that it inherits what its class can do by name.
    weighting_scheme: how noise levels are drawn: "stratified", one in each equal part; uniform with "none";
        by "logit_normal" of `logit_mean`, `logit_std`, or "mode" of `mode_scale` (SD3, 2403.03206, 3.1); or
        uniform with the loss weighted by "sigma_sqrt" or "cosmap", which are for flows.
    precondition_outputs: the loss of a flow is that of the picture which its prediction speaks of, as SD3's
        script has it: that of the velocity, weighted by the square of the noise level.
    snr_gamma: gamma of min-SNR weighting (2303.09556) of the subject's loss; 0: without it.
    masked_loss: "mean" over the cells of all views and over channels; or "channel_sum", each view by itself
        and summed over channels, as Custom Diffusion's programs have it: the subject weighs four times more.
    validation_steps: steps from one measurement of the validation loss to the next, 0 for none; the best step
        is kept.
    early_stopping_patience: measurements without a better one before the training stops; 0: never.
    gradient_accumulation_steps: the number of parts in which a batch goes through.
    mixed_precision: the precision of the forward pass, "fp32", "bf16" or "fp16", the last on CUDA.
    optimizer: "adamw", "adamw8bit" of bitsandbytes, or "prodigy" (2306.06101), which finds its rates itself,
        one for each group of parameters, and is given 1.0 for all of them.
    adam_beta1, adam_beta2, adam_epsilon, adam_weight_decay: of the optimizer. adam_beta2 0: .999 while the
        token learns alone, .99 afterwards. Decay is of a map's whole weight where that learns in full.
    max_grad_norm: gradients are clipped at this norm, of all parameters together; 0: they are not.
    lr_scheduler: "annealed", up over a twentieth of the steps, level to the half and straight down to zero,
        or as the square root of what is left while the token learns alone; or "constant",
        "constant_with_warmup", "linear", "cosine" as diffusers has them, over `lr_warmup_steps` where they
        warm up.
    torch_compile: the UNet goes through torch.compile, on CUDA.
    gradient_checkpointing: activations are computed twice instead of kept.
    extract_rank: the rank to which the learned delta is cut at the end; 0: it stays as it was learned.
    """

    method: str
    token_init_noise: float = 2.2
    token_train_steps: int = 60
    token_learning_rate: float = 1e-3
    max_train_steps: int = 240
    learning_rate: float = 3e-2
    full_learning_rate: float = 2e-4
    rank: int = 1
    train_batch_size: int = 8
    prior_batch_size: int = 4
    prior_loss_weight: float = 1.0
    num_class_images: int = 24
    class_image_steps: int = 15
    class_image_guidance_scale: float = 3.0
    caption_preservation_weight: float = 0.0
    num_augmented_views: int = 96
    adapter: str = _off("keyed")
    target_modules: str = _off("kv")
    text_encoder_rank: int = _off(0)
    gated_lora_rank: int = _off(0)
    gated_lora_learning_rate: float = _off(3e-3)
    token_init: str = _off("aside")
    num_vectors: int = _off(1)
    train_token_jointly: bool = _off(False)
    special_token_preservation_weight: float = _off(0.0)
    detach_bos: bool = _off(False)
    lock_keys: bool = _off(False)
    key_learning_rate: float = _off(0.0)
    class_noun_rows: int = _off(0)
    max_timestep_fraction: float = _off(1.0)
    auto_caption: bool = _off(False)
    sude_weight: float = _off(0.0)
    sude_timestep_weighting: str = _off("code")
    sude_prompts: str = _off("own")
    validation_steps: int = _off(0)
    early_stopping_patience: int = _off(0)
    gradient_accumulation_steps: int = _off(1)
    mixed_precision: str = _off("fp32")
    optimizer: str = _off("adamw")
    torch_compile: bool = _off(False)
    gradient_checkpointing: bool = _off(False)
    extract_rank: int = _off(0)
    attention_regularization_weight: float = _off(0.0)
    initializer_token: str = _off("")
    train_text_encoder_ti_frac: float = _off(1.0)
    text_encoder_lr: float = _off(0.0)
    init_lora_weights: str = _off("unit")
    relative_to_weights: bool = _off(False)
    augmentation: str = _off("zoom")
    center_crop: bool = _off(False)
    random_flip: bool = _off(True)
    sample_latents: bool = _off(False)
    instance_prompt: str = _off("")
    weighting_scheme: str = _off("stratified")
    logit_mean: float = _off(0.0)
    logit_std: float = _off(1.0)
    mode_scale: float = _off(1.29)
    precondition_outputs: bool = _off(False)
    snr_gamma: float = _off(0.0)
    masked_loss: str = _off("mean")
    prior_source: str = _off("class_images")
    adam_beta1: float = _off(0.9)
    adam_beta2: float = _off(0.0)
    adam_epsilon: float = _off(1e-8)
    adam_weight_decay: float = _off(0.0)
    max_grad_norm: float = _off(0.0)
    lr_scheduler: str = _off("annealed")
    lr_warmup_steps: int = _off(0)

    def to_json(self) -> dict[str, Any]:
        """What is left off is left out, so that a new option changes no byte of concepts without it."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if not f.metadata or getattr(self, f.name) != f.default
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TrainConfig:
        """A stored recipe, of this version or an earlier one; what is no field of a recipe is left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in current_fields(stored).items() if name in known})


def todays_fields(given: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    """Fields under the names of today, and a sentence for each that was given under an old one.

    Raises BadRecipe where a field is given under both of its names.
    """
    found: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    notices = []
    for name, value in given.items():
        # A text that was a choice of the old `sude_weight` tells it from the number of today.
        kind = value if value in CHOICES["sude_timestep_weighting"] else 0.0
        now = renamed(name, kind) or name
        if now in found:
            raise BadRecipe(f"{given_as[now]} and {name} are one field of a recipe; give {now} alone")
        if now != name:
            notices.append(f"The field {name} of a recipe is called {now} now; it was taken as {now}.")
        found[now], given_as[now] = todays_value(now, value), name
        if found[now] != value:
            notices.append(f"{now} = {value} of a recipe is called {found[now]} now; it was taken as that.")
    return found, notices


def field_value(recipe: TrainConfig, name: str, value: object) -> str | int | float | bool:
    """A value, which may be a text, in the type of its field. Raises BadRecipe where either is unknown."""
    known = [f.name for f in fields(recipe) if f.name != "method"]
    if name not in known:
        raise BadRecipe(f"A recipe has no field {name!r}; {choose(name, known)}")
    kind = type(getattr(recipe, name))
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                str(value).lower()
            ]
        found = _number(kind, str(value)) if kind in (int, float) else str(value)
    except (KeyError, ValueError, OverflowError) as error:
        wanted = {bool: "yes or no", int: "a whole number", float: "a number"}[kind]
        raise BadRecipe(f"{name} = {value!r} makes no sense; give {wanted}") from error
    if name in CHOICES and found not in CHOICES[name]:
        raise BadRecipe(f"{name} = {value!r} is unknown; {choose(str(value), CHOICES[name])}")
    return found


def _number(kind: type, text: str) -> int | float:
    value = float(text)
    if kind is int and value != int(value):
        raise ValueError(text)
    return int(value) if kind is int else value
