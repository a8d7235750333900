"""The trainer: photos on one side, concepts on the other; what varies between methods is the adapter's.

First the token learns alone (Textual Inversion, 2208.01618). Then the delta learns, wherever the recipe's
adapter puts it (`learn.methods`); the token stands still meanwhile, or learns on beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conceptkit.base.added_tokens import Tokens, add_tokens
from conceptkit.base.noise_schedule import NoiseSchedule, schedule_of
from conceptkit.base.pipeline import Base, refreshed
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta
from conceptkit.data.photos import PhotoSet
from conceptkit.errors import BadRecipe
from conceptkit.features.caption_statistics import CaptionStatistics, statistics_of
from conceptkit.features.closed_form import factor
from conceptkit.learn import (
    config_checks,
    diffusion_classifier,
    joint_training,
    latent_dataset,
    lr_schedules,
    memory,
    optimizers,
    prior_preservation,
    token_init,
    training_step,
    validation,
)
from conceptkit.learn.checkpoints import CheckpointManager
from conceptkit.learn.effects import check_prompts, without_effect
from conceptkit.learn.freeze import frozen, gradient_checkpointing
from conceptkit.learn.latent_dataset import LatentDataset
from conceptkit.learn.methods.base import Adapter
from conceptkit.learn.methods.table import adapter_of
from conceptkit.learn.prior_preservation import ClassImages
from conceptkit.learn.request import TrainRequest
from conceptkit.learn.session import Progress, Session, quiet
from conceptkit.learn.subject import Subject
from conceptkit.learn.target_modules import text_encoder_maps
from conceptkit.learn.train_config import PRODIGY, TrainConfig
from conceptkit.learn.trainable_delta import ParameterGroup, rms
from conceptkit.learn.training_loop import TrainingPhase, run
from conceptkit.learn.training_step import TrainingContext
from conceptkit.learn.view_options import ViewOptions
from conceptkit.rng import seeded

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was learned: `whole` is all of it, `parts` each subject by itself, the same where there is one.

    curve: (step, validation loss); kept: the step that was kept, or None without validation.
    notices: a sentence for all that had no effect.
    """

    whole: Concept
    parts: tuple[Concept, ...]
    curve: tuple[tuple[int, float], ...] = ()
    kept: int | None = None
    notices: tuple[str, ...] = ()


def learn(
    base: Base,
    photos: PhotoSet,
    name: str,
    noun: str | None,
    recipe: TrainConfig,
    *,
    seed: int = 0,
    registry: Registry | None = None,
    progress: Progress = quiet,
) -> Concept:
    """Teach `base` the subject of the photos; the base is as it was afterwards, whatever happens.

    Same seed, machine and versions: same bytes. Raises BadRecipe for values that make no sense, BadBase for
    a base that cannot learn, ConceptError when the pipeline carries concepts, or the loss is no number.
    """
    request = TrainRequest((Subject(name, noun, photos),), recipe, seed=seed)
    return train(request, Session(base, registry, progress)).whole


def train(
    request: TrainRequest,
    session: Session,
    checkpoints: CheckpointManager | None = None,
    class_images: Mapping[str, ClassImages] | None = None,
) -> Outcome:
    """Teach the session's base one or several subjects in one run, as `learn` does one.

    checkpoints: where they go, and the one to go on from. class_images: by class noun, encoded; by default
    those of the subjects, and else what the base draws.
    """
    session = replace(session, base=refreshed(session.base))
    config_checks.check(session.base, request.subjects, request.config)
    memory.check(session.base, request.config)
    processes, parts = session.distributed.size, request.config.gradient_accumulation_steps
    if processes * parts > request.config.train_batch_size:
        raise BadRecipe(
            f"A batch of {request.config.train_batch_size} has no {parts} parts for each of {processes} "
            "processes; give a larger batch"
        )
    given = class_images
    if given is None:
        given = prior_preservation.of_photo_sets(
            session.base, request.subjects, request.config.instance_prompt
        )
    if prior_preservation.undrawn(request.subjects, request.config, given):
        config_checks.check_drawing(session.base)
    with (
        seeded(request.seed, torch.device(session.base.pipe._execution_device)),
        frozen(session.base),
        gradient_checkpointing(session.base, request.config),
    ):
        return _Run(request, session, checkpoints or CheckpointManager(), given).outcome()


@dataclass(eq=False)
class _Run:
    """One run of learning, from what it draws of the class to the concepts.

    done: progress so far. origins: of each token its first rows and where they are from.
    """

    request: TrainRequest
    session: Session
    checkpoints: CheckpointManager
    given: Mapping[str, ClassImages]
    done: int = 0
    total: int = 0
    origins: dict[str, tuple[tuple[Tensor, ...], dict[str, str]]] = field(default_factory=dict)

    @property
    def recipe(self) -> TrainConfig:
        return self.request.config

    @property
    def base(self) -> Base:
        return self.session.base

    @property
    def adapter(self) -> Adapter:
        return adapter_of(self.recipe)

    def outcome(self) -> Outcome:
        """All of it, in order."""
        recipe, session = self.recipe, self.session
        drawn = prior_preservation.undrawn(self.request.subjects, recipe, self.given)
        self.done = recipe.num_class_images * len(drawn)
        self.total = self.done + recipe.token_train_steps + recipe.max_train_steps
        prior = self._class_images(drawn)
        with session.distributed.in_turn():
            statistics = statistics_of(self.base, session.registry)
        schedule = schedule_of(self.base.pipe.scheduler)
        classifier = diffusion_classifier.Classifier(
            self.base, schedule, recipe, self.request.seed, session.distributed
        )
        subjects = self._captioned(classifier)
        datasets = [_dataset(self.base, s, recipe, self.request.seed, subjects) for s in subjects]
        self._begin_tokens(subjects, datasets, classifier)
        first = {token: rows for token, (rows, _) in self.origins.items()}
        with add_tokens(self.base.pipe, first) as tokens:
            check_prompts(self.base, subjects, datasets)
            context = self._context(subjects, datasets, prior, schedule)
            early_stopping = validation.early_stopping_for(context)
            learn_token(
                context, tokens, self.checkpoints, early_stopping, self._progress("learning the word")
            )
            learned = tokens.read()
        concepts = [self._concept(s, learned) for s in subjects]
        self.done += recipe.token_train_steps
        delta = Delta()
        if recipe.max_train_steps:
            concepts, delta = self._learn_delta(context, concepts, statistics, early_stopping)
        whole = joint_training.join_concepts(concepts, delta, self.request.name, recipe, self.request.seed)
        notices = without_effect(concepts, delta, subjects, datasets, recipe, first)
        return Outcome(
            whole, tuple(concepts), tuple(early_stopping.curve), early_stopping.best_step, tuple(notices)
        )

    def _progress(self, text: str) -> Callable[[int], None]:
        """What follows the steps of a phase."""
        begun = self.done
        return lambda step: self.session.progress(begun + step, self.total, text)

    def _class_images(self, drawn: list[str]) -> ClassImages | None:
        """Pictures of the classes: those given, and those drawn now."""
        nouns = " and ".join(f"{noun}s" for noun in drawn)
        return prior_preservation.of_subjects(
            self.base,
            self.request.subjects,
            self.recipe,
            self.session.registry,
            lambda done, _: self.session.progress(done, self.total, f"drawing {nouns}"),
            self.session.distributed,
            self.given,
        )

    def _captioned(self, classifier: diffusion_classifier.Classifier) -> list[Subject]:
        """The subjects, with the words that the base has for a single photo without a caption."""
        kept, subjects = self.checkpoints, self.request.subjects
        if kept.resumed is None and self.recipe.auto_caption:
            if alone := [s for s in subjects if _without_caption(s)]:
                self.session.progress(self.done, self.total, "looking for words")
            kept.scenes = {s.name: classifier.scene(_still(self.base, s), str(s.noun)) for s in alone}
        return [replace(s, auto_caption=kept.scenes.get(s.name, s.auto_caption)) for s in subjects]

    def _begin_tokens(
        self,
        subjects: list[Subject],
        datasets: list[LatentDataset],
        classifier: diffusion_classifier.Classifier,
    ) -> None:
        """The first rows of each token."""
        recipe, kept = self.recipe, self.checkpoints
        if recipe.token_init == "described" and kept.resumed is None:
            self.session.progress(self.done, self.total, "looking for words")
            kept.looks = {
                s.name: s.noun and classifier.look(dataset, s.noun)
                for s, dataset in zip(subjects, datasets, strict=True)
            }
        for s in subjects:
            taken = " ".join(origin.get("identifier", "") for _, origin in self.origins.values()).split()
            self.origins[s.token] = token_init.init_token(
                self.base, s, recipe, self.request.seed, kept.looks.get(s.name), taken
            )

    def _context(
        self,
        subjects: list[Subject],
        datasets: list[LatentDataset],
        prior: ClassImages | None,
        schedule: NoiseSchedule,
    ) -> TrainingContext:
        recipe = self.recipe
        asks_states = recipe.sude_weight and recipe.sude_prompts == "states"
        return TrainingContext(
            self.base,
            tuple(subjects),
            latent_dataset.joined(datasets),
            prior,
            recipe,
            self.request.seed,
            schedule,
            self.session.distributed,
            self.adapter.reference(self.base, subjects, recipe),
            tuple(diffusion_classifier.states(self.base.pipe)) if asks_states else (),
        )

    def _concept(self, subject: Subject, learned: dict[str, tuple[Tensor, ...]]) -> Concept:
        """A concept of the word alone."""
        provenance: dict[str, Any] = {
            "photos": list(subject.photos.names),
            "photos_sha256": subject.photos.digest,
            "seed": self.request.seed,
            **self.origins[subject.token][1],
        }
        if not self.base.family.has_unet:
            provenance["family"] = self.base.family.name
        if scene := str(subject.auto_caption):
            provenance["scene"] = scene
        return Concept(
            name=subject.name,
            kind=subject.kind,
            noun=subject.noun,
            base=self.base.fingerprint,
            base_name=self.base.name,
            tokens={subject.token: learned[subject.token]},
            words={subject.name: subject.words},
            delta=Delta(),
            recipe=self.recipe.to_json(),
            provenance=provenance,
        )

    def _learn_delta(
        self,
        context: TrainingContext,
        concepts: list[Concept],
        statistics: CaptionStatistics,
        early_stopping: validation.EarlyStopping,
    ) -> tuple[list[Concept], Delta]:
        """The concepts with what they changed of the base, and the delta that all of them share."""
        recipe, base, adapter, keys = self.recipe, self.base, self.adapter, factor(statistics.gram)
        prepared = adapter.prepare(base, recipe, concepts, keys)
        concepts = prepared.concepts
        learned = {token: values for concept in concepts for token, values in concept.tokens.items()}
        jointly = recipe.train_token_jointly
        encoder = bool(text_encoder_maps(base, recipe.text_encoder_rank))
        with add_tokens(base.pipe, learned) as tokens, ExitStack() as undo:
            # Text that nothing upstream of will change is read before the adapter is there.
            conditionings = (
                None if encoder else training_step.encode_conditions(context, True, jointly, False)
            )
            delta = undo.enter_context(
                adapter.inject(base, recipe, context.seed, prepared, context.reference_attention)
            )
            groups = list(delta.groups)
            if jointly:
                groups += _word_groups(tokens, recipe)
            phase = TrainingPhase(
                name=training_step.DELTA,
                steps=recipe.max_train_steps,
                groups=groups,
                betas=optimizers.betas(recipe, 0.99),
                lr_schedule=lr_schedules.schedule_of(recipe, lr_schedules.annealed),
                token_fraction=recipe.train_text_encoder_ti_frac,
                with_prior=True,
                conditionings=conditionings or training_step.encode_conditions(context, True, jointly, True),
                regularizer=adapter.regularizer(base, recipe, concepts, delta, statistics),
                progress=self._progress("learning the delta"),
                before=recipe.token_train_steps,
                kept={f"token.{k}": row.detach().clone() for k, row in enumerate(tokens.rows)},
            )
            idle = not (encoder or jointly or recipe.validation_steps)
            with memory.put_away(base, text_encoders=idle):
                run(context, phase, self.checkpoints, early_stopping)
            found, learned = delta.read(), tokens.read()
        if recipe.extract_rank:
            found = found.truncated(recipe.extract_rank, balanced=True)
        if jointly:
            concepts = [replace(c, tokens={token: learned[token] for token in c.tokens}) for c in concepts]
        concepts = adapter.finish(base, recipe, concepts, keys, context.reference_attention)
        return joint_training.split_joint(concepts, found, keys, base), found


def learn_token(
    context: TrainingContext,
    tokens: Tokens,
    checkpoints: CheckpointManager,
    early_stopping: validation.EarlyStopping,
    progress: Callable[[int], None],
) -> None:
    """Textual inversion with the class noun: only the new rows move."""
    recipe = context.recipe
    rows = list(tokens.rows)
    if recipe.token_train_steps and not checkpoints.is_past("token"):
        phase = TrainingPhase(
            name="token",
            steps=recipe.token_train_steps,
            groups=_word_groups(tokens, recipe),
            betas=optimizers.betas(recipe, 0.999),
            lr_schedule=lr_schedules.schedule_of(recipe, lr_schedules.square_root),
            with_prior=False,
            conditionings=training_step.encode_conditions(
                context, with_prior=False, token_learns=True, encoder_learns=False
            ),
            regularizer=None,
            progress=progress,
        )
        with memory.put_away(context.base, text_encoders=False):
            run(context, phase, checkpoints, early_stopping)
    elif checkpoints.resumed is not None and checkpoints.is_past("token"):
        with torch.no_grad():
            for k, row in enumerate(rows):
                row.copy_(checkpoints.resumed.tensors[f"token.{k}"])
    for row in rows:
        row.requires_grad_(False)


def _dataset(
    base: Base, subject: Subject, recipe: TrainConfig, seed: int, run: list[Subject]
) -> LatentDataset:
    """The subject's views; what it is judged on, or is looked at, is not among them."""
    photos, contexts = subject.photos, latent_dataset.contexts_of(subject, run)
    begin = 1 if adapter_of(recipe).uses_reference(recipe) and len(photos) > 1 else 0
    held_out = recipe.validation_steps and len(photos) >= validation.HELD_OUT_FROM
    end = len(photos) - (1 if held_out else 0)
    return latent_dataset.latent_dataset(
        base,
        photos.part(begin, end),
        subject.words,
        recipe.num_augmented_views,
        seed,
        kind=subject.kind,
        contexts=contexts[begin:end],
        options=ViewOptions.of(recipe, str(subject.auto_caption)),
    )


def _without_caption(subject: Subject) -> bool:
    """Whether nothing is said of its only photo; several show by themselves what stays and what changes."""
    return len(subject.photos) == 1 and subject.noun is not None and not any(subject.photos.captions)


def _still(base: Base, subject: Subject) -> LatentDataset:
    """The photos as they are."""
    return latent_dataset.still_dataset(base, subject.photos, subject.words)


def _word_groups(tokens: Tokens, recipe: TrainConfig) -> list[ParameterGroup]:
    """The rows of a word, ready to learn; where rates are relative, in units of each encoder's own tokens.

    A rate that finds itself needs no units.
    """
    rows = _learning(list(tokens.rows))
    if not recipe.relative_to_weights or recipe.optimizer == PRODIGY:
        return [ParameterGroup(rows, "token_learning_rate")]
    units = [rms(table.weight) or 1.0 for table in tokens.tables]
    return [
        ParameterGroup([row], "token_learning_rate", unit=unit) for row, unit in zip(rows, units, strict=True)
    ]


def _learning(rows: list[nn.Parameter]) -> list[nn.Parameter]:
    for row in rows:
        row.data = row.data.float()
        row.requires_grad_()
    return rows
