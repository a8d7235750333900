"""What `add` would do: every number of the recipe and where it is from, and what learning will cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Unpack

from conceptkit.base import pipeline as bases
from conceptkit.base.memory import GIB
from conceptkit.data import photos as photo_files
from conceptkit.learn import config_checks, latent_dataset, target_modules
from conceptkit.learn.config import TrainConfig, named_fields, old_name_notices
from conceptkit.learn.costs import Costs, costs_of
from conceptkit.learn.methods.table import adapter_of
from conceptkit.learn.prior_preservation import undrawn
from conceptkit.learn.subject import Subject
from conceptkit.workflows.add import loaded
from conceptkit.workflows.add_settings import AddOptions, AddSettings, Photos
from conceptkit.workflows.class_noun import noun_of

HERE = "one pass of the base, measured here; longer beside other programs"
ARITHMETIC = "arithmetic"
STORYBOOK = "tuned on the storybook"
FIELDS = [
    "learning_rate",
    "full_learning_rate",
    "key_learning_rate",
    "gated_lora_learning_rate",
    "text_encoder_lr",
    "token_learning_rate",
    "rank",
    "gated_lora_rank",
    "text_encoder_rank",
    "token_train_steps",
    "max_train_steps",
    "train_batch_size",
    "gradient_accumulation_steps",
    "optimizer",
    "lr_scheduler",
    "adam_weight_decay",
    "max_grad_norm",
    "weighting_scheme",
    "snr_gamma",
    "init_lora_weights",
    "relative_to_weights",
    "augmentation",
    "prior_loss_weight",
    "prior_source",
]
"""Fields of a recipe that a plan names, where they have an effect."""


@dataclass(frozen=True)
class Line:
    """One number of a plan: what it is, its value, and where it is from."""

    what: str
    value: str | int | float
    source: str


@dataclass(frozen=True)
class Plan:
    """What learning would do, line by line. notices: what a user should know besides."""

    lines: tuple[Line, ...]
    notices: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The lines by what they say."""
        return {
            "plan": [asdict(line) for line in self.lines],
            "notices": list(self.notices),
        }


def plan(
    name: str,
    photos: Photos,
    *,
    class_noun: str | None = None,
    kind: str = "subject",
    class_images: Photos | None = None,
    **options: Unpack[AddOptions],
) -> Plan:
    """What `add` with the same arguments would do; nothing is learned, drawn or stored.

    It loads the base and goes through it once. Raises what `add` raises before it learns.
    """
    settings, notices = (
        AddSettings(**options),
        old_name_notices(options.get("changes"), options.get("config")),
    )
    shown = photo_files.read(photos)
    named = settings.base == bases.STORYBOOK
    base = loaded(settings)
    settings = replace(settings, base=base)
    noun = class_noun
    if kind != "style":
        noun = noun_of(name, class_noun, shown.folder, base, notices)
    recipe = settings.recipe(len(shown))
    subject = Subject(name, noun, shown, kind)
    config_checks.check(base, [subject], recipe)
    notices += target_modules.notices(base, recipe)
    given = [noun] if class_images is not None and noun else []
    drawn = recipe.num_class_images * len(undrawn([subject], recipe, given))
    costs = costs_of(base, recipe, drawn)
    lines = [
        Line("base", base.name, "the default" if named else "given"),
        Line("family", base.family.name, "the base"),
        Line("photos", len(shown), "counted"),
        Line("method", recipe.method, "given" if settings.method else "the default"),
        Line("adapter", recipe.adapter, "given" if settings.adapter else "the method"),
        *_of_recipe(recipe, settings, len(shown), base),
        Line("pixels", latent_dataset.picture_size(base), "the base"),
        Line("class pictures", drawn, "drawn by the base" if drawn else "none is drawn"),
        *_of_costs(costs),
    ]
    return Plan(tuple(lines), tuple(notices))


def _of_recipe(recipe: TrainConfig, settings: AddSettings, photos: int, base: bases.Base) -> list[Line]:
    """The fields that have an effect, each with its source."""
    row = settings.row
    given = named_fields(settings.changes, settings.config)
    given |= {"rank": "given"} if settings.rank is not None else {}
    source = STORYBOOK if row is None else f"{row.source}{f' ({row.why})' if row.why else ''}"
    steps_by: Mapping[str, str] = {}
    if settings.steps is not None:
        steps_by = dict.fromkeys(("token_train_steps", "max_train_steps"), "given")
    elif row is not None and row.steps is not None and recipe.max_train_steps == row.steps.steps(photos):
        steps_by = {"max_train_steps": f"{photos} photos: {row.steps.source}"}
    return [
        Line(field, getattr(recipe, field), given.get(field) or steps_by.get(field) or source)
        for field in FIELDS
        if _has_effect(recipe, field)
    ]


def _has_effect(recipe: TrainConfig, field: str) -> bool:
    """Whether a field says anything in this recipe."""
    delta, adapter = bool(recipe.max_train_steps), adapter_of(recipe)
    keyed = "key_learning_rate" in adapter.own_fields and adapter.reads_field(recipe, "key_learning_rate")
    gated = keyed and delta and bool(recipe.gated_lora_rank)
    when = {
        "learning_rate": delta and bool(recipe.rank),
        "full_learning_rate": delta and not recipe.rank,
        "key_learning_rate": keyed and delta and bool(recipe.key_learning_rate),
        "gated_lora_learning_rate": gated,
        "text_encoder_lr": delta and bool(recipe.text_encoder_rank and recipe.text_encoder_lr),
        "token_learning_rate": bool(recipe.token_train_steps or recipe.train_token_jointly),
        "rank": delta,
        "gated_lora_rank": gated,
        "max_train_steps": delta,
        "init_lora_weights": delta and bool(recipe.rank) and (not keyed or gated),
        "relative_to_weights": delta and recipe.relative_to_weights,
        "prior_loss_weight": delta,
        "prior_source": delta and bool(recipe.prior_loss_weight),
    }
    shown = ("train_batch_size", "optimizer", "lr_scheduler", "weighting_scheme", "augmentation")
    return when.get(field, field in shown or bool(getattr(recipe, field)))


def _of_costs(costs: Costs) -> list[Line]:
    size, parts = f"{costs.memory.most / GIB:.1f} GiB", costs.memory.parts()
    return [
        Line("numbers that learn", costs.numbers, ARITHMETIC),
        Line("memory, about", size, f"{ARITHMETIC}: {parts}"),
        Line("learning, about", _duration(costs.seconds), HERE),
        Line("class pictures, about", _duration(costs.class_seconds), HERE),
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
