"""Attention to a reference photo (ViCo, 2306.00971): maps that learn, and what a step sees of the photo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import END, positions, roles, spell, token_ids
from conceptkit.concepts.delta import Delta
from conceptkit.concepts.reference import Reference
from conceptkit.learn.train_config import TrainConfig
from conceptkit.learn.trainable_delta import ParameterGroup, init_factors
from conceptkit.tuners.image_attention import ImageAttention, Seen, sizes


@dataclass(eq=False)
class ReferenceAttentionTrainer:
    """The first photo of a subject, which is looked at; the others are learned from.

    latent (1, c, h, w), rounded as it will be stored. attention: None until `inject`, and nothing looks then.
    """

    base: Base
    token: str
    latent: Tensor
    attention: ImageAttention | None = None
    _maps: Delta = field(default_factory=Delta)
    _own: dict[tuple[str, ...], Tensor] = field(default_factory=dict)

    @contextmanager
    def inject(self, recipe: TrainConfig, seed: int) -> Iterator[ParameterGroup]:
        """The parameters that learn; the UNet is as it was at the end."""
        learned: list[nn.Parameter] = []

        def learning(factor: Tensor) -> Tensor:
            learned.append(nn.Parameter(factor.to(self.base.device)))
            return learned[-1]

        self._maps = Delta(
            {
                name: init_factors(name, size, recipe.rank, None, seed).map(learning)
                for name, size in sizes(self.base.denoiser).items()
            }
        )
        self.attention = ImageAttention(self.base.denoiser, self._maps)
        remove = self.attention.install()
        try:
            yield ParameterGroup(learned, "learning_rate" if recipe.rank else "full_learning_rate")
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
            ids = token_ids(pipe, prompts)
            word = positions(ids, spell(pipe, self.token)).float()
            end = (roles(pipe, ids) == END).float()
            own = torch.stack([word / word.sum(dim=1, keepdim=True).clamp_min(1), end], dim=2)
            self._own[prompts] = own.to(self.base.device)
        return self._own[prompts]

    def read(self, rank: int = 0) -> Reference:
        """The photo and what was learned about looking at it, cut to a rank above 0."""
        maps = Delta(
            {name: f.map(lambda factor: factor.detach().float().cpu()) for name, f in self._maps.items()}
        )
        return Reference(self.latent[0].cpu(), maps.truncated(rank, balanced=True) if rank else maps)
