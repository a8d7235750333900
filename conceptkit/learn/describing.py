"""Which word of its vocabulary a base would use for what photos show.

A base that predicts noise better under one caption than under another has classified the picture (Diffusion
Classifier, 2303.16203, section 3). Asked of every word for a look, with the same noise for all of them, it
tells where a modifier token best begins: the first picture from there is whole and in about the right
colours, and less is left to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from conceptkit.base import Base, encoders
from conceptkit.learn import conditions
from conceptkit.learn.conditions import Condition
from conceptkit.learn.crew import Crew
from conceptkit.learn.dice import hash_of
from conceptkit.learn.noise import Schedule
from conceptkit.learn.views import Pool

FIRST, SAMPLES, FINALISTS = 8, 32, 5
"""All words are judged by the first samples; the best of them and the bare noun by all."""
LEAST = 0.2
"""Share of the noise levels, the least ones, that say more about lines than about looks."""
PROMPT = "photo of a {}"


def looks(pipe: Any) -> list[str]:
    """Words for colours, patterns and materials that are one token in every tokenizer of a pipeline."""
    words = files("conceptkit.captions").joinpath("looks.txt").read_text(encoding="utf-8").split()
    tokenizers = [tokenizer for tokenizer, _ in encoders(pipe)]
    return [
        word
        for word in words
        if all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for tokenizer in tokenizers)
    ]


@torch.no_grad()
def best(base: Base, pool: Pool, noun: str, schedule: Schedule, seed: int, crew: Crew) -> str | None:
    """The word that goes before a class noun best for the views of a pool, or None: the noun says as much."""
    words = looks(base.pipe)
    if not words:
        return None
    texts = [PROMPT.format(noun), *(PROMPT.format(f"{word} {noun}") for word in words)]
    told = conditions.read(base.pipe, texts)
    early = _losses(base, pool, told, range(len(texts)), range(FIRST), schedule, seed, crew)
    ranked = early[1:].mean(dim=1).argsort(stable=True)[:FINALISTS] + 1
    left = [0, *ranked.tolist()]
    late = _losses(base, pool, told, left, range(FIRST, SAMPLES), schedule, seed, crew)
    of_noun, *of_words = torch.cat([early[left], late], dim=1)
    gains = of_noun - torch.stack(
        of_words
    )  # met by the same noise, so that the pictures' own losses drop out
    sure = gains.mean(dim=1) - gains.std(dim=1) / SAMPLES**0.5
    first = int(gains.mean(dim=1).argmax())
    return words[left[1 + first] - 1] if sure[first] > 0 else None


def _losses(
    base: Base,
    pool: Pool,
    told: Condition,
    texts: Sequence[int],
    samples: range,
    schedule: Schedule,
    seed: int,
    crew: Crew,
) -> Tensor:
    """The loss of each text in each sample: (len(texts), len(samples)). Every text meets the same noise."""
    table = torch.zeros(len(texts), len(samples), device=pool.latents.device)
    mine = samples[crew.rank :: crew.size]
    if mine:
        picks = torch.tensor([k * len(pool.latents) // SAMPLES for k in mine])
        # an order of noise levels in which any few are spread out: multiples of the golden ratio
        levels = torch.tensor([LEAST + (1 - LEAST) * ((k + 0.5) * 0.618034 % 1) for k in mine])
        t = (levels * len(schedule)).long()
        shape = pool.latents.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=_dice(seed, k)) for k in mine]).to(pool.latents)
        clean, mask = pool.latents[picks], pool.masks[picks]
        noisy, wanted = schedule.add_noise(clean, noise, t), schedule.target(clean, noise, t)
        times = schedule.told(t).to(base.device)
        for row, text in enumerate(texts):
            every = torch.full((len(mine),), text, device=told.device)
            found = conditions.predict(base.pipe, noisy.to(base.dtype), times, told[every])
            error = (found.float() - wanted).square().mean(dim=1) * mask
            table[row, crew.rank :: crew.size] = error.sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
    return crew.total(table).cpu()


def _dice(seed: int, sample: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash_of(seed, "describing", sample))
