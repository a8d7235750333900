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

from conceptkit import metric
from conceptkit.base import Base
from conceptkit.compose import Factor, closed_form, factor
from conceptkit.concept import Concept, Delta
from conceptkit.contexts import MOST_ROWS, constraint_rows
from conceptkit.errors import BadRecipe
from conceptkit.learn import (
    adapters,
    describing,
    lesson,
    parts,
    penalties,
    preflight,
    priors,
    sight,
    views,
    words,
)
from conceptkit.learn.checkpoints import Keeper
from conceptkit.learn.crew import find
from conceptkit.learn.lesson import Lesson
from conceptkit.learn.locking import class_rows, lock_keys, plain_rows
from conceptkit.learn.noise import schedule_of
from conceptkit.learn.stage import Stage, ramp, run
from conceptkit.learn.stillness import frozen, lean
from conceptkit.learn.subjects import Subject
from conceptkit.learn.validation import HELD_OUT_FROM, SAMPLES, Watch
from conceptkit.photos import PhotoSet
from conceptkit.recipes import Recipe
from conceptkit.tokens import Tokens, add_tokens

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
    recipe: Recipe,
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
    recipe: Recipe,
    *,
    name: str | None = None,
    seed: int = 0,
    registry: Registry | None = None,
    tick: Tick = lambda done, total, text: None,
    given: Mapping[str, priors.PriorSet] | None = None,
    keeper: Keeper | None = None,
) -> Outcome:
    """Teach `base` one or several subjects in one run, as `learn` does one.

    name: of the joint concept. given: pictures of a class to hold on to, instead of what the base draws.
    keeper: where checkpoints go, and the one to go on from.
    """
    preflight.check(base, subjects, recipe)
    keeper, crew = keeper or Keeper(), find()
    if crew.size * recipe.accumulate > recipe.batch:
        raise BadRecipe(
            f"A batch of {recipe.batch} has no {recipe.accumulate} parts for each of {crew.size} processes; "
            "give a larger batch"
        )
    drawn = priors.undrawn(subjects, recipe, given or {})
    begun = recipe.prior_size * len(drawn)
    total = begun + recipe.token_steps + recipe.steps
    with torch.random.fork_rng(devices=[]), frozen(base), lean(base, recipe):
        torch.manual_seed(seed)
        nouns = " and ".join(f"{noun}s" for noun in drawn)
        prior = priors.of_subjects(
            base,
            subjects,
            recipe,
            registry,
            lambda done, _: tick(done, total, f"drawing {nouns}"),
            crew,
            given or {},
        )
        with crew.in_turn():
            shape = metric.of_base(base, registry)
        schedule = schedule_of(base.pipe.scheduler)
        classifier = describing.Classifier(base, schedule, recipe, seed, crew)
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
            first[s.token] = words.begin(base, s, recipe, seed, keeper.looks.get(s.name), taken)
        with add_tokens(base.pipe, {token: rows for token, (rows, _) in first.items()}) as tokens:
            taught = Lesson(
                base,
                tuple(subjects),
                views.joined(pools),
                prior,
                recipe,
                seed,
                schedule,
                crew,
                sight.of(base, subjects, recipe),
                tuple(describing.states(base.pipe))
                if recipe.sude and recipe.sude_prompts == "states"
                else (),
            )
            watch = _watch(taught)
            _learn_token(taught, tokens, keeper, watch, lambda k: tick(begun + k, total, "learning the word"))
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
    whole = parts.together(concepts, delta, name, recipe, seed)
    return Outcome(whole, tuple(concepts), tuple(watch.curve), watch.best_step)


def _concept(
    base: Base,
    subject: Subject,
    recipe: Recipe,
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


def _pool(base: Base, subject: Subject, recipe: Recipe, seed: int, run: Sequence[Subject]) -> views.Pool:
    """The subject's views; what it is judged on, or looks at, is not among them."""
    photos, captions, masks = subject.photos, views.contexts_of(subject, run), subject.masks
    begin = 1 if sight.looks(recipe) and len(photos) > 1 else 0
    end = len(photos) - (1 if recipe.validate and len(photos) >= HELD_OUT_FROM else 0)
    if (begin, end) != (0, len(photos)):
        photos = replace(photos, pictures=photos.pictures[begin:end], names=photos.names[begin:end])
        captions, masks = captions[begin:end], masks[begin:end]
    return views.pool(
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


def _still(base: Base, subject: Subject) -> views.Pool:
    """The photos as they are."""
    return views.still(base, subject.photos, subject.words, masks=subject.masks)


def _watch(taught: Lesson) -> Watch:
    """The validation of a run: the photos held out, or all of them, with noise that never changes."""
    recipe = taught.recipe
    if not recipe.validate:
        return Watch()
    shown = []
    for subject in taught.subjects:
        photos, captions, masks = subject.photos, views.contexts_of(subject, taught.subjects), subject.masks
        if len(photos) >= HELD_OUT_FROM:
            photos = replace(photos, pictures=photos.pictures[-1:], names=photos.names[-1:])
            captions, masks = captions[-1:], masks[-1:]
        shown.append(
            views.still(taught.base, photos, subject.words, subject.kind, captions, masks, str(subject.scene))
        )
    plain = replace(recipe, batch=SAMPLES, sude=0.0, attention=0.0, accumulate=1)
    judged = replace(taught, pool=views.joined(shown), prior=None, recipe=plain)
    judged = replace(judged, crew=type(taught.crew)())
    drawn = lesson.draw(judged, ("validation", 0), with_prior=False)
    even = torch.arange(SAMPLES) % len(judged.pool.latents)

    @torch.no_grad()
    def measure() -> float:
        told = lesson.tell(judged, with_prior=False, token_learns=False, encoder_learns=False)
        return float(lesson.loss(judged, replace(drawn, picks=even), told))

    return Watch(recipe.validate, recipe.patience, measure)


def _learn_token(
    taught: Lesson, tokens: Tokens, keeper: Keeper, watch: Watch, tick: Callable[[int], None]
) -> None:
    """Textual inversion with the class noun: only the new rows move."""
    recipe = taught.recipe
    rows = list(tokens.rows)
    if recipe.token_steps and not keeper.is_past("token"):
        stage = Stage(
            name="token",
            steps=recipe.token_steps,
            groups=[(_learning(rows), recipe.token_lr)],
            betas=(0.9, 0.999),
            ramp=lambda step, steps: (1 - step / steps) ** 0.5,
            with_prior=False,
            told=lesson.tell(taught, with_prior=False, token_learns=True, encoder_learns=False),
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
    taught: Lesson,
    concepts: list[Concept],
    keys: Factor,
    shape: metric.Metric,
    keeper: Keeper,
    watch: Watch,
    tick: Callable[[int], None],
) -> tuple[list[Concept], Delta]:
    """The concepts with their looks, and the delta that all of them share."""
    recipe, base = taught.recipe, taught.base
    keyed = recipe.adapter == "keyed"
    if keyed:
        rows = [constraint_rows(concept, base, keys) for concept in concepts]
        rows = [own[: recipe.rank] if recipe.rank else own for own in rows]
        held = [
            plain_rows(c, base, keys, _held(recipe, c, own)) for c, own in zip(concepts, rows, strict=True)
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
        told = None if encoder else lesson.tell(taught, True, goes_on, False)
        look = undo.enter_context(adapters.put_on(base, recipe, taught.seed, down))
        groups = list(look.groups)
        if taught.sight is not None:
            groups += undo.enter_context(taught.sight.put_on(recipe, taught.seed))
        if wanted is not None:
            left = [(lock_keys(look, group, wanted), lr) for group, lr in groups]
            groups = [(group, lr) for group, lr in left if group]
        if goes_on:
            groups.append((_learning(list(tokens.rows)), recipe.token_lr))
        stage = Stage(
            name=lesson.LOOK,
            steps=recipe.steps,
            groups=groups,
            betas=(0.9, 0.99),
            ramp=ramp,
            with_prior=True,
            told=told or lesson.tell(taught, True, goes_on, True),
            more=penalties.of(taught, concepts, look, shape),
            tick=tick,
            rates=[*adapters.rates(recipe), *(["token_lr"] if goes_on else [])],
            before=recipe.token_steps,
            kept={f"token.{k}": row.detach().clone() for k, row in enumerate(tokens.rows)},
        )
        run(taught, stage, keeper, watch)
        delta, learned = look.read(), tokens.read()
    if taught.sight is not None:
        concepts = [replace(c, reference=taught.sight.read(recipe.extract)) for c in concepts]
    if recipe.extract:
        delta = adapters.cut(delta, recipe.extract)
    if goes_on:
        concepts = [replace(c, tokens={token: learned[token] for token in c.tokens}) for c in concepts]
    if not keyed and not encoder and taught.sight is None:
        concepts = [replace(c, rows=constraint_rows(c, base, keys).float()) for c in concepts]
    return parts.apart(concepts, delta, keys, base), delta


def _held(recipe: Recipe, concept: Concept, own: Tensor) -> int:
    """How many rows of its class there is room for beside a concept's own."""
    return min(recipe.hold, MOST_ROWS - len(own)) if recipe.rank and concept.noun else 0


def key_factor(rows: Tensor, held: Tensor, keys: Factor) -> Tensor:
    """The rows of M^-1 C G^-1 (s, d) that belong to `rows` (s, d), C being these and those `held` (h, d).

    It reads 1 at its own constraint row, 0 at the others and those held, little in ordinary captions.
    """
    both = torch.cat([rows, held])
    return closed_form(both, torch.zeros(len(both), 1), keys).down[: len(rows)]


def _learning(rows: list[nn.Parameter]) -> list[nn.Parameter]:
    for row in rows:
        row.data = row.data.float()
        row.requires_grad_()
    return rows
