"""The learning loop: photos on one side, a concept on the other.

First the modifier token learns alone (Textual Inversion, 2208.01618). Then it stands still: the features of
the concept's words over many contexts are known, their principal rows C become the keys of the delta, and
only its values learn (Custom Diffusion, 2212.04488, with the delta written as D = V M^-1 C G^-1). What is
learned so acts where the composer's constraints are, and as little as possible on other captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conceptkit import metric
from conceptkit.base import Base, encoders, kv_maps
from conceptkit.compose import Factor, closed_form, factor
from conceptkit.concept import Concept, Factors
from conceptkit.contexts import constraint_rows
from conceptkit.errors import BadRecipe, ConceptError
from conceptkit.kv_delta import ADAPTER, install, read_delta, uninstall
from conceptkit.learn import conditions, losses, priors, views
from conceptkit.photos import PhotoSet
from conceptkit.recipes import Recipe
from conceptkit.tokens import Tokens, add_tokens

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry

Tick = Callable[[int, int, str], None]

LEARNED = (f"kv_delta_up.{ADAPTER}", f"kv_delta_weight.{ADAPTER}")


@dataclass(frozen=True, eq=False)
class _Lesson:
    """All that a step reads: the pool of views and the prior set."""

    base: Base
    pool: views.Pool
    prior: priors.PriorSet | None
    recipe: Recipe
    seed: int


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

    Same seed, machine and versions: same bytes. Raises BadRecipe for values that make no sense, ConceptError
    when the pipeline carries concepts, or the loss is no number any more.
    """
    _check(recipe)
    if present := getattr(base.pipe.encode_prompt, "attachment", None):
        carried = ", ".join(present.concepts)
        raise ConceptError(f"This pipeline carries {carried}, which {name} would build on; detach first")
    token = f"<{name}>"
    words = f"{token} {noun}" if noun else token
    begun = recipe.prior_size if noun and recipe.prior_weight and recipe.prior_batch else 0
    total = begun + recipe.token_steps + recipe.steps
    with torch.random.fork_rng(devices=[]), _frozen(base):
        torch.manual_seed(seed)
        prior = None
        if noun and begun:
            prior = priors.of_class(
                base, noun, recipe, registry, lambda done, _: tick(done, total, f"drawing {noun}s")
            )
        shape = metric.of_base(base, registry)
        with add_tokens(
            base.pipe, {token: first_rows(base, noun, recipe.aside, hash_of(seed, name, photos.digest))}
        ) as tokens:
            lesson = _Lesson(base, views.pool(base, photos, words, recipe.views, seed), prior, recipe, seed)
            _learn_token(lesson, tokens, lambda k: tick(begun + k, total, "learning the word"))
            learned = tokens.read()
        concept = Concept(
            name=name,
            kind="subject",
            noun=noun,
            base=base.fingerprint,
            base_name=base.name,
            tokens=learned,
            words={name: words},
            delta={},
            recipe=recipe.to_json(),
            provenance={"photos": list(photos.names), "photos_sha256": photos.digest, "seed": seed},
        )
        if not recipe.steps:
            return concept
        keys = factor(shape.gram)
        rows = constraint_rows(concept, base, keys)
        rows = rows[: recipe.rank] if recipe.rank else rows
        with add_tokens(base.pipe, learned):
            begun += recipe.token_steps
            delta = _learn_delta(
                lesson, rows, keys, shape, lambda k: tick(begun + k, total, "learning the look")
            )
    return Concept(**{**vars(concept), "delta": delta, "rows": rows.float()})


def _check(recipe: Recipe) -> None:
    for name, value in (("token_steps", recipe.token_steps), ("steps", recipe.steps), ("rank", recipe.rank)):
        if value < 0:
            raise BadRecipe(f"{name} = {value} makes no sense; give 0 or more")
    if recipe.steps + recipe.token_steps == 0:
        raise BadRecipe("0 steps teach nothing; give at least one")


def first_rows(base: Base, noun: str | None, aside: float, seed: int) -> tuple[Tensor, ...]:
    """Where a modifier token begins, per text encoder (1, d): `aside` lengths of its class noun away from it.

    The direction is random, so that no two concepts share it: what the text encoder makes of it is the key by
    which a delta finds its own words, and keys that point apart can be merged without loss.
    """
    rows = []
    for tokenizer, encoder in encoders(base.pipe):
        table = encoder.get_input_embeddings().weight.detach().float().cpu()
        ids = tokenizer(noun or "thing", add_special_tokens=False).input_ids
        away = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(seed))
        near = table[ids].mean(0)
        rows.append((near + aside * near.norm() * away / away.norm()).unsqueeze(0))
    return tuple(rows)


def _learn_token(lesson: _Lesson, tokens: Tokens, tick: Callable[[int], None]) -> None:
    """Textual inversion with the class noun: only the new rows move."""
    recipe, pipe = lesson.recipe, lesson.base.pipe
    if not recipe.token_steps:
        return
    optimiser = torch.optim.AdamW(
        [row.requires_grad_() for row in tokens.rows], lr=recipe.token_lr, weight_decay=0.0
    )
    for step in range(recipe.token_steps):
        optimiser.param_groups[0]["lr"] = recipe.token_lr * (1 - step / recipe.token_steps) ** 0.5
        own = conditions.read(pipe, lesson.pool.prompts)
        _descend(optimiser, _loss(lesson, ("token", step), own, None), step)
        tick(step + 1)
    for row in tokens.rows:
        row.requires_grad_(False)


def _learn_delta(
    lesson: _Lesson, rows: Tensor, keys: Factor, shape: metric.Metric, tick: Callable[[int], None]
) -> dict[str, Any]:
    """The values at the constraint rows; text features are read once, for nothing upstream learns."""
    recipe, base = lesson.recipe, lesson.base
    with torch.no_grad():
        own = conditions.read(base.pipe, lesson.pool.prompts).detach()
        prior = conditions.read(base.pipe, lesson.prior.prompts).detach() if lesson.prior else None
    down = key_factor(rows, keys).float().to(base.device) if recipe.rank else None
    install(base.unet, {name: _nothing(o, base.width, down) for name, o in base.sizes.items()})
    try:
        gram = shape.gram.float().to(base.device)
        ordinary = sum(
            float(((w.weight.float() @ gram) * w.weight).sum()) for w in kv_maps(base.unet).values()
        )
        read = torch.eye(base.width, device=base.device) if down is None else down
        lr = recipe.lr if recipe.rank else recipe.full_lr
        values = [p.requires_grad_() for name, p in base.unet.named_parameters() if name.endswith(LEARNED)]
        optimiser = torch.optim.AdamW(values, lr=lr, weight_decay=0.0, betas=(0.9, 0.99))
        for step in range(recipe.steps):
            optimiser.param_groups[0]["lr"] = lr * _ramp(step, recipe.steps)
            loss = _loss(lesson, ("delta", step), own, prior)
            if recipe.leak:
                loss = loss + recipe.leak * losses.leak(torch.cat(values), read, gram) / ordinary
            _descend(optimiser, loss, step)
            tick(step + 1)
        return dict(read_delta(base.unet, ADAPTER))
    finally:
        uninstall(base.unet, ADAPTER)


def _nothing(o: int, d: int, down: Tensor | None) -> Factors:
    """A delta (o, d) of zeros, over `down` (s, d) or full."""
    return (torch.zeros(o, d),) if down is None else (torch.zeros(o, len(down)), down)


def key_factor(rows: Tensor, keys: Factor) -> Tensor:
    """M^-1 C G^-1 (s, d): reads 1 at its own constraint row, 0 at the others, little in ordinary captions."""
    return closed_form(rows, torch.zeros(len(rows), 1), keys).down


def _loss(
    lesson: _Lesson, key: tuple[str, int], own: conditions.Condition, prior: conditions.Condition | None
) -> Tensor:
    """One step's loss; its random numbers depend on the seed and the step alone."""
    recipe, base, pool = lesson.recipe, lesson.base, lesson.pool
    dice = torch.Generator().manual_seed(hash_of(lesson.seed, *key))
    picks = torch.randint(len(pool.latents), (recipe.batch,), generator=dice)
    clean, mask = pool.latents[picks], pool.masks[picks]
    told = own[pool.prompt_of[picks].to(own.hidden.device)]
    if prior is not None and lesson.prior is not None:
        others = torch.randint(len(lesson.prior.latents), (recipe.prior_batch,), generator=dice)
        clean = torch.cat([clean, lesson.prior.latents[others].to(clean)])
        told = conditions.together(told, prior[others.to(prior.hidden.device)])
    schedule = base.pipe.scheduler
    t = losses.spread(len(clean), schedule.config.num_train_timesteps, dice)
    noise = torch.randn(clean.shape, generator=dice).to(clean)
    bars = schedule.alphas_cumprod[t].to(clean)
    noisy = losses.add_noise(clean, noise, bars)
    wanted = losses.target(schedule.config.prediction_type, clean, noise, bars)
    found = conditions.predict(base.pipe, noisy.to(base.dtype), t.to(base.device), told)
    n = recipe.batch
    subject = losses.masked_mse(found[:n], wanted[:n], mask)
    whole = torch.ones_like(found[n:, 0])
    preserved = losses.masked_mse(found[n:], wanted[n:], whole) if len(found) > n else None
    return losses.prior_weighted(subject, preserved, recipe.prior_weight)


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor, step: int) -> None:
    if not losses.finite(loss):
        raise ConceptError(f"The loss is no number at step {step}; try again with a smaller learning rate")
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _ramp(step: int, steps: int) -> float:
    """Up over a twentieth of the steps, level to the half, then straight down to zero."""
    return min(1.0, (step + 1) / max(1, steps // 20), 2 * (1 - step / steps))


def hash_of(*parts: object) -> int:
    """A stable 63-bit number for a generator."""
    import hashlib

    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


@contextmanager
def _frozen(base: Base) -> Iterator[None]:
    """Nothing of the base learns or drops out meanwhile; flags are put back."""
    modules = [m for m in base.pipe.components.values() if isinstance(m, torch.nn.Module)]
    flags = [(p, p.requires_grad) for m in modules for p in m.parameters()]
    modes = [(m, m.training) for m in modules]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        for m, _ in modes:
            m.eval()
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
        for m, mode in modes:
            m.train(mode)
