"""The recipe of a method with what a user changes in it, by option, by name or in a file."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from conceptkit.errors import BadRecipe
from conceptkit.learn.methods.table import METHODS, adapter_of, find_method, method_of_adapter
from conceptkit.learn.train_config import (
    CHOICES,
    OLD_FIELDS,
    PRODIGY,
    RATES,
    TrainConfig,
    field_value,
    todays_fields,
)
from conceptkit.registry.paths import expanded

__all__ = [
    "CHOICES",
    "DEFAULT",
    "DEFAULT_CONFIGS",
    "EARLY_STOP",
    "OLD_FIELDS",
    "TrainConfig",
    "config_for",
    "old_name_notices",
]

DEFAULT = "custom"
EARLY_STOP = {"validation_steps": 20, "early_stopping_patience": 3}
SUITED = (
    "adapter",
    "target_modules",
    "rank",
    "text_encoder_rank",
    "learning_rate",
    "full_learning_rate",
    "attention_regularization_weight",
    "class_noun_rows",
    "key_learning_rate",
    "gated_lora_rank",
    "gated_lora_learning_rate",
    "caption_preservation_weight",
    "optimizer",
    "init_lora_weights",
    "relative_to_weights",
    "masked_loss",
)
"""Fields that come with an adapter, from the method whose numbers suit it."""


class DefaultConfigs(MutableMapping[str, TrainConfig]):
    """The recipe of each method in the table; one that is set here goes before the method's own."""

    def __init__(self) -> None:
        self._set: dict[str, TrainConfig] = {}

    def of_family(self, name: str, family: str) -> TrainConfig:
        """The recipe of a method for a family of bases."""
        return self._set[name] if name in self._set else METHODS[name].config(family)

    def __getitem__(self, name: str) -> TrainConfig:
        return self.of_family(name, "")

    def __setitem__(self, name: str, recipe: TrainConfig) -> None:
        # The method's own is no change of it, and must not hide the recipes of families.
        self._set.pop(name, None)
        if name not in METHODS or recipe != METHODS[name].config(""):
            self._set[name] = recipe

    def __delitem__(self, name: str) -> None:
        del self._set[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*METHODS, *self._set]))

    def __len__(self) -> int:
        return len(list(iter(self)))


# Steps and rates are meant for the storybook base; published ones are for bases a hundred times its size.
DEFAULT_CONFIGS = DefaultConfigs()


def _with_adapter(recipe: TrainConfig, adapter: str, family: str) -> TrainConfig:
    """The recipe with another adapter, and the rank, rates, maps and prior that suit that one."""
    suited = DEFAULT_CONFIGS.of_family(method_of_adapter(adapter).name, family)
    if recipe.adapter == adapter:
        return recipe
    names = [*SUITED, *(["prior_loss_weight"] if recipe.max_train_steps else [])]
    if _units(suited) != _units(recipe):
        names.append(
            "token_learning_rate"
        )  # a rate for one optimizer, or in other units, is none for another
    return replace(recipe, **{name: getattr(suited, name) for name in names})


def config_for(
    method: str | None = None,
    steps: int | None = None,
    rank: int | None = None,
    changes: Mapping[str, Any] | None = None,
    adapter: str | None = None,
    *,
    file: Path | str | None = None,
    switches: Collection[str] = (),
    family: str = "",
) -> TrainConfig:
    """The recipe of a method with the caller's fields in it; texts become numbers, old names those of today.

    method: by default the file's, else `DEFAULT`. adapter: another than the method's own, with what suits it.
    file: TOML, field = value; what is given here beside it goes before it.
    steps: of the whole run, which the word and the delta share as the recipe has them.
    switches: "sude" and "early_stopping" set the fields that switch these on.
    family: of the base; a method may have another recipe for it.
    changes: fields by name; they come last.
    Raises BadRecipe on a method, an adapter or a field that does not exist, and on odd values.
    """
    stored = {} if file is None else read_config(file)
    method = method or stored.pop("method", None) or DEFAULT
    own = stored.pop("adapter", None)
    find_method(method)
    recipe, other = DEFAULT_CONFIGS.of_family(method, family), adapter or own
    recipe = before = recipe if other is None else _with_adapter(recipe, other, family)
    try:
        recipe = _changed(recipe, stored)
    except BadRecipe as error:
        raise BadRecipe(f"{file}: {error}") from error
    if steps is not None:
        recipe = _with_steps(recipe, steps)
    if rank is not None:
        recipe = _with_rank(recipe, rank, adapter)
    switched: dict[str, Any] = {"sude_weight": adapter_of(recipe).sude_weight} if "sude" in switches else {}
    switched |= EARLY_STOP if "early_stopping" in switches else {}
    given = todays_fields(changes or {})[0]
    recipe = _with_rate_of_what_learns(_changed(recipe, {**switched, **given}), before, {*stored, *given})
    return _with_rates(recipe, before, {*stored, *given})


def _with_rate_of_what_learns(
    recipe: TrainConfig, before: TrainConfig, given: Collection[str]
) -> TrainConfig:
    """A `learning_rate` that was given is that of what learns, as it is in the methods' own programs.

    That is the word where it learns alone, full matrices where there is no rank, and both where they learn
    together at one rate.
    """
    if "learning_rate" not in given or (recipe.max_train_steps and recipe.rank):
        return recipe
    together = recipe.train_token_jointly and before.token_learning_rate == before.full_learning_rate
    of_word = not recipe.max_train_steps or together
    names = ["token_learning_rate"] if of_word else []
    names += ["full_learning_rate"] if recipe.max_train_steps else []
    return _changed(recipe, {name: recipe.learning_rate for name in names if name not in given})


def _units(recipe: TrainConfig) -> tuple[bool, bool]:
    """What a rate of a recipe is in units of: Prodigy's own, or the base's weights."""
    return recipe.optimizer == PRODIGY, recipe.relative_to_weights


def _with_rates(recipe: TrainConfig, before: TrainConfig, given: Collection[str]) -> TrainConfig:
    """The recipe with rates that suit its optimizer and units, where these are others than `before`.

    Raises BadRecipe where none are known that do.
    """
    left = [name for name in RATES if name not in given and getattr(recipe, name)]
    if recipe.optimizer == PRODIGY != before.optimizer:
        return _changed(recipe, dict.fromkeys(left, 1.0))
    if before.optimizer == PRODIGY != recipe.optimizer:
        lacking = [name for name in left if getattr(recipe, name) == 1.0]
        if lacking:
            raise BadRecipe(
                f"The rates of {recipe.method} here are for prodigy, and {recipe.optimizer} would learn at "
                f"1.0; give {' and '.join(lacking)} too"
            )
    elif left and recipe.relative_to_weights != before.relative_to_weights:
        raise BadRecipe(
            f"relative_to_weights = {str(recipe.relative_to_weights).lower()} gives the rates of "
            f"{recipe.method} other units; give {' and '.join(left)} too"
        )
    return recipe


def old_name_notices(changes: Mapping[str, Any] | None, file: Path | str | None = None) -> list[str]:
    """A sentence for each field that `config_for` takes under the name that an earlier version gave it."""
    in_file = [] if file is None else todays_fields(_parsed(file))[1]
    return list(dict.fromkeys([*in_file, *todays_fields(changes or {})[1]]))


def named_fields(changes: Mapping[str, Any] | None, file: Path | str | None = None) -> dict[str, str]:
    """The fields that a caller names, under the names of today, and how: "given", or the file's name."""
    in_file = {} if file is None else dict.fromkeys(read_config(file), str(file))
    return in_file | dict.fromkeys(todays_fields(changes or {})[0], "given")


def read_config(file: Path | str) -> dict[str, Any]:
    """The fields of a recipe in a TOML file, under the names of today.

    Raises BadRecipe that names the file and the field.
    """
    found = _parsed(file)
    try:
        return todays_fields(found)[0]
    except BadRecipe as error:
        raise BadRecipe(f"{file}: {error}") from error


def _parsed(file: Path | str) -> dict[str, Any]:
    """The fields of a recipe in a TOML file, as they are called there."""
    path = expanded(file)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadRecipe(f"{path} cannot be read ({error.strerror}); name a TOML file of a recipe") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRecipe(f"{path} is no TOML ({error}); write one field = value a line") from error
    for name, value in found.items():
        if isinstance(value, dict | list):
            raise BadRecipe(f"{path}: {name} is a table or a list; write {name} = value on one line")
        if name in ("method", "adapter") and not isinstance(value, str):
            raise BadRecipe(f"{path}: {name} = {value} is no name; write it in quotes")
    return found


def _changed(recipe: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    for name, value in changes.items():
        changed: dict[str, Any] = {name: field_value(recipe, name, value)}
        recipe = replace(recipe, **changed)
    return recipe


def _with_steps(recipe: TrainConfig, steps: int) -> TrainConfig:
    """So many steps in all, shared between the word and the delta as they were."""
    if steps < 1:
        raise BadRecipe(f"{steps} steps teach nothing; give at least one")
    all_steps = recipe.token_train_steps + recipe.max_train_steps
    token = round(steps * (recipe.token_train_steps / all_steps)) if all_steps else 0
    return replace(recipe, token_train_steps=token, max_train_steps=steps - token)


def _with_rank(recipe: TrainConfig, rank: int, adapter: str | None) -> TrainConfig:
    if not recipe.max_train_steps and rank and adapter is None:
        raise BadRecipe(
            f"{recipe.method} learns a word and no delta, so rank {rank} means nothing; leave it out"
        )
    recipe = replace(recipe, rank=rank)
    if rank or not recipe.class_noun_rows:
        return recipe
    # Full matrices cannot be held at rows, so class images hold on to the class.
    return replace(recipe, class_noun_rows=0, key_learning_rate=0.0, gated_lora_rank=0, prior_loss_weight=1.0)
