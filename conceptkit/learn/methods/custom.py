"""The default: a word of several vectors, then values at its principal rows, and a gated LoRA beside them.

The features of the concept's words in many contexts are known once the word stands still. Their principal
rows C become the keys of the delta, and only its values learn (Custom Diffusion, 2212.04488, with the delta
written as D = V M^-1 C G^-1). What is learned so acts where the composer's constraints are, and as little as
possible on other captions. Beside it a LoRA learns on the maps of attention that read no text, which say
where in a picture things belong; it acts on prompts that name the concept alone (`concepts.gates`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import encode, positions, spell
from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadRecipe
from conceptkit.features.closed_form import Factor, closed_form, principal_rows
from conceptkit.features.concept_rows import ENERGY, MOST_ROWS, constraint_rows
from conceptkit.features.prompt_templates import context_prompts
from conceptkit.learn.methods.base import Adapter, Prepared
from conceptkit.learn.methods.key_locking import class_rows, lock_keys
from conceptkit.learn.methods.reference_attention import ReferenceAttentionTrainer
from conceptkit.learn.methods.table import register_method
from conceptkit.learn.subject import Subject
from conceptkit.learn.target_modules import UNET, TargetMaps, text_encoder_maps, unet_maps
from conceptkit.learn.train_config import TrainConfig
from conceptkit.learn.trainable_delta import TrainableDelta

_KEYED = "use the adapter keyed and a rank above 0"


class Keyed(Adapter):
    """Values at the principal rows of the concept's own words; rank 0: full matrices.

    sude_weight is ours: at that a word takes on states that are named.
    """

    name = "keyed"
    sude_weight = 8.0
    split_by_rows = True
    word_alone = True
    own_fields: ClassVar[Mapping[str, str]] = {
        "lock_keys": f"holds keys at a keyed delta's rows; {_KEYED}",
        "class_noun_rows": f"is about rows of a keyed delta; {_KEYED}, or class_noun_rows = 0",
        "key_learning_rate": f"is about keys of a keyed delta; {_KEYED}, or key_learning_rate = 0",
        "gated_lora_rank": f"is what learns beside a keyed delta; {_KEYED}, or gated_lora_rank = 0",
    }

    def reads_field(self, recipe: TrainConfig, field: str) -> bool:
        """Its own fields are about rows, which full matrices have none of."""
        return bool(recipe.rank)

    def check(self, base: Base, subjects: Sequence[Subject], recipe: TrainConfig) -> None:
        """Keys can be locked at a class noun's where there is one."""
        for subject in subjects:
            if recipe.lock_keys and subject.noun is None:
                advice = "leave it out for a style" if subject.kind == "style" else "give --class NOUN"
                raise BadRecipe(
                    f"lock_keys takes the keys of a class noun, and {subject.name} has none; {advice}"
                )

    def target_modules(self, base: Base, recipe: TrainConfig) -> dict[str, TargetMaps]:
        """Keys and values of text; with a gated LoRA all maps of attention."""
        gated = recipe.gated_lora_rank if recipe.rank else 0
        preset = "attn" if gated else recipe.target_modules
        targets = unet_maps(base, preset, gated or recipe.rank)
        site = unet_maps(base, "kv", recipe.rank)[UNET].maps
        targets[UNET] = TargetMaps({**targets[UNET].maps, **site}, targets[UNET].rank)
        return targets | text_encoder_maps(base, recipe.text_encoder_rank)

    def prepare(self, base: Base, recipe: TrainConfig, concepts: list[Concept], keys: Factor) -> Prepared:
        """The concepts' rows, with those of their classes, at which the delta is nothing."""
        rows = [constraint_rows(concept, base, keys) for concept in concepts]
        rows = [own[: recipe.rank] if recipe.rank else own for own in rows]
        of_class = [
            plain_rows(c, base, keys, class_row_count(recipe, c, own))
            for c, own in zip(concepts, rows, strict=True)
        ]
        concepts = [
            replace(c, rows=torch.cat([own, still]).float())
            for c, own, still in zip(concepts, rows, of_class, strict=True)
        ]
        down = difference = None
        if recipe.rank:
            by_noun = {concept.noun: still for concept, still in zip(concepts, of_class, strict=True)}
            down = key_factor(torch.cat(rows), torch.cat(list(by_noun.values())), keys)
            down = down.float().to(base.device)
        if recipe.lock_keys:
            nouns = [class_rows(c, base, own) for c, own in zip(concepts, rows, strict=True)]
            difference = torch.cat(nouns) - torch.cat(rows)
        return Prepared(concepts, down, difference)

    @contextmanager
    def inject(
        self,
        base: Base,
        recipe: TrainConfig,
        seed: int,
        prepared: Prepared,
        reference: ReferenceAttentionTrainer | None = None,
    ) -> Iterator[TrainableDelta]:
        """Values, with those of keys set for good where keys are locked."""
        with super().inject(base, recipe, seed, prepared) as delta:
            if prepared.key_difference is not None:
                lock_keys(delta, prepared.key_difference)
            yield delta

    def finish(
        self,
        base: Base,
        recipe: TrainConfig,
        concepts: list[Concept],
        keys: Factor,
        reference: ReferenceAttentionTrainer | None,
    ) -> list[Concept]:
        """Their rows are those they have learned at."""
        return concepts


def plain_rows(concept: Concept, base: Base, keys: Factor, most: int) -> Tensor:
    """Principal rows (s, d), s <= `most`, of the class noun by itself, in the prompts of the concept.

    A delta that is nothing there leaves pictures of the class alone, without having seen any.
    """
    if not most:
        return torch.zeros(0, base.width, dtype=torch.float64)
    (words,) = concept.words.values()
    read = encode(base.pipe, [text.replace(words, concept.noun or "") for text in context_prompts(concept)])
    there = positions(read.ids, spell(base.pipe, concept.noun or ""))
    return principal_rows(read.hidden[there], keys, energy=ENERGY, most=most)


def class_row_count(recipe: TrainConfig, concept: Concept, own: Tensor) -> int:
    """How many rows of its class there is room for beside a concept's own."""
    return min(recipe.class_noun_rows, MOST_ROWS - len(own)) if recipe.rank and concept.noun else 0


def key_factor(rows: Tensor, held: Tensor, keys: Factor) -> Tensor:
    """The rows of M^-1 C G^-1 (s, d) that belong to `rows` (s, d), C being these and those `held` (h, d).

    It reads 1 at its own constraint row, 0 at the others and those held, little in ordinary captions.
    """
    both = torch.cat([rows, held])
    return closed_form(both, torch.zeros(len(both), 1), keys).down[: len(rows)]


CUSTOM = register_method(
    "custom",
    Keyed(),
    TrainConfig(
        "custom",
        token_init="noun",
        rank=3,
        num_vectors=3,
        token_init_noise=1.0,
        class_noun_rows=2,
        token_train_steps=80,
        token_learning_rate=5e-3,
        max_train_steps=170,
        learning_rate=2e-2,
        key_learning_rate=2e-3,
        gated_lora_rank=2,
        gated_lora_learning_rate=4e-3,
        max_timestep_fraction=0.8,
        auto_caption=True,
        sude_prompts="states",
        train_batch_size=4,
        prior_loss_weight=0.0,
    ),
)
