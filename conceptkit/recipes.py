"""Recipes: the frozen hyper-parameters of each way to learn a concept. Adding one is adding a row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How one concept is learned.

    aside: how far from its class noun the modifier token begins, in lengths of the noun's embedding.
    token_steps: first the modifier token alone learns, at `token_lr` (Adam, per step, batch `batch`).
    steps: then the token stands still, its rows are known, and the delta learns at `lr` (full: `full_lr`).
    rank: constraint rows s of the keyed delta, as many as its words have and at most 8; 0: full matrices.
    batch, prior_batch: views of the subject and class pictures in one step; a step shows both.
    prior_weight: lambda of prior preservation (DreamBooth, 2208.12242, eq. 2).
    prior_size, prior_steps, prior_guidance: the class pictures that the frozen base draws.
    leak: weight of tr(D G D^T) / tr(W0 G W0^T), what the delta does to captions without the concept.
    views: augmented views encoded beforehand; the loop draws from them.
    """

    method: str
    aside: float = 2.2
    token_steps: int = 60
    token_lr: float = 1e-3
    steps: int = 240
    lr: float = 3e-2
    full_lr: float = 2e-4
    rank: int = 1
    batch: int = 8
    prior_batch: int = 4
    prior_weight: float = 1.0
    prior_size: int = 24
    prior_steps: int = 15
    prior_guidance: float = 3.0
    leak: float = 0.0
    views: int = 96

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


RECIPES: dict[str, Recipe] = {
    "custom": Recipe("custom"),
}
DEFAULT = "custom"
