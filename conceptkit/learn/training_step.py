"""One step of learning: what is drawn for it, what the UNet is told, and the loss it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from conceptkit.base import conditioning
from conceptkit.base.conditioning import Condition, LiveCondition
from conceptkit.base.noise_schedule import NoiseSchedule
from conceptkit.base.pipeline import Base
from conceptkit.learn import latent_dataset, losses, mixed_precision, prior_preservation
from conceptkit.learn.config import TrainConfig
from conceptkit.learn.distributed import DistributedContext
from conceptkit.learn.methods import sude
from conceptkit.learn.methods.vico import ReferenceAttentionTrainer, uses_reference
from conceptkit.learn.subject import Subject
from conceptkit.rng import hash_of
from conceptkit.tuners.image_attention import Seen, showing

Key = tuple[str, int]
DELTA = "delta"
"""The stage in which the look learns, as its dice and checkpoints know it."""


@dataclass(frozen=True, eq=False)
class TrainingContext:
    """All that a step reads: the pool of views, the prior set, how the base is noised, what it looks at."""

    base: Base
    subjects: tuple[Subject, ...]
    pool: latent_dataset.LatentDataset
    prior: prior_preservation.ClassImages | None
    recipe: TrainConfig
    seed: int
    schedule: NoiseSchedule
    crew: DistributedContext = field(default_factory=DistributedContext)
    sight: ReferenceAttentionTrainer | None = None
    states: tuple[str, ...] = ()

    @property
    def able(self) -> tuple[str, ...]:
        """The pool's prompts with the first of the states in them, then all with the second, and so on."""
        return tuple(self._doing(state, text) for state in self.states for text in self.pool.prompts)

    def plain(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """Prompts with each subject's class in its place."""
        return tuple(self._plain(text) for text in prompts)

    def _plain(self, text: str) -> str:
        for subject in self.subjects:
            text = text.replace(subject.words, subject.noun or "")
        return text

    def _doing(self, state: str, text: str) -> str:
        for subject in self.subjects:
            text = subject.doing(state, text)
        return text


@dataclass(frozen=True, eq=False)
class Conditionings:
    """Conditions of the pool's prompts and the prior's; for SuDe of the class's and the empty prompt.

    able: with states, what SuDe asks instead of the pool's prompts; plain is then of the class in these.
    """

    own: Condition | LiveCondition
    prior: Condition | LiveCondition | None = None
    plain: Condition | LiveCondition | None = None
    empty: Condition | LiveCondition | None = None
    able: Condition | LiveCondition | None = None


@dataclass(frozen=True, eq=False)
class StepSample:
    """The random part of a step, for the whole batch: n views first, then m prior pictures.

    picks (n,), others (m,): indices into pool and prior; t (n + m,); noise (n + m, c, h, w).
    photo (n, c, h, w): noise for the reference photo, where there is one. states (n,): those SuDe asks about.
    """

    picks: Tensor
    others: Tensor
    t: Tensor
    noise: Tensor
    photo: Tensor | None = None
    states: Tensor | None = None


def sample_step(lesson: TrainingContext, key: Key, with_prior: bool) -> StepSample:
    """A step's random numbers, which depend on the seed and the step alone."""
    recipe, pool = lesson.recipe, lesson.pool
    dice = torch.Generator().manual_seed(hash_of(lesson.seed, *key))
    picks = torch.randint(len(pool.latents), (recipe.batch,), generator=dice)
    others = torch.zeros(0, dtype=torch.int64)
    if with_prior and lesson.prior is not None:
        others = torch.randint(len(lesson.prior.latents), (recipe.prior_batch,), generator=dice)
    count = len(picks) + len(others)
    levels = len(lesson.schedule)
    if key[0] == DELTA:
        levels = max(1, round(recipe.until * levels))
    t = losses.spread(count, levels, dice)
    shape = pool.latents.shape[1:]
    noise = torch.randn((count, *shape), generator=dice)
    photo = torch.randn((len(picks), *shape), generator=dice) if uses_reference(recipe) else None
    states = torch.randint(len(lesson.states), (len(picks),), generator=dice) if lesson.states else None
    return StepSample(picks, others, t, noise, photo, states)


def encode_conditions(
    lesson: TrainingContext, with_prior: bool, token_learns: bool, encoder_learns: bool
) -> Conditionings:
    """What tells the UNet its prompts; text features are read now where nothing upstream of them learns."""
    pipe, recipe = lesson.base.pipe, lesson.recipe

    def fixed(prompts: Sequence[str]) -> Condition:
        """The base's own words: no token is in them, and what is drawn from them has no gradient."""
        with torch.no_grad():
            return conditioning.encode(pipe, prompts).detach()

    def live(prompts: Sequence[str]) -> LiveCondition:
        return LiveCondition(pipe, prompts)

    def at_rest(prompts: Sequence[str]) -> LiveCondition:
        """As they are now, without a gradient."""
        return LiveCondition(pipe, prompts, gradient=False)

    own = (live if token_learns or encoder_learns else fixed)(lesson.pool.prompts)
    prior = None
    if with_prior and lesson.prior is not None:
        prior = (live if encoder_learns else fixed)(lesson.prior.prompts)
    plain = empty = able = None
    if recipe.sude and not lesson.states:
        rest = at_rest if encoder_learns else fixed
        plain, empty = rest(lesson.plain(lesson.pool.prompts)), rest([""])
    elif recipe.sude and (token_learns or encoder_learns):
        able, plain = live(lesson.able), at_rest(lesson.plain(lesson.able))
        empty = at_rest([""])
    return Conditionings(own, prior, plain, empty, able)


def loss(lesson: TrainingContext, drawn: StepSample, told: Conditionings, part: int = 0) -> Tensor:
    """The loss of this process's share of a batch, of part `part` of it; the shares' losses add up."""
    recipe, pool, crew = lesson.recipe, lesson.pool, lesson.crew
    whole = len(drawn.picks)
    if crew.size == recipe.accumulate == 1:
        mine: Any = slice(None)
        theirs: Any = slice(None)
        places: Any = slice(None)
    else:
        mine = crew.share(whole, part, recipe.accumulate)
        theirs = crew.share(len(drawn.others), part, recipe.accumulate)
        places = torch.cat([mine, whole + theirs])
    picks, others, t = drawn.picks[mine], drawn.others[theirs], drawn.t[places]
    n = len(picks)
    clean, mask = pool.latents[picks], pool.masks[picks]
    hidden = told.own[pool.prompt_of[picks].to(told.own.device)]
    if told.prior is not None and lesson.prior is not None and len(others):
        clean = torch.cat([clean, lesson.prior.latents[others].to(clean)])
        hidden = conditioning.concatenate(hidden, told.prior[others.to(told.prior.device)])
    noise = drawn.noise[places].to(clean)
    noisy = lesson.schedule.add_noise(clean, noise, t)
    wanted = lesson.schedule.target(clean, noise, t)
    seen = None
    if drawn.photo is not None:
        every = torch.arange(n)
        seen = glance(lesson, picks, drawn.photo[mine], t[:n], hidden[every.to(hidden.hidden.device)])
    found = predict(lesson, noisy, t, hidden, seen)
    cells = pool.masks[drawn.picks].sum()
    subject = losses.masked_mse(found[:n], wanted[:n], mask, cells)
    preserved = None
    if len(found) > n:
        ones = torch.ones_like(found[n:, 0])
        preserved = losses.masked_mse(found[n:], wanted[n:], ones, ones[:1].sum() * len(drawn.others))
    total = losses.prior_weighted(subject, preserved, recipe.prior_weight)
    if seen is not None and recipe.attention:
        total = total + recipe.attention * seen.unlike().sum() / whole
    if told.plain is not None and told.empty is not None:
        states = None if drawn.states is None else drawn.states[mine]
        total = total + recipe.sude * _inherited(
            lesson, found[:n], noisy[:n], t[:n], picks, states, told, whole
        )
    return total


def glance(lesson: TrainingContext, picks: Tensor, noise: Tensor, t: Tensor, told: Condition) -> Seen | None:
    """What the UNet sees of the reference photo, noised as the views `picks` (n,) are and told the same.

    (The paper's authors give it the photo without noise, which a UNet at step t never sees.)
    """
    sight = lesson.sight
    if sight is None or sight.attention is None:
        return None
    clean = sight.latent.expand(len(picks), -1, -1, -1)
    noisy = lesson.schedule.add_noise(clean, noise.to(clean), t)
    prompts = lesson.pool.prompt_of[picks]
    return sight.glance(lambda: predict(lesson, noisy, t, told), lesson.pool.prompts, prompts)


def predict(
    lesson: TrainingContext, noisy: Tensor, t: Tensor, told: Condition, seen: Seen | None = None
) -> Tensor:
    """The UNet's prediction at the steps t, in the precision that the recipe asks for.

    seen: what the first of these pictures are shown of a reference photo.
    """
    base = lesson.base
    with mixed_precision.autocast(base.device, lesson.recipe.precision), showing(seen):
        return conditioning.predict(
            base.pipe, noisy.to(base.dtype), lesson.schedule.told(t).to(base.device), told
        )


def _inherited(
    lesson: TrainingContext,
    found: Tensor,
    noisy: Tensor,
    t: Tensor,
    picks: Tensor,
    states: Tensor | None,
    told: Conditionings,
    whole: int,
) -> Tensor:
    """SuDe over these views, through the weights as they are now; of `found`, or of what states ask for."""
    assert told.plain is not None and told.empty is not None
    schedule = lesson.schedule
    device = told.plain.device
    prompts = lesson.pool.prompt_of[picks].to(device)
    if told.able is not None and states is not None:
        prompts = prompts + len(lesson.pool.prompts) * states.to(device)
        found = predict(lesson, noisy, t, told.able[prompts])
    plain = told.plain[prompts]
    empty = told.empty[torch.zeros(len(picks), dtype=torch.int64, device=device)]
    with torch.no_grad():
        both = predict(
            lesson, torch.cat([noisy, noisy]), torch.cat([t, t]), conditioning.concatenate(plain, empty)
        )
    of_class, of_nothing = both.float().chunk(2)
    guesses = [schedule.as_noise(guess.float(), noisy, t) for guess in (found, of_class, of_nothing)]
    weight = sude.weights(schedule.bars, t, lesson.recipe.sude_weight)
    return sude.sude(guesses[0], guesses[1], guesses[2], weight, whole)
