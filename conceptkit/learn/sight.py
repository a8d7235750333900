"""Learning to look at a reference photo (ViCo, 2306.00971): maps that learn, and what a step sees of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from conceptkit.base import Base, encoders, token_ids
from conceptkit.concept import Factors
from conceptkit.contexts import positions, spell
from conceptkit.learn import adapters, views
from conceptkit.learn.subjects import Subject
from conceptkit.recipes import Recipe
from conceptkit.vico.attention import ImageAttention, Seen, sizes
from conceptkit.vico.photo import Reference

IMAGE = "image"
"""The adapter that looks at a photo."""


@dataclass(eq=False)
class Sight:
    """The first photo of a subject, which is looked at; the others are learned from.

    latent (1, c, h, w), rounded as it will be stored. attention: None until `put_on`, and nothing looks then.
    """

    base: Base
    token: str
    latent: Tensor
    attention: ImageAttention | None = None
    _maps: dict[str, Factors] = field(default_factory=dict)
    _own: dict[tuple[str, ...], Tensor] = field(default_factory=dict)

    @contextmanager
    def put_on(self, recipe: Recipe, seed: int) -> Iterator[list[tuple[list[nn.Parameter], float]]]:
        """Parameters that learn, with their rate; the UNet is as it was at the end."""
        learned: list[nn.Parameter] = []

        def learning(factor: Tensor) -> Tensor:
            learned.append(nn.Parameter(factor.to(self.base.device)))
            return learned[-1]

        self._maps = {
            name: tuple(learning(factor) for factor in adapters.first(name, size, recipe.rank, None, seed))
            for name, size in sizes(self.base.unet).items()
        }
        self.attention = ImageAttention(self.base.unet, self._maps)
        remove = self.attention.install()
        try:
            yield [(learned, recipe.lr if recipe.rank else recipe.full_lr)]
        finally:
            remove()
            self.attention = None

    def glance(self, run: Callable[[], object], prompts: tuple[str, ...], picks: Tensor) -> Seen:
        """What is seen of the photo while `run` runs the UNet on it, once for each of these prompts.

        picks (n,): indices into the prompts of a pool.
        """
        assert self.attention is not None
        return self.attention.look(run, self.own(prompts)[picks.to(self.base.device)])

    def own(self, prompts: tuple[str, ...]) -> Tensor:
        """Weights (prompts, T, 2) of positions: the word, as the mean of its vectors, and the end of text."""
        if prompts not in self._own:
            pipe = self.base.pipe
            tokenizer = encoders(pipe)[0][0]
            ids = token_ids(pipe, tokenizer, prompts)
            word = positions(ids, spell(pipe, self.token)).float()
            ends = (ids == tokenizer.eos_token_id).int().argmax(dim=1)
            end = nn.functional.one_hot(ends, ids.shape[1]).float()
            own = torch.stack([word / word.sum(dim=1, keepdim=True).clamp_min(1), end], dim=2)
            self._own[prompts] = own.to(self.base.device)
        return self._own[prompts]

    def read(self, rank: int = 0) -> Reference:
        """The photo and what was learned about looking at it, cut to a rank above 0."""
        maps = {name: tuple(factor.detach().float().cpu() for factor in f) for name, f in self._maps.items()}
        return Reference(self.latent[0].cpu(), adapters.cut(maps, rank) if rank else maps)


def of(base: Base, subjects: Sequence[Subject], recipe: Recipe) -> Sight | None:
    """The sight of a run whose recipe looks at a photo, else None."""
    if not looks(recipe):
        return None
    (subject,) = subjects
    photos = subject.photos
    first = replace(photos, pictures=photos.pictures[:1], names=photos.names[:1])
    latent = views.still(base, first, subject.words, subject.kind).latents
    return Sight(base, subject.token, latent.half().float())


def looks(recipe: Recipe) -> bool:
    return recipe.adapter == IMAGE and bool(recipe.steps)
