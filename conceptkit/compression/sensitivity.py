"""What a concept's numbers do to what its base predicts: the metric in which they may be rounded.

A change e of a factor changes the prediction by J e, of mean square e^T F e with F = E[J^T J], the Fisher
information of a Gaussian at the prediction. With v ~ N(0, 1) the gradient g of v . prediction has E[g g^T] =
F; of a map with inputs x_t and gradients g_t at its outputs, that of `up` is sum_t g_t (down x_t)^T, that of
`down` sum_t (up^T g_t) x_t^T. They are measured picture by picture, on the concept's own prompts, at every
noise level.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from conceptkit.base import conditioning
from conceptkit.base.added_tokens import WiderTable
from conceptkit.base.noise_schedule import schedule_of
from conceptkit.base.pipeline import Base
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import ENCODERS, Delta
from conceptkit.features.prompt_templates import context_prompts
from conceptkit.inference.attach import attach
from conceptkit.rng import hash_of
from conceptkit.tuners.inject import ADAPTER
from conceptkit.tuners.kv_delta import KVDeltaLinear

PICTURES = 32
"""As many noisy pictures of the concept are looked at, each with a prompt and a noise level of its own."""
DRAWING_STEPS = 8
ROUNDS = 4
"""Gradients that are taken of each picture."""
BATCH = 16


@dataclass(frozen=True, eq=False)
class Probes:
    """Noisy pictures (n, c, h, w) of a concept, the times (n,) and prompts that a base is asked about them.

    plain: the prompts with the class noun in the concept's place. seen: what the base predicts with the
    concept on it; effect: the squared distance from there to what it predicts of `plain` without.
    """

    noisy: Tensor
    times: Tensor
    prompts: tuple[str, ...]
    plain: tuple[str, ...]
    seen: Tensor
    effect: float


@dataclass(eq=False)
class Sensitivity:
    """Gradients (n, o, r) of the ups by map and (n, r, d) of the downs by their key, see the module.

    tokens: mean square gradient of an embedding's entries, by token and encoder. effect: of all that the
    concept does to a picture, in the same units.
    """

    ups: dict[str, Tensor] = field(default_factory=dict)
    downs: dict[Hashable, Tensor] = field(default_factory=dict)
    tokens: dict[tuple[str, int], float] = field(default_factory=dict)
    effect: float = 1.0


def probes(base: Base, concept: Concept, seed: int = 0, pictures: int | None = None) -> Probes:
    """Pictures of the concept, drawn in few steps, with noise of all levels; see `Probes`."""
    told, pictures = context_prompts(concept), pictures or PICTURES
    prompts = tuple(told[k % len(told)] for k in range(pictures))
    plain = tuple(_plain(text, concept) for text in prompts)
    dice = torch.Generator().manual_seed(hash_of(seed, "probes"))
    schedule = schedule_of(base.pipe.scheduler)
    with torch.no_grad(), _attached(base, concept):
        clean = torch.cat([_drawn(base, prompts[k : k + BATCH], seed + k) for k in range(0, pictures, BATCH)])
        spread = (torch.arange(pictures) + torch.rand(pictures, generator=dice)) / pictures
        levels = (spread * len(schedule)).long().clamp(max=len(schedule) - 1)
        levels = levels[torch.randperm(pictures, generator=dice)]
        noise = torch.randn(clean.shape, generator=dice).to(clean)
        noisy = schedule.add_noise(clean, noise, levels.to(clean.device))
        times = schedule.told(levels).to(clean.device)
        seen = _predicted(base, noisy, times, prompts)
    with torch.no_grad():
        before = _predicted(base, noisy, times, plain)
    effect = float((seen - before).double().square().sum())
    return Probes(noisy, times, prompts, plain, seen, effect)


def kept(base: Base, concept: Concept, asked: Probes) -> float:
    """How much of its effect a changed concept still has: 1 - ||prediction - first prediction||^2 /
    effect."""
    with torch.no_grad(), _attached(base, concept):
        now = _predicted(base, asked.noisy, asked.times, asked.prompts)
    return 1 - float((now - asked.seen).double().square().sum()) / max(asked.effect, 1e-30)


def captions_moved(base: Base, concept: Concept, asked: Probes, captions: Sequence[str]) -> float:
    """What a concept does to ordinary captions: ||prediction with it - without||^2 / ||without||^2."""
    count = len(asked.prompts)
    prompts = tuple(captions[k * len(captions) // count] for k in range(count))
    with torch.no_grad():
        without = _predicted(base, asked.noisy, asked.times, prompts)
        with _attached(base, concept):
            now = _predicted(base, asked.noisy, asked.times, prompts)
    return float((now - without).double().square().sum() / without.double().square().sum())


def measure(base: Base, concept: Concept, asked: Probes, rounds: int = ROUNDS) -> Sensitivity:
    """The gradients of a concept whose maps all have low rank."""
    found = Sensitivity(effect=asked.effect / len(asked.prompts))
    ups: dict[str, list[Tensor]] = {}
    downs: dict[Hashable, list[Tensor]] = {}
    dice = torch.Generator().manual_seed(hash_of(0, "directions"))
    with (
        _frozen(base),
        _attached(base, _unrouted(concept)),
        _watched(base, concept.delta) as latest,
        torch.enable_grad(),
    ):
        rows = [table.rows.requires_grad_() for table in _tables(base)]
        squares = [torch.zeros(len(table), dtype=torch.float64) for table in rows]
        for start in [*range(0, len(asked.prompts), BATCH)] * rounds:
            picked = slice(start, start + BATCH)
            latest.clear()
            made = _predicted(base, asked.noisy[picked], asked.times[picked], asked.prompts[picked])
            (made * torch.randn(made.shape, generator=dice).to(made)).sum().backward()
            for square, table in zip(squares, rows, strict=True):
                if table.grad is not None:
                    square += table.grad.double().square().mean(dim=1).cpu()
                    table.grad = None
            summed: dict[Hashable, Tensor] = {}
            for name, (up, down) in latest.items():
                ups.setdefault(name, []).append(up)
                key = concept.delta.shared[name]
                summed[key] = summed[key] + down if key in summed else down
            for key, down in summed.items():
                downs.setdefault(key, []).append(down)
    found.ups = {name: torch.cat(parts) for name, parts in ups.items()}
    found.downs = {key: torch.cat(parts) for key, parts in downs.items()}
    for encoder, square in enumerate(squares):
        parts = square.split([len(each[encoder]) for each in concept.tokens.values()])
        for token, part in zip(concept.tokens, parts, strict=True):
            found.tokens[token, encoder] = float(part.mean()) / (rounds * len(asked.prompts))
    return found


def _unrouted(concept: Concept) -> Concept:
    """A routed merge with its ranks acting on every token: a near metric, where routes have no gradient."""
    return replace(concept, recipe={**concept.recipe, "method": None}) if concept.routing else concept


def _tables(base: Base) -> list[WiderTable]:
    """The token tables with the concept's rows, one for each text encoder."""
    tables = [encoder.get_input_embeddings() for _, encoder in base.encoders]
    return [table for table in tables if isinstance(table, WiderTable)]


@contextmanager
def _frozen(base: Base) -> Iterator[None]:
    """Nothing of the base has a gradient meanwhile."""
    modules = [part for part in base.pipe.components.values() if isinstance(part, torch.nn.Module)]
    flags = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def _watched(base: Base, delta: Delta) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Map -> the gradients (n, o, r), (n, r, d) of its factors in the last backward pass."""
    latest: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = []

    def watch(name: str) -> Any:
        factors = delta[name]

        def forward(_: Any, given: tuple[Tensor, ...], made: Tensor) -> None:
            inputs = given[0].detach().float().flatten(1, -2)

            def backward(gradient: Tensor) -> None:
                outer = gradient.float().flatten(1, -2)
                up, down = (factor.to(outer) for factor in factors)
                latest[name] = (
                    torch.einsum("nto,ntr->nor", outer, inputs @ down.T).cpu(),
                    torch.einsum("ntr,ntd->nrd", outer @ up, inputs).cpu(),
                )

            if not made.requires_grad:
                made.requires_grad_()
            made.register_hook(backward)

        return forward

    try:
        for name, layer in _layers(base):
            if name in delta:
                hooks.append(layer.register_forward_hook(watch(name)))
        yield latest
    finally:
        for hook in hooks:
            hook.remove()


def _layers(base: Base) -> Iterator[tuple[str, KVDeltaLinear]]:
    for part in ("unet", *ENCODERS):
        module = getattr(base.pipe, part, None)
        for path, layer in module.named_modules() if module is not None else ():
            if isinstance(layer, KVDeltaLinear) and ADAPTER in layer.scaling:
                yield (path if part == "unet" else f"{part}.{path}"), layer


@contextmanager
def _attached(base: Base, concept: Concept) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with attach(base.pipe, replace(concept, base=base.fingerprint), side_by_side=False):
            yield


def _drawn(base: Base, prompts: tuple[str, ...], seed: int) -> Tensor:
    dice = [torch.Generator("cpu").manual_seed(seed + k) for k in range(len(prompts))]
    bar = dict(getattr(base.pipe, "_progress_bar_config", {}))
    base.pipe.set_progress_bar_config(disable=True)
    try:
        images: Tensor = base.pipe(
            list(prompts),
            num_inference_steps=DRAWING_STEPS,
            generator=dice,
            output_type=base.architecture.latent_output,
            guidance_scale=base.family.guidance_scale,
        ).images
    finally:
        base.pipe.set_progress_bar_config(**bar)
    return images


def _predicted(base: Base, noisy: Tensor, times: Tensor, prompts: tuple[str, ...]) -> Tensor:
    parts = []
    for start in range(0, len(prompts), BATCH):
        picked = slice(start, start + BATCH)
        told = conditioning.encode(base.pipe, prompts[picked])
        parts.append(conditioning.predict(base.pipe, noisy[picked], times[picked], told))
    return torch.cat(parts)


def _plain(text: str, concept: Concept) -> str:
    """A prompt with the class noun where the concept's words stand."""
    for words in concept.words.values():
        text = text.replace(words, _noun(words, concept))
    return " ".join(text.split())


def _noun(words: str, concept: Concept) -> str:
    """What is left of words without the tokens: "<my_dog> dog" is a dog."""
    for token in concept.tokens:
        words = words.replace(token, "")
    return words.strip() or concept.noun or ""
