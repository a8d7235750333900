"""Recipes: the frozen hyper-parameters of each way to learn a concept. Adding one is adding a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from conceptkit.errors import BadRecipe

CHOICES: dict[str, tuple[str, ...]] = {
    "adapter": ("keyed", "kv", "lora", "unet", "image"),
    "targets": ("kv", "cross", "attn", "attn+ff"),
    "begin": ("aside", "described", "noun", "rare"),
    "sude_weight": ("code", "paper"),
    "sude_prompts": ("own", "states"),
    "precision": ("fp32", "bf16", "fp16"),
    "optimiser": ("adamw", "adamw8bit"),
}


def _off(value: Any) -> Any:
    """A field that a recipe may leave off; it is not written down then."""
    return field(default=value, metadata={"off": True})


@dataclass(frozen=True)
class TrainConfig:
    """How one concept is learned.

    aside: how far from a word the modifier token begins, in lengths of the word's embedding.
    token_steps: first the modifier token alone learns, at `token_lr` (Adam, per step, batch `batch`).
    steps: then the look learns at `lr` (full matrices: `full_lr`), while the token stands still.
    rank: of the delta; keyed: constraint rows, as many as its words have and at most 8; 0: full matrices.
    batch, prior_batch: views of the subject and class pictures in one step; a step shows both.
    prior_weight: lambda of prior preservation (DreamBooth, 2208.12242, eq. 2).
    prior_size, prior_steps, prior_guidance: the class pictures that the frozen base draws.
    leak: weight of tr(D G D^T) / tr(W0 G W0^T), what the delta does to captions without the concept.
    views: augmented views encoded beforehand; the loop draws from them.

    adapter: where the look is learned: "keyed" values at the concept's own rows, a "kv" delta or a "lora" on
        `targets`, every linear map of the "unet" in full, or attention to the first photo, the "image".
    targets: keys and values of cross-attention ("kv"), all of it ("cross"), of self-attention too ("attn"),
        or feed-forward maps besides ("attn+ff").
    attention: ViCo's weight (2306.00971) of keeping attention to the word like that to the end of text.
    text_rank: of a LoRA on the text encoders.
    wide: keyed; rank of a LoRA beside it, on the maps of attention that read no text, at `wide_lr`. In a
        pipeline it acts on pictures whose prompts name the concept, and on no others.
    begin: the token begins "aside" of its class noun, or of the colour, pattern or material by which the base
        would have "described" the photos, at the "noun", or as a "rare" one of the vocabulary. Where no word
        describes them better than the noun, or there is no class, "described" begins far aside.
    vectors: of the token. token_goes_on: it learns on beside the look (Custom Diffusion, 2212.04488).
    edges: weight of what the delta does at BOS, EOT and padding of the concept's own prompts, as for `leak`.
    detach_bos: nothing is learned from keys and values at BOS. lock_keys: keyed; at the concept's rows keys
        are those of the class noun (Perfusion, 2305.01644), values learn. hold: keyed; so many principal rows
        of the class noun by itself, up to 8 with its own, at which the delta is nothing.
    scene: a single photo without a caption is told by the words for a state and a place that the base itself
        sees in it; otherwise what a thing does there, and where, is learned as a part of it.
    key_lr: keyed; the rate at which keys learn, 0 for that of values. Keys say where attention looks: shapes
        fall apart when they move as far as values do.
    until: share of the noise levels, the least ones, at which the look learns. Where a thing stands, and in
        what pose, is decided at the others, and is the photos' own there.
    sude: w_s of SuDe (2403.06775); sude_weight: w_t of the authors' "code" or of the "paper". sude_prompts:
        the photos' "own", as published; or those with other "states" in them that the base has words for,
        while the word learns, so that it inherits what its class can do by name.
    validate: steps between two looks at the validation loss, 0 for none; the best of them is kept.
    patience: looks without a better one before learning stops; 0: never.
    accumulate: parts in which a batch goes through. precision: of the forward pass, "fp32", "bf16" or "fp16",
        the last on CUDA. optimiser: "adamw", or "adamw8bit" of bitsandbytes. compile: torch.compile, on CUDA.
    checkpointing: activations are computed twice instead of kept.
    extract: rank to which the learned delta is cut at the end; 0: as it was learned.
    """

    method: str
    aside: float = 2.2
    token_steps: int = 60
    token_lr: float = 1e-3
    steps: int = 240
    lr: float = 3e-2
    full_lr: float = 2e-4
    rank: int = 1
    batch: int = 8
    prior_batch: int = 4
    prior_weight: float = 1.0
    prior_size: int = 24
    prior_steps: int = 15
    prior_guidance: float = 3.0
    leak: float = 0.0
    views: int = 96
    adapter: str = _off("keyed")
    targets: str = _off("kv")
    text_rank: int = _off(0)
    wide: int = _off(0)
    wide_lr: float = _off(3e-3)
    begin: str = _off("aside")
    vectors: int = _off(1)
    token_goes_on: bool = _off(False)
    edges: float = _off(0.0)
    detach_bos: bool = _off(False)
    lock_keys: bool = _off(False)
    key_lr: float = _off(0.0)
    hold: int = _off(0)
    until: float = _off(1.0)
    scene: bool = _off(False)
    sude: float = _off(0.0)
    sude_weight: str = _off("code")
    sude_prompts: str = _off("own")
    validate: int = _off(0)
    patience: int = _off(0)
    accumulate: int = _off(1)
    precision: str = _off("fp32")
    optimiser: str = _off("adamw")
    compile: bool = _off(False)
    checkpointing: bool = _off(False)
    extract: int = _off(0)
    attention: float = _off(0.0)

    def to_json(self) -> dict[str, Any]:
        """What is left off is left out, so that a new option changes no byte of concepts without it."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if not f.metadata or getattr(self, f.name) != f.default
        }


# Steps and rates are meant for the storybook base; published ones are for bases a hundred times its size.
DEFAULT_CONFIGS: dict[str, TrainConfig] = {
    "custom": TrainConfig(
        "custom",
        begin="noun",
        rank=3,
        vectors=3,
        aside=1.0,
        hold=2,
        token_steps=80,
        token_lr=5e-3,
        steps=170,
        lr=2e-2,
        key_lr=2e-3,
        wide=2,
        wide_lr=4e-3,
        until=0.8,
        scene=True,
        sude_prompts="states",
        batch=4,
        prior_weight=0.0,
    ),
    "custom-diffusion": TrainConfig(
        "custom-diffusion",
        adapter="kv",
        targets="cross",  # the paper teaches keys and values ("kv"), its authors' code can teach all of it
        begin="rare",
        token_steps=0,
        token_goes_on=True,
        detach_bos=True,
        rank=8,  # full matrices, as the paper has them, come less near in as many steps
        steps=330,
        lr=2e-3,
        full_lr=4e-4,
        until=0.8,
        batch=4,
        prior_batch=2,
        prior_size=48,
        leak=0.3,  # else low rank changes other captions, and in a merge other concepts, by half
    ),
    "dreambooth": TrainConfig(
        "dreambooth",
        adapter="lora",
        targets="attn",
        begin="rare",
        token_steps=0,
        rank=4,
        text_rank=4,
        steps=330,
        lr=3e-3,
        batch=4,
        prior_batch=2,
    ),
    "dreambooth-full": TrainConfig(
        "dreambooth-full", adapter="unet", begin="rare", token_steps=0, rank=0, steps=250, full_lr=1e-4
    ),
    "textual-inversion": TrainConfig(
        "textual-inversion",
        begin="noun",
        token_steps=400,
        token_lr=5e-3,
        steps=0,
        rank=0,
        batch=5,
        prior_weight=0.0,
        sude_prompts="states",
    ),
    "vico": TrainConfig(
        "vico",
        adapter="image",
        begin="noun",
        token_steps=0,
        token_lr=5e-3,
        token_goes_on=True,
        rank=16,
        steps=240,
        batch=4,
        lr=1e-3,
        prior_weight=0.0,
        attention=5e-4,
    ),
}
DEFAULT = "custom"
SUDE = {"lora": 0.4, "unet": 0.4, "kv": 2.0, "keyed": 8.0, "image": 1.5}
"""The published w_s, which belong to the weight of the authors' code: DreamBooth, Custom Diffusion, ViCo; and
for keyed deltas ours, at which a word takes on states that are named."""


EARLY_STOP = {"validate": 20, "patience": 3}
_ADAPTERS = {
    "keyed": "custom",
    "kv": "custom-diffusion",
    "lora": "dreambooth",
    "unet": "dreambooth-full",
    "image": "vico",
}
"""The method whose numbers suit an adapter."""


def _with_adapter(recipe: TrainConfig, adapter: str) -> TrainConfig:
    """The recipe with another adapter, and the rank, rates, maps and prior that suit that one."""
    if adapter not in _ADAPTERS:
        raise BadRecipe(f"There is no adapter {adapter!r}; choose one of {', '.join(_ADAPTERS)}")
    if recipe.adapter == adapter:
        return recipe
    suited = DEFAULT_CONFIGS[_ADAPTERS[adapter]]
    fields_of_it = [
        "adapter",
        "targets",
        "rank",
        "text_rank",
        "lr",
        "full_lr",
        "attention",
        "hold",
        "key_lr",
        "wide",
        "wide_lr",
        "leak",
    ]
    if recipe.steps:
        fields_of_it.append("prior_weight")
    return replace(recipe, **{name: getattr(suited, name) for name in fields_of_it})


def config_for(
    method: str = DEFAULT,
    steps: int | None = None,
    rank: int | None = None,
    changes: Mapping[str, Any] | None = None,
    adapter: str | None = None,
) -> TrainConfig:
    """The recipe of a method with the caller's steps, rank and other fields in it; texts become numbers.

    adapter: another than the method's own, with what suits it; what else is given here goes before that.
    Raises BadRecipe on a method, an adapter or a field that does not exist, and on odd values.
    """
    if method not in DEFAULT_CONFIGS:
        raise BadRecipe(f"There is no method {method!r}; choose one of {', '.join(DEFAULT_CONFIGS)}")
    recipe = DEFAULT_CONFIGS[method] if adapter is None else _with_adapter(DEFAULT_CONFIGS[method], adapter)
    if steps is not None:
        if steps < 1:
            raise BadRecipe(f"{steps} steps teach nothing; give at least one")
        share = recipe.token_steps / (recipe.token_steps + recipe.steps)
        recipe = replace(recipe, token_steps=round(steps * share), steps=steps - round(steps * share))
    if rank is not None:
        if not recipe.steps and rank and adapter is None:
            raise BadRecipe(
                f"{method} learns a word and no delta, so rank {rank} means nothing; leave it out"
            )
        recipe = replace(recipe, rank=rank)
        if not rank and recipe.hold:  # full matrices cannot be held at rows, so pictures hold on to the class
            recipe = replace(recipe, hold=0, key_lr=0.0, wide=0, prior_weight=1.0)
    for name, value in (changes or {}).items():
        recipe = replace(recipe, **{name: _value(recipe, name, value)})
    return recipe


def _value(recipe: TrainConfig, name: str, value: Any) -> Any:
    """The value in the type of its field."""
    known = [f.name for f in fields(TrainConfig) if f.name != "method"]
    if name not in known:
        raise BadRecipe(f"A recipe has no field {name!r}; choose one of {', '.join(known)}")
    kind = type(getattr(recipe, name))
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                str(value).lower()
            ]
        if kind is int and float(value) != int(float(value)):
            raise ValueError
        found = kind(float(value)) if kind is int else kind(value)
    except (KeyError, ValueError, OverflowError) as error:
        wanted = {bool: "yes or no", int: "a whole number", float: "a number"}[kind]
        raise BadRecipe(f"{name} = {value!r} makes no sense; give {wanted}") from error
    if name in CHOICES and found not in CHOICES[name]:
        raise BadRecipe(f"{name} = {value!r} is unknown; choose one of {', '.join(CHOICES[name])}")
    return found
