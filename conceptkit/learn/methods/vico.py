"""ViCo (2306.00971): a word learns, and attention to the first photo, from which details are taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

from conceptkit.base.pipeline import Base
from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadRecipe
from conceptkit.features.closed_form import Factor
from conceptkit.learn import latent_dataset
from conceptkit.learn.methods.base import Adapter, Prepared
from conceptkit.learn.methods.reference_attention import ReferenceAttentionTrainer
from conceptkit.learn.methods.table import register_method
from conceptkit.learn.subject import Subject
from conceptkit.learn.target_modules import TargetMaps, text_encoder_maps
from conceptkit.learn.train_config import TrainConfig
from conceptkit.learn.trainable_delta import TrainableDelta
from conceptkit.tuners.image_attention import sizes


class ReferenceAttention(Adapter):
    """Attention to a photo; keys and values of text stay as they are."""

    name = "image"
    sude_weight = 1.5
    own_fields: ClassVar[Mapping[str, str]] = {
        "attention_regularization_weight": "is about a reference photo, and no one looks at one here; "
        "use the adapter image"
    }

    def check(self, base: Base, subjects: Sequence[Subject], recipe: TrainConfig) -> None:
        """One subject, and nothing is asked for that attention to a photo has no place for."""
        if not self.uses_reference(recipe):
            return
        if len(subjects) > 1:
            names = " and ".join(s.name for s in subjects)
            raise BadRecipe(
                f"The adapter image looks at one photo of one thing, so {names} cannot be learned in one "
                "run; learn one after the other, or with --method custom-diffusion"
            )
        for name in ("gradient_checkpointing", "torch_compile"):
            if getattr(recipe, name):
                raise BadRecipe(
                    f"{name} = yes cannot go through a UNet that looks at a reference photo; leave it out"
                )
        for name in ("caption_preservation_weight", "special_token_preservation_weight", "detach_bos"):
            if value := getattr(recipe, name):
                raise BadRecipe(
                    f"{name} = {value} holds back keys and values, which the adapter image leaves alone"
                )
        for name, (o, d) in sizes(base.denoiser).items():
            if recipe.rank > min(o, d):
                raise BadRecipe(
                    f"Rank {recipe.rank} is larger than {name}, which has {min(o, d)}; give at most that"
                )

    def uses_reference(self, recipe: TrainConfig) -> bool:
        """Always, once the word is learned."""
        return bool(recipe.max_train_steps)

    def reference(
        self, base: Base, subjects: Sequence[Subject], recipe: TrainConfig
    ) -> ReferenceAttentionTrainer | None:
        """The first photo of the subject, encoded."""
        if not self.uses_reference(recipe):
            return None
        (subject,) = subjects
        photos = subject.photos
        first = replace(photos, pictures=photos.pictures[:1], names=photos.names[:1])
        latent = latent_dataset.still_dataset(base, first, subject.words, subject.kind).latents
        return ReferenceAttentionTrainer(base, subject.token, latent.half().float())

    def target_modules(self, base: Base, recipe: TrainConfig) -> dict[str, TargetMaps]:
        """None of the UNet."""
        return text_encoder_maps(base, recipe.text_encoder_rank)

    @contextmanager
    def inject(
        self,
        base: Base,
        recipe: TrainConfig,
        seed: int,
        prepared: Prepared,
        reference: ReferenceAttentionTrainer | None = None,
    ) -> Iterator[TrainableDelta]:
        """The maps that attend to the photo, beside what learns in the text encoders."""
        assert reference is not None
        with (
            super().inject(base, recipe, seed, prepared) as delta,
            reference.inject(recipe, seed) as learned,
        ):
            delta.groups.append(learned)
            yield delta

    def finish(
        self,
        base: Base,
        recipe: TrainConfig,
        concepts: list[Concept],
        keys: Factor,
        reference: ReferenceAttentionTrainer | None,
    ) -> list[Concept]:
        """The photo goes with the concept; it has no rows, as it changes no keys and values."""
        assert reference is not None
        return [replace(c, reference=reference.read(recipe.extract_rank)) for c in concepts]


VICO = register_method(
    "vico",
    ReferenceAttention(),
    TrainConfig(
        "vico",
        adapter="image",
        token_init="noun",
        token_train_steps=0,
        token_learning_rate=5e-3,
        train_token_jointly=True,
        rank=16,
        max_train_steps=240,
        train_batch_size=4,
        learning_rate=1e-3,
        prior_loss_weight=0.0,
        attention_regularization_weight=5e-4,
    ),
)
