"""What `add` is asked for, before anything is read or loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from conceptkit.base import devices
from conceptkit.base import pipeline as bases
from conceptkit.base.families import family_of
from conceptkit.base.load_options import LoadOptions
from conceptkit.compression.sizes import FULL, SizeRequest
from conceptkit.learn import recipes
from conceptkit.learn.config import DEFAULT, TrainConfig, config_for, named_fields, read_config
from conceptkit.learn.session import Progress, quiet

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry

Photos = Sequence[Path | str] | Path | str


class AddOptions(TypedDict, total=False):
    """The keyword arguments that `add` and `add_together` share; see `AddSettings`."""

    base: str | bases.Base
    device: str
    dtype: str
    quantization: str | None
    registry: Registry | None
    new_version: bool
    seed: int
    steps: int | None
    rank: int | None
    method: str | None
    adapter: str | None
    config: Path | str | None
    sude: bool
    early_stopping: bool
    changes: Mapping[str, Any] | None
    resume: bool
    size: str
    progress: Progress


@dataclass(frozen=True)
class AddSettings:
    """How subjects are learned, and where they are stored.

    base: a loaded one, or its name. device: where a base is loaded that comes by its name.
    dtype, quantization: how it is loaded then, see `LoadOptions`.
    registry: where the concept is stored; None: the one of the user.
    new_version: a name that is taken gets another version.
    seed: the same seed, machine and versions learn the same bytes.
    steps: of the word and the delta together. rank: of the delta; 0 is full.
    method: a row of the table of methods; None: the default. adapter: another than the method's own.
    config: a recipe in TOML. sude, early_stopping: switch these on.
    changes: fields of the recipe, by name; names of earlier versions are taken.
    resume: go on with learning that was stopped.
    size: how it is stored, of `compression.sizes.PRESETS`: "full" keeps every number as learned.
    progress: called with steps done, steps in all, and what is being done.

    Raises BadRecipe for a way of loading that does not exist.
    """

    base: str | bases.Base = bases.STORYBOOK
    device: str = devices.AUTO
    dtype: str = "fp32"
    quantization: str | None = None
    registry: Registry | None = None
    new_version: bool = False
    seed: int = 0
    steps: int | None = None
    rank: int | None = None
    method: str | None = None
    adapter: str | None = None
    config: Path | str | None = None
    sude: bool = False
    early_stopping: bool = False
    changes: Mapping[str, Any] | None = None
    resume: bool = False
    size: str = FULL
    progress: Progress = quiet

    def __post_init__(self) -> None:
        LoadOptions(self.dtype, self.quantization)

    @property
    def loading(self) -> LoadOptions:
        """How a base that comes by its name is loaded. Raises BadRecipe."""
        return LoadOptions(self.dtype, self.quantization)

    @property
    def family(self) -> str:
        """The family of the base."""
        return family_of(self.base).name if isinstance(self.base, str) else self.base.family.name

    @property
    def row(self) -> recipes.Row | None:
        """The published row that the recipe is of, if it is one."""
        stored = {} if self.config is None else read_config(self.config)
        return recipes.row_of(self.method or stored.get("method", DEFAULT), self.family)

    def recipe(self, photos: int | None = None) -> TrainConfig:
        """The method's recipe with everything in it that was asked for. Raises BadRecipe.

        photos: how many there are, where steps follow their number and none were asked for.
        """
        recipe, row = self._recipe(), self.row
        if photos is None or row is None or row.steps is None or self.steps is not None:
            return recipe
        named = "max_train_steps" in named_fields(self.changes, self.config)
        if named or recipe.max_train_steps != row.config.max_train_steps:
            return recipe
        return replace(recipe, max_train_steps=row.steps.steps(photos))

    def _recipe(self) -> TrainConfig:
        return config_for(
            self.method,
            self.steps,
            self.rank,
            self.changes,
            self.adapter,
            file=self.config,
            switches=[name for name in ("sude", "early_stopping") if getattr(self, name)],
            family=self.family,
        )


@dataclass(frozen=True)
class Wanted:
    """A subject before its photos are read: the arguments of `add` that are about it."""

    photos: Photos
    class_noun: str | None
    kind: str
    masks: Path | str | None
    class_images: Photos | None


@dataclass(frozen=True)
class Order:
    """What is to be learned before anything is read or loaded.

    name: of the joint concept. notices: sentences on how it was asked for. size: how it is stored.
    """

    wanted: Mapping[str, Wanted]
    config: TrainConfig
    name: str | None
    seed: int
    resume: bool
    new_version: bool
    notices: tuple[str, ...] = ()
    size: SizeRequest = field(default_factory=lambda: SizeRequest(FULL))
