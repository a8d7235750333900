"""Which words of its vocabulary a base would use for what photos show.

A base that predicts noise better under one caption than under another has classified the picture (Diffusion
Classifier, 2303.16203, section 3). Asked of every word for a look, with the same noise for all of them, it
tells where a modifier token best begins: the first picture from there is whole and in about the right
colours, and less is left to learn. Asked of places and states it tells what a missing caption would have
said: of a thing that is only ever seen running in a kitchen, both become a part, unless a prompt says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from conceptkit.base import conditioning
from conceptkit.base.conditioning import Condition
from conceptkit.base.noise_schedule import NoiseSchedule
from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import encoders
from conceptkit.learn import mixed_precision
from conceptkit.learn.distributed import DistributedContext
from conceptkit.learn.latent_dataset import LatentDataset
from conceptkit.learn.subject import StateAndPlace
from conceptkit.learn.train_config import TrainConfig
from conceptkit.rng import hash_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


FIRST, SAMPLES, FINALISTS = 8, 32, 5
"""All words are judged by the first samples; the best of them and the bare noun by all."""
PROMPT = "photo of a {}"


class Question(NamedTuple):
    """The noise levels that are asked, from least to most, as shares of all, and how clear an answer must be.

    clear: the share of the loss that a word must save to be believed.
    """

    least: float
    most: float
    clear: float = 0.0


# Below its levels a question is of lines; what is only to be seen at the noisiest, a state is not.
LOOK, PLACE, STATE = Question(0.2, 1.0), Question(0.2, 1.0, 0.01), Question(0.1, 0.7, 0.003)


def looks(pipe: DiffusionPipeline) -> list[str]:
    """Words for colours, patterns and materials that are one token in every tokenizer of a pipeline."""
    return _known(pipe, "looks.txt")


def states(pipe: DiffusionPipeline) -> list[str]:
    """Words for what a thing does, and for poses and states it can be in, of which the same is true."""
    return _known(pipe, "states.txt")


def places(pipe: DiffusionPipeline) -> list[str]:
    """Where a thing can be: "in a kitchen"; each word of it is one token, as above."""
    return _known(pipe, "places.txt")


@dataclass(frozen=True, eq=False)
class Classifier:
    """A base that says which of its words it would use for the views of a dataset.

    It sees as many of them at once as in a step of the recipe, in the recipe's precision.
    """

    base: Base
    schedule: NoiseSchedule
    recipe: TrainConfig
    seed: int
    distributed: DistributedContext

    def look(self, dataset: LatentDataset, noun: str) -> str | None:
        """The word that goes before a class noun best; None if the bare noun does better."""
        return self._best(dataset, noun, {word: f"{word} {noun}" for word in looks(self.base.pipe)}, LOOK)

    def scene(self, dataset: LatentDataset, noun: str) -> StateAndPlace:
        """What the thing does and where it is, as far as the base sees it clearly."""
        place = self._best(
            dataset, noun, {where: f"{noun} {where}" for where in places(self.base.pipe)}, PLACE
        )
        there = f" {place}" if place else ""
        phrases = {word: f"{noun} {word}{there}" for word in states(self.base.pipe)}
        state = self._best(dataset, noun + there, phrases, STATE)
        return StateAndPlace(state, place)

    @torch.no_grad()
    def _best(
        self, dataset: LatentDataset, plain: str, phrases: Mapping[str, str], question: Question
    ) -> str | None:
        """The word whose phrase does better than all others, and than the plain one by what is asked."""
        if not phrases:
            return None
        condition = conditioning.encode(
            self.base.pipe, [PROMPT.format(text) for text in (plain, *phrases.values())]
        )

        def losses(some: Sequence[int], samples: range) -> Tensor:
            return self.losses(
                dataset, condition[torch.tensor(some, device=condition.device)], samples, question
            )

        early = losses(range(len(phrases) + 1), range(FIRST))
        ranked = early[1:].mean(dim=1).argsort(stable=True)[:FINALISTS] + 1
        left = [0, *ranked.tolist()]
        late = losses(left, range(FIRST, SAMPLES))
        # all met the same noise, so that what the pictures themselves cost drops out of the comparison
        mean = torch.cat([early[left], late], dim=1).mean(dim=1)
        best = int(mean.argmin())
        if best == 0 or mean[0] - mean[best] < question.clear * mean[0]:
            return None
        return list(phrases)[left[best] - 1]

    def losses(
        self, dataset: LatentDataset, condition: Condition, samples: range, question: Question
    ) -> Tensor:
        """The loss of each of n texts in each sample: (n, len(samples)). Every text meets the same noise."""
        base, schedule, distributed = self.base, self.schedule, self.distributed
        least, most, _ = question
        table = torch.zeros(len(condition.hidden), len(samples), device=dataset.latents.device)
        mine = torch.arange(samples.start, samples.stop)[distributed.rank :: distributed.size]
        at_once = max(1, self.recipe.train_batch_size // self.recipe.gradient_accumulation_steps)
        for few in mine.split(at_once) if len(mine) else ():
            picks = few % len(dataset.latents)  # the photos take turns among the views
            # an order of noise levels in which any few are spread out: multiples of the golden ratio
            t = ((least + (most - least) * ((few + 0.5) * 0.618034 % 1)) * len(schedule)).long()
            shape = dataset.latents.shape[1:]
            drawn = [torch.randn(shape, generator=_dice(self.seed, k)) for k in few.tolist()]
            clean, mask, noise = (
                dataset.latents[picks],
                dataset.masks[picks],
                torch.stack(drawn).to(dataset.latents),
            )
            noisy, wanted = schedule.add_noise(clean, noise, t), schedule.target(clean, noise, t)
            times = schedule.told(t).to(base.device)
            for row in range(len(condition.hidden)):
                every = torch.full((len(few),), row, device=condition.device)
                with mixed_precision.autocast(base.device, self.recipe.mixed_precision):
                    found = conditioning.predict(base.pipe, noisy.to(base.dtype), times, condition[every])
                error = (found.float() - wanted).square().mean(dim=1) * mask
                table[row, few - samples.start] = error.sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
        return distributed.total(table).cpu()


def _known(pipe: DiffusionPipeline, file: str) -> list[str]:
    """The lines of a file in which each word is one token."""
    lines = files("conceptkit.wordlists").joinpath(file).read_text(encoding="utf-8").splitlines()
    tokenizers = [tokenizer for tokenizer, _ in encoders(pipe)]
    return [
        line
        for line in lines
        if all(
            len(tokenizer(word, add_special_tokens=False).input_ids) == 1
            for word in line.split()
            for tokenizer in tokenizers
        )
    ]


def _dice(seed: int, sample: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash_of(seed, "describing", sample))
