"""One step of learning: what is drawn for it, the conditions of its prompts, and the loss it comes to."""

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
from conceptkit.learn.distributed import DistributedContext
from conceptkit.learn.methods import sude
from conceptkit.learn.methods.reference_attention import ReferenceAttentionTrainer
from conceptkit.learn.methods.table import adapter_of
from conceptkit.learn.subject import Subject
from conceptkit.learn.train_config import TrainConfig
from conceptkit.learn.trainable_delta import silenced
from conceptkit.rng import hash_of
from conceptkit.tuners.image_attention import Seen, showing

Key = tuple[str, int]
DELTA = "delta"
"""The phase in which the delta learns, as its random numbers and checkpoints know it."""


@dataclass(frozen=True, eq=False)
class TrainingContext:
    """All that a step reads. prior: of the class. states: words for states, where SuDe asks for them."""

    base: Base
    subjects: tuple[Subject, ...]
    dataset: latent_dataset.LatentDataset
    prior: prior_preservation.ClassImages | None
    recipe: TrainConfig
    seed: int
    schedule: NoiseSchedule
    distributed: DistributedContext = field(default_factory=DistributedContext)
    reference_attention: ReferenceAttentionTrainer | None = None
    states: tuple[str, ...] = ()

    @property
    def able(self) -> tuple[str, ...]:
        """The dataset's prompts with the first of the states in them, then all with the second, and so on."""
        return tuple(self._doing(state, text) for state in self.states for text in self.dataset.prompts)

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
    """Conditions of the dataset's prompts and the prior's; for SuDe of the class's and the empty prompt.

    able: with states, what SuDe asks instead of the dataset's prompts; plain is then of the class in these.
    frozen: of the prior's prompts before anything is learned, where the base's own prediction is the prior.
    """

    own: Condition | LiveCondition
    prior: Condition | LiveCondition | None = None
    plain: Condition | LiveCondition | None = None
    empty: Condition | LiveCondition | None = None
    able: Condition | LiveCondition | None = None
    frozen: Condition | None = None


@dataclass(frozen=True, eq=False)
class StepSample:
    """The random part of a step, for the whole batch: n views first, then m prior pictures.

    picks (n,), others (m,): indices into dataset and prior; t (n + m,); noise (n + m, c, h, w).
    photo (n, c, h, w): noise for the reference photo, where there is one. states (n,): those SuDe asks about.
    latent (n, c, h, w): where in the autoencoder's distribution a view's latents are, in deviations.
    """

    picks: Tensor
    others: Tensor
    t: Tensor
    noise: Tensor
    photo: Tensor | None = None
    states: Tensor | None = None
    latent: Tensor | None = None


def sample_step(context: TrainingContext, key: Key, with_prior: bool) -> StepSample:
    """A step's random numbers, which depend on the seed and the step alone."""
    recipe, dataset = context.recipe, context.dataset
    dice = torch.Generator().manual_seed(hash_of(context.seed, *key))
    picks = torch.randint(len(dataset.latents), (recipe.train_batch_size,), generator=dice)
    others = torch.zeros(0, dtype=torch.int64)
    if with_prior and (among := _prior_pictures(context)):
        others = torch.randint(among, (recipe.prior_batch_size,), generator=dice)
    count = len(picks) + len(others)
    levels = len(context.schedule)
    if key[0] == DELTA:
        levels = max(1, round(recipe.max_timestep_fraction * levels))
    if recipe.weighting_scheme == "stratified":
        t = losses.spread(count, levels, dice)
    else:
        t = losses.sample_levels(recipe, count, levels, dice)
    shape = dataset.latents.shape[1:]
    noise = torch.randn((count, *shape), generator=dice)
    referring = adapter_of(recipe).uses_reference(recipe)
    photo = torch.randn((len(picks), *shape), generator=dice) if referring else None
    states = torch.randint(len(context.states), (len(picks),), generator=dice) if context.states else None
    latent = torch.randn((len(picks), *shape), generator=dice) if recipe.sample_latents else None
    return StepSample(picks, others, t, noise, photo, states, latent)


def own_prediction(recipe: TrainConfig) -> bool:
    """Whether the prior is what the frozen base predicts for the photos and their class."""
    return bool(
        recipe.prior_source == "base_prediction" and recipe.prior_loss_weight and recipe.prior_batch_size
    )


def _prior_pictures(context: TrainingContext) -> int:
    """How many pictures the prior is drawn from: the views themselves where it needs no others."""
    if own_prediction(context.recipe) and all(subject.noun for subject in context.subjects):
        return len(context.dataset.latents)
    return 0 if context.prior is None else len(context.prior.latents)


def encode_conditions(
    context: TrainingContext, with_prior: bool, token_learns: bool, encoder_learns: bool
) -> Conditionings:
    """What tells the UNet its prompts; text features are read now where nothing upstream of them learns."""
    pipe, recipe = context.base.pipe, context.recipe

    def fixed(prompts: Sequence[str]) -> Condition:
        """The base's own words: no token is in them, and what is drawn from them has no gradient."""
        with torch.no_grad():
            return conditioning.encode(pipe, prompts).detach()

    def live(prompts: Sequence[str]) -> LiveCondition:
        return LiveCondition(pipe, prompts)

    def at_rest(prompts: Sequence[str]) -> LiveCondition:
        """As they are now, without a gradient."""
        return LiveCondition(pipe, prompts, gradient=False)

    own = (live if token_learns or encoder_learns else fixed)(context.dataset.prompts)
    prior = frozen = None
    if with_prior and own_prediction(recipe) and _prior_pictures(context):
        frozen = fixed(context.plain(context.dataset.prompts))
        prior = live(context.plain(context.dataset.prompts)) if encoder_learns else frozen
    elif with_prior and context.prior is not None:
        prior = (live if encoder_learns else fixed)(context.prior.prompts)
    plain = empty = able = None
    if recipe.sude_weight and not context.states:
        rest = at_rest if encoder_learns else fixed
        plain, empty = rest(context.plain(context.dataset.prompts)), rest([""])
    elif recipe.sude_weight and (token_learns or encoder_learns):
        able, plain = live(context.able), at_rest(context.plain(context.able))
        empty = at_rest([""])
    return Conditionings(own, prior, plain, empty, able, frozen)


def loss(context: TrainingContext, drawn: StepSample, conditionings: Conditionings, part: int = 0) -> Tensor:
    """The loss of this process's share of a batch, of part `part` of it; the shares' losses add up."""
    recipe, dataset, distributed = context.recipe, context.dataset, context.distributed
    whole = len(drawn.picks)
    if distributed.size == recipe.gradient_accumulation_steps == 1:
        mine: Any = slice(None)
        theirs: Any = slice(None)
        places: Any = slice(None)
    else:
        mine = distributed.share(whole, part, recipe.gradient_accumulation_steps)
        theirs = distributed.share(len(drawn.others), part, recipe.gradient_accumulation_steps)
        places = torch.cat([mine, whole + theirs])
    picks, others, t = drawn.picks[mine], drawn.others[theirs], drawn.t[places]
    n = len(picks)
    clean = _clean(dataset, picks, None if drawn.latent is None else drawn.latent[mine])
    hidden = conditionings.own[dataset.prompt_of[picks].to(conditionings.own.device)]
    if conditionings.prior is not None and len(others):
        beside, told = _of_prior(context, others, conditionings.prior)
        clean, hidden = torch.cat([clean, beside.to(clean)]), conditioning.concatenate(hidden, told)
    noise = drawn.noise[places].to(clean)
    noisy = context.schedule.add_noise(clean, noise, t)
    wanted = context.schedule.target(clean, noise, t)
    if conditionings.frozen is not None and len(others):
        was = _of_prior(context, others, conditionings.frozen)[1]
        with torch.no_grad(), silenced(context.base.denoiser):
            wanted = torch.cat([wanted[:n], predict(context, noisy[n:], t[n:], was).to(wanted)])
    seen = None
    if drawn.photo is not None:
        every = torch.arange(n)
        seen = glance(context, picks, drawn.photo[mine], t[:n], hidden[every.to(hidden.hidden.device)])
    found = predict(context, noisy, t, hidden, seen)
    subject = _of_subject(context, drawn, picks, found[:n], wanted[:n], t[:n])
    preserved = None
    if len(found) > n:
        preserved = _preserved(context, found[n:], wanted[n:], t[n:], len(drawn.others))
    total = losses.prior_weighted(subject, preserved, recipe.prior_loss_weight)
    if seen is not None and recipe.attention_regularization_weight:
        total = total + recipe.attention_regularization_weight * seen.unlike().sum() / whole
    if conditionings.plain is not None and conditionings.empty is not None:
        states = None if drawn.states is None else drawn.states[mine]
        total = total + recipe.sude_weight * _inherited(
            context, found[:n], noisy[:n], t[:n], picks, states, conditionings, whole
        )
    return total


def _clean(dataset: latent_dataset.LatentDataset, picks: Tensor, place: Tensor | None) -> Tensor:
    """Latents of views (n, c, h, w): the autoencoder's means, or `place` deviations from them."""
    latents = dataset.latents[picks]
    if place is None or dataset.deviations is None:
        return latents
    return latents + dataset.deviations[picks] * place.to(latents)


def _of_prior(
    context: TrainingContext, others: Tensor, read: Condition | LiveCondition
) -> tuple[Tensor, Condition]:
    """Latents of the prior's pictures (m, c, h, w), and what is read of their prompts."""
    if own_prediction(context.recipe):
        dataset = context.dataset
        return dataset.latents[others], read[dataset.prompt_of[others].to(read.device)]
    assert context.prior is not None
    return context.prior.latents[others], read[others.to(read.device)]


def _of_subject(
    context: TrainingContext, drawn: StepSample, picks: Tensor, found: Tensor, wanted: Tensor, t: Tensor
) -> Tensor:
    """The loss of some of a batch's views, as a part of that of all."""
    recipe, dataset = context.recipe, context.dataset
    weights = level_weights(context, t)
    if recipe.snr_gamma:
        weights = losses.min_snr(context.schedule.prediction, context.schedule.bars[t], recipe.snr_gamma)
    if weights is None and recipe.masked_loss == "mean":
        return losses.masked_mse(found, wanted, dataset.masks[picks], dataset.masks[drawn.picks].sum())
    weights = torch.ones(len(picks)) if weights is None else weights
    summed = recipe.masked_loss == "channel_sum"
    return losses.weighted_mse(found, wanted, dataset.masks[picks], weights, len(drawn.picks), summed)


def _preserved(context: TrainingContext, found: Tensor, wanted: Tensor, t: Tensor, whole: int) -> Tensor:
    """The loss of some of a batch's prior pictures, as a part of that of all `whole` of them."""
    ones = torch.ones_like(found[:, 0])
    if (weights := level_weights(context, t)) is not None:
        return losses.weighted_mse(found, wanted, ones, weights, whole)
    return losses.masked_mse(found, wanted, ones, ones[:1].sum() * whole)


def level_weights(context: TrainingContext, t: Tensor) -> Tensor | None:
    """Weights (n,) of a flow's levels t (n,), where the recipe's scheme has any."""
    scheme, sigmas = context.recipe.weighting_scheme, context.schedule.sigmas
    if sigmas is None or scheme not in ("sigma_sqrt", "cosmap"):
        return None
    return losses.flow_weights(scheme, sigmas[t])


def glance(
    context: TrainingContext, picks: Tensor, noise: Tensor, t: Tensor, condition: Condition
) -> Seen | None:
    """What the UNet sees of the reference photo, noised as the views `picks` (n,) are, in the same condition.

    (The paper's authors give it the photo without noise, which a UNet at step t never sees.)
    """
    reference_attention = context.reference_attention
    if reference_attention is None or reference_attention.attention is None:
        return None
    clean = reference_attention.latent.expand(len(picks), -1, -1, -1)
    noisy = context.schedule.add_noise(clean, noise.to(clean), t)
    prompts = context.dataset.prompt_of[picks]
    return reference_attention.glance(
        lambda: predict(context, noisy, t, condition), context.dataset.prompts, prompts
    )


def predict(
    context: TrainingContext, noisy: Tensor, t: Tensor, condition: Condition, seen: Seen | None = None
) -> Tensor:
    """The UNet's prediction at the steps t, in the precision that the recipe asks for.

    seen: what the first of these pictures are shown of a reference photo.
    """
    base = context.base
    with mixed_precision.autocast(base.device, context.recipe.mixed_precision), showing(seen):
        return conditioning.predict(
            base.pipe, noisy.to(base.dtype), context.schedule.told(t).to(base.device), condition
        )


def _inherited(
    context: TrainingContext,
    found: Tensor,
    noisy: Tensor,
    t: Tensor,
    picks: Tensor,
    states: Tensor | None,
    conditionings: Conditionings,
    whole: int,
) -> Tensor:
    """SuDe over these views, through the weights as they are now; of `found`, or of what states ask for."""
    assert conditionings.plain is not None and conditionings.empty is not None
    schedule = context.schedule
    device = conditionings.plain.device
    prompts = context.dataset.prompt_of[picks].to(device)
    if conditionings.able is not None and states is not None:
        prompts = prompts + len(context.dataset.prompts) * states.to(device)
        found = predict(context, noisy, t, conditionings.able[prompts])
    plain = conditionings.plain[prompts]
    empty = conditionings.empty[torch.zeros(len(picks), dtype=torch.int64, device=device)]
    with torch.no_grad():
        both = predict(
            context, torch.cat([noisy, noisy]), torch.cat([t, t]), conditioning.concatenate(plain, empty)
        )
    of_class, of_nothing = both.float().chunk(2)
    guesses = [schedule.as_noise(guess.float(), noisy, t) for guess in (found, of_class, of_nothing)]
    weight = sude.weights(schedule.bars, t, context.recipe.sude_timestep_weighting)
    return sude.sude(guesses[0], guesses[1], guesses[2], weight, whole)
