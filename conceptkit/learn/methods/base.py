"""What a method of learning is: a recipe for each family of bases, and an adapter, which is where it learns.

An adapter answers what the trainer asks; what it does not override is as for a delta on maps of the UNet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from conceptkit.base.families import STORYBOOK
from conceptkit.base.pipeline import Base
from conceptkit.concepts.concept import Concept
from conceptkit.features.caption_statistics import CaptionStatistics
from conceptkit.features.closed_form import Factor
from conceptkit.features.concept_rows import constraint_rows
from conceptkit.learn import recipes, trainable_delta
from conceptkit.learn.methods.reference_attention import ReferenceAttentionTrainer
from conceptkit.learn.methods.regularizers import regularizers_for
from conceptkit.learn.subject import Subject
from conceptkit.learn.target_modules import TargetMaps, text_encoder_maps, unet_maps
from conceptkit.learn.train_config import TrainConfig
from conceptkit.learn.trainable_delta import TrainableDelta


@dataclass(frozen=True, eq=False)
class Prepared:
    """What an adapter has worked out before it learns.

    concepts: with their rows, where those are known by now. down (s, d): keys that all maps share, or None.
    key_difference (s, d): what a class noun's rows are beyond the concepts', where keys are locked.
    """

    concepts: list[Concept]
    down: Tensor | None = None
    key_difference: Tensor | None = None


class Adapter:
    """Where a concept is learned, and what is asked of a recipe that learns there.

    name: what `recipe.adapter` calls it. sude_weight: w_s of SuDe that suits it.
    split_by_rows: whether what several concepts learned together can be parted by their rows.
    has_target_modules: whether `recipe.target_modules` says where it goes.
    word_alone: whether a recipe may learn the word and nothing there.
    own_fields: fields of a recipe that no other adapter reads, with what to say to those that set them.
    """

    name: str = ""
    sude_weight: float = 0.4
    split_by_rows: bool = False
    has_target_modules: bool = False
    word_alone: bool = False
    own_fields: ClassVar[Mapping[str, str]] = {}

    def reads_field(self, recipe: TrainConfig, field: str) -> bool:
        """Whether one of its own fields has a meaning in this recipe."""
        return True

    def check_recipe(self, recipe: TrainConfig) -> None:
        """Raises BadRecipe where fields of the recipe do not go together."""

    def check(self, base: Base, subjects: Sequence[Subject], recipe: TrainConfig) -> None:
        """Raises BadRecipe where the base or the subjects do not suit the recipe."""

    def uses_reference(self, recipe: TrainConfig) -> bool:
        """Whether the first photo is a reference that the UNet attends to, and is not learned from."""
        return False

    def reference(
        self, base: Base, subjects: Sequence[Subject], recipe: TrainConfig
    ) -> ReferenceAttentionTrainer | None:
        """What attends to a reference photo, else None."""
        return None

    def target_modules(self, base: Base, recipe: TrainConfig) -> dict[str, TargetMaps]:
        """The maps that learn, by part of the pipeline: "" is the UNet."""
        return unet_maps(base, recipe.target_modules, recipe.rank) | text_encoder_maps(
            base, recipe.text_encoder_rank
        )

    def learned_numbers(self, base: Base, recipe: TrainConfig) -> int:
        """How many numbers learn on its maps."""
        targets = self.target_modules(base, recipe).values()
        return sum(
            target.rank * sum(module.weight.shape) if target.rank else module.weight.numel()
            for target in targets
            for module in target.maps.values()
        )

    def prepare(self, base: Base, recipe: TrainConfig, concepts: list[Concept], keys: Factor) -> Prepared:
        """What is worked out before anything is injected; the words of the concepts have learned alone."""
        return Prepared(concepts)

    @contextmanager
    def inject(
        self,
        base: Base,
        recipe: TrainConfig,
        seed: int,
        prepared: Prepared,
        reference: ReferenceAttentionTrainer | None = None,
    ) -> Iterator[TrainableDelta]:
        """Parameters that learn on the base, without effect yet; taken off at the end."""
        targets = self.target_modules(base, recipe)
        known = [concept.rows for concept in prepared.concepts if concept.rows is not None]
        rows = torch.cat(known) if known else None
        with trainable_delta.inject(base, recipe, seed, targets, prepared.down, rows) as delta:
            yield delta

    def regularizer(
        self,
        base: Base,
        recipe: TrainConfig,
        concepts: Sequence[Concept],
        delta: TrainableDelta,
        statistics: CaptionStatistics,
    ) -> Callable[[], Tensor] | None:
        """A term of the loss beside that of the pictures, or None."""
        return regularizers_for(base, recipe, concepts, delta, statistics)

    def finish(
        self,
        base: Base,
        recipe: TrainConfig,
        concepts: list[Concept],
        keys: Factor,
        reference: ReferenceAttentionTrainer | None,
    ) -> list[Concept]:
        """The concepts with all that is theirs beside the delta: the rows at which others meet it."""
        if text_encoder_maps(base, recipe.text_encoder_rank):
            return concepts  # what its words are to the text encoder is not known without what was learned
        return [replace(c, rows=constraint_rows(c, base, keys).float()) for c in concepts]


@dataclass(frozen=True, eq=False)
class Method:
    """A way to learn, as `--method` names it.

    configs: its recipe by family of bases. That of `recipes.USUAL` is for bases of families that have none,
    if there is one; that under "" is for the storybook, and for all where there is no other.
    """

    name: str
    adapter: Adapter
    configs: Mapping[str, TrainConfig]

    def config(self, family: str = "") -> TrainConfig:
        """The recipe for a family of bases; "" is the one that was registered for none."""
        names = (family,) if family in ("", STORYBOOK) else (family, recipes.USUAL)
        return next((self.configs[name] for name in names if name in self.configs), self.configs[""])
