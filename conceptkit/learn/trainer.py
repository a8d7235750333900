"""The learning loop: photos on one side, concepts on the other; what varies between methods is the recipe.

First the modifier token learns alone (Textual Inversion, 2208.01618). Then the look learns, wherever the
recipe's adapter puts it. By default the token stands still meanwhile: the features of the concept's words in
many contexts are known, their principal rows C become the keys of the delta, and only its values learn
(Custom Diffusion, 2212.04488, with the delta written as D = V M^-1 C G^-1). What is learned so acts where the
composer's constraints are, and as little as possible on other captions. Beside it a LoRA may learn on the
maps of attention that read no text, which say where in a picture things belong (`steering.voices`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conceptkit.base.added_tokens import Tokens, add_tokens
from conceptkit.base.noise_schedule import schedule_of
from conceptkit.base.pipeline import Base, refreshed
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta
from conceptkit.data.photos import PhotoSet
from conceptkit.errors import BadRecipe
from conceptkit.features import caption_statistics
from conceptkit.features.closed_form import Factor, factor
from conceptkit.features.concept_rows import constraint_rows
from conceptkit.learn import (
    config_checks,
    diffusion_classifier,
    joint_training,
    latent_dataset,
    prior_preservation,
    token_init,
    trainable_delta,
    training_step,
)
from conceptkit.learn.checkpoints import CheckpointManager
from conceptkit.learn.config import TrainConfig
from conceptkit.learn.distributed import current
from conceptkit.learn.early_stopping import HELD_OUT_FROM, SAMPLES, EarlyStopping
from conceptkit.learn.freeze import frozen, gradient_checkpointing
from conceptkit.learn.methods import regularizers, vico
from conceptkit.learn.methods.key_locking import class_rows, lock_keys
from conceptkit.learn.methods.keyed import class_row_count, key_factor, plain_rows
from conceptkit.learn.subject import Subject
from conceptkit.learn.training_loop import TrainingPhase, lr_schedule, run
from conceptkit.learn.training_step import TrainingContext
from conceptkit.rng import seeded

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry


Tick = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was learned: `whole` is all of it, `parts` each subject by itself, the same where there is one.

    curve: (step, validation loss); kept: the step that was kept, or None without validation.
    """

    whole: Concept
    parts: tuple[Concept, ...]
    curve: tuple[tuple[int, float], ...] = ()
    kept: int | None = None


def learn(
    base: Base,
    photos: PhotoSet,
    name: str,
    noun: str | None,
    recipe: TrainConfig,
    *,
    seed: int = 0,
    registry: Registry | None = None,
    tick: Tick = lambda done, total, text: None,
) -> Concept:
    """Teach `base` the subject of the photos; the base is as it was afterwards, whatever happens.

    Same seed, machine and versions: same bytes. Raises BadRecipe for values that make no sense, BadBase for
    a base that cannot learn, ConceptError when the pipeline carries concepts, or the loss is no number.
    """
    subject = Subject(name, noun, photos)
    return learn_together(base, [subject], recipe, seed=seed, registry=registry, tick=tick).whole


def learn_together(
    base: Base,
    subjects: Sequence[Subject],
    recipe: TrainConfig,
    *,
    name: str | None = None,
    seed: int = 0,
    registry: Registry | None = None,
    tick: Tick = lambda done, total, text: None,
    given: Mapping[str, prior_preservation.ClassImages] | None = None,
    keeper: CheckpointManager | None = None,
) -> Outcome:
    """Teach `base` one or several subjects in one run, as `learn` does one.

    name: of the joint concept. given: pictures of a class to hold on to, instead of what the base draws.
    keeper: where checkpoints go, and the one to go on from.
    """
    base = refreshed(base)
    config_checks.check(base, subjects, recipe)
    keeper, crew = keeper or CheckpointManager(), current()
    if crew.size * recipe.accumulate > recipe.batch:
        raise BadRecipe(
            f"A batch of {recipe.batch} has no {recipe.accumulate} parts for each of {crew.size} processes; "
            "give a larger batch"
        )
    drawn = prior_preservation.undrawn(subjects, recipe, given or {})
    begun = recipe.prior_size * len(drawn)
    total = begun + recipe.token_steps + recipe.steps
    with (
        seeded(seed, torch.device(base.pipe._execution_device)),
        frozen(base),
        gradient_checkpointing(base, recipe),
    ):
        nouns = " and ".join(f"{noun}s" for noun in drawn)
        prior = prior_preservation.of_subjects(
            base,
            subjects,
            recipe,
            registry,
            lambda done, _: tick(done, total, f"drawing {nouns}"),
            crew,
            given or {},
        )
        with crew.in_turn():
            shape = caption_statistics.statistics_of(base, registry)
        schedule = schedule_of(base.pipe.scheduler)
        classifier = diffusion_classifier.Classifier(base, schedule, recipe, seed, crew)
        if keeper.resumed is None and (alone := [s for s in subjects if recipe.scene and _untold(s)]):
            tick(begun, total, "looking for words")
            keeper.scenes = {s.name: classifier.scene(_still(base, s), str(s.noun)) for s in alone}
        subjects = [replace(s, scene=keeper.scenes.get(s.name, s.scene)) for s in subjects]
        pools = [_pool(base, s, recipe, seed, subjects) for s in subjects]
        if recipe.begin == "described" and keeper.resumed is None:
            tick(begun, total, "looking for words")
            keeper.looks = {
                s.name: s.noun and classifier.look(pool, s.noun)
                for s, pool in zip(subjects, pools, strict=True)
            }
        first: dict[str, tuple[tuple[Tensor, ...], dict[str, str]]] = {}
        for s in subjects:
            taken = " ".join(origin.get("identifier", "") for _, origin in first.values()).split()
            first[s.token] = token_init.init_token(base, s, recipe, seed, keeper.looks.get(s.name), taken)
        with add_tokens(base.pipe, {token: rows for token, (rows, _) in first.items()}) as tokens:
            taught = TrainingContext(
                base,
                tuple(subjects),
                latent_dataset.joined(pools),
                prior,
                recipe,
                seed,
                schedule,
                crew,
                vico.reference_trainer(base, subjects, recipe),
                tuple(diffusion_classifier.states(base.pipe))
                if recipe.sude and recipe.sude_prompts == "states"
                else (),
            )
            watch = _watch(taught)
            learn_token(taught, tokens, keeper, watch, lambda k: tick(begun + k, total, "learning the word"))
            learned = tokens.read()
        concepts = [_concept(base, s, recipe, seed, learned, first[s.token][1]) for s in subjects]
        if recipe.steps:
            begun += recipe.token_steps
            concepts, delta = _learn_look(
                taught,
                concepts,
                factor(shape.gram),
                shape,
                keeper,
                watch,
                lambda k: tick(begun + k, total, "learning the look"),
            )
        else:
            delta = {}
    whole = joint_training.join_concepts(concepts, delta, name, recipe, seed)
    return Outcome(whole, tuple(concepts), tuple(watch.curve), watch.best_step)


def _concept(
    base: Base,
    subject: Subject,
    recipe: TrainConfig,
    seed: int,
    learned: dict[str, tuple[Tensor, ...]],
    origin: Mapping[str, str],
) -> Concept:
    """A concept of the word alone. origin: where its token began."""
    provenance: dict[str, Any] = {
        "photos": list(subject.photos.names),
        "photos_sha256": subject.photos.digest,
        "seed": seed,
        **origin,
    }
    if scene := str(subject.scene):
        provenance["scene"] = scene
    return Concept(
        name=subject.name,
        kind=subject.kind,
        noun=subject.noun,
        base=base.fingerprint,
        base_name=base.name,
        tokens={subject.token: learned[subject.token]},
        words={subject.name: subject.words},
        delta={},
        recipe=recipe.to_json(),
        provenance=provenance,
    )


def _pool(
    base: Base, subject: Subject, recipe: TrainConfig, seed: int, run: Sequence[Subject]
) -> latent_dataset.LatentDataset:
    """The subject's views; what it is judged on, or looks at, is not among them."""
    photos, captions, masks = subject.photos, latent_dataset.contexts_of(subject, run), subject.masks
    begin = 1 if vico.uses_reference(recipe) and len(photos) > 1 else 0
    end = len(photos) - (1 if recipe.validate and len(photos) >= HELD_OUT_FROM else 0)
    if (begin, end) != (0, len(photos)):
        photos = replace(photos, pictures=photos.pictures[begin:end], names=photos.names[begin:end])
        captions, masks = captions[begin:end], masks[begin:end]
    return latent_dataset.latent_dataset(
        base,
        photos,
        subject.words,
        recipe.views,
        seed,
        kind=subject.kind,
        captions=captions,
        masks=masks,
        scene=str(subject.scene),
    )


def _untold(subject: Subject) -> bool:
    """Whether nothing is said of its only photo; several show by themselves what stays and what changes."""
    return len(subject.photos) == 1 and subject.noun is not None and not any(subject.captions)


def _still(base: Base, subject: Subject) -> latent_dataset.LatentDataset:
    """The photos as they are."""
    return latent_dataset.still_dataset(base, subject.photos, subject.words, masks=subject.masks)


def _watch(taught: TrainingContext) -> EarlyStopping:
    """The validation of a run: the photos held out, or all of them, with noise that never changes."""
    recipe = taught.recipe
    if not recipe.validate:
        return EarlyStopping()
    shown = []
    for subject in taught.subjects:
        photos, captions, masks = (
            subject.photos,
            latent_dataset.contexts_of(subject, taught.subjects),
            subject.masks,
        )
        if len(photos) >= HELD_OUT_FROM:
            photos = replace(photos, pictures=photos.pictures[-1:], names=photos.names[-1:])
            captions, masks = captions[-1:], masks[-1:]
        shown.append(
            latent_dataset.still_dataset(
                taught.base, photos, subject.words, subject.kind, captions, masks, str(subject.scene)
            )
        )
    plain = replace(recipe, batch=SAMPLES, sude=0.0, attention=0.0, accumulate=1)
    judged = replace(taught, pool=latent_dataset.joined(shown), prior=None, recipe=plain)
    judged = replace(judged, crew=type(taught.crew)())
    drawn = training_step.sample_step(judged, ("validation", 0), with_prior=False)
    even = torch.arange(SAMPLES) % len(judged.pool.latents)

    @torch.no_grad()
    def measure() -> float:
        told = training_step.encode_conditions(
            judged, with_prior=False, token_learns=False, encoder_learns=False
        )
        return float(training_step.loss(judged, replace(drawn, picks=even), told))

    return EarlyStopping(recipe.validate, recipe.patience, measure)


def learn_token(
    taught: TrainingContext,
    tokens: Tokens,
    keeper: CheckpointManager,
    watch: EarlyStopping,
    tick: Callable[[int], None],
) -> None:
    """Textual inversion with the class noun: only the new rows move."""
    recipe = taught.recipe
    rows = list(tokens.rows)
    if recipe.token_steps and not keeper.is_past("token"):
        stage = TrainingPhase(
            name="token",
            steps=recipe.token_steps,
            groups=[(_learning(rows), recipe.token_lr)],
            betas=(0.9, 0.999),
            ramp=lambda step, steps: (1 - step / steps) ** 0.5,
            with_prior=False,
            told=training_step.encode_conditions(
                taught, with_prior=False, token_learns=True, encoder_learns=False
            ),
            more=None,
            tick=tick,
            rates=["token_lr"],
        )
        run(taught, stage, keeper, watch)
    elif keeper.resumed is not None and keeper.is_past("token"):
        with torch.no_grad():
            for k, row in enumerate(rows):
                row.copy_(keeper.resumed.tensors[f"token.{k}"])
    for row in rows:
        row.requires_grad_(False)


def _learn_look(
    taught: TrainingContext,
    concepts: list[Concept],
    keys: Factor,
    shape: caption_statistics.CaptionStatistics,
    keeper: CheckpointManager,
    watch: EarlyStopping,
    tick: Callable[[int], None],
) -> tuple[list[Concept], Delta]:
    """The concepts with their looks, and the delta that all of them share."""
    recipe, base = taught.recipe, taught.base
    keyed = recipe.adapter == "keyed"
    if keyed:
        rows = [constraint_rows(concept, base, keys) for concept in concepts]
        rows = [own[: recipe.rank] if recipe.rank else own for own in rows]
        held = [
            plain_rows(c, base, keys, class_row_count(recipe, c, own))
            for c, own in zip(concepts, rows, strict=True)
        ]
        concepts = [
            replace(c, rows=torch.cat([own, still]).float())
            for c, own, still in zip(concepts, rows, held, strict=True)
        ]
    down = None
    if keyed and recipe.rank:
        by_noun = {concept.noun: still for concept, still in zip(concepts, held, strict=True)}
        down = key_factor(torch.cat(rows), torch.cat(list(by_noun.values())), keys).float().to(base.device)
    wanted = None
    if recipe.lock_keys:
        of_class = [class_rows(c, base, own) for c, own in zip(concepts, rows, strict=True)]
        wanted = torch.cat(of_class) - torch.cat(rows)
    learned = {token: values for concept in concepts for token, values in concept.tokens.items()}
    with add_tokens(base.pipe, learned) as tokens, ExitStack() as undo:
        goes_on, encoder = recipe.token_goes_on, bool(recipe.text_rank)
        # Text that nothing upstream of will change is read before the adapter is there.
        told = None if encoder else training_step.encode_conditions(taught, True, goes_on, False)
        look = undo.enter_context(trainable_delta.inject(base, recipe, taught.seed, down))
        groups = list(look.groups)
        if taught.sight is not None:
            groups += undo.enter_context(taught.sight.put_on(recipe, taught.seed))
        if wanted is not None:
            left = [(lock_keys(look, group, wanted), lr) for group, lr in groups]
            groups = [(group, lr) for group, lr in left if group]
        if goes_on:
            groups.append((_learning(list(tokens.rows)), recipe.token_lr))
        stage = TrainingPhase(
            name=training_step.DELTA,
            steps=recipe.steps,
            groups=groups,
            betas=(0.9, 0.99),
            ramp=lr_schedule,
            with_prior=True,
            told=told or training_step.encode_conditions(taught, True, goes_on, True),
            more=regularizers.regularizers_for(taught, concepts, look, shape),
            tick=tick,
            rates=[*trainable_delta.rates(recipe), *(["token_lr"] if goes_on else [])],
            before=recipe.token_steps,
            kept={f"token.{k}": row.detach().clone() for k, row in enumerate(tokens.rows)},
        )
        run(taught, stage, keeper, watch)
        delta, learned = look.read(), tokens.read()
    if taught.sight is not None:
        concepts = [replace(c, reference=taught.sight.read(recipe.extract)) for c in concepts]
    if recipe.extract:
        delta = delta.truncated(recipe.extract, balanced=True)
    if goes_on:
        concepts = [replace(c, tokens={token: learned[token] for token in c.tokens}) for c in concepts]
    if not keyed and not encoder and taught.sight is None:
        concepts = [replace(c, rows=constraint_rows(c, base, keys).float()) for c in concepts]
    return joint_training.split_joint(concepts, delta, keys, base), delta


def _learning(rows: list[nn.Parameter]) -> list[nn.Parameter]:
    for row in rows:
        row.data = row.data.float()
        row.requires_grad_()
    return rows
