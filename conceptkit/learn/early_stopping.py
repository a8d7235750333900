"""When to stop: the loss on fixed views with fixed noise at fixed timesteps, and the best step by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

SAMPLES = 16
HELD_OUT_FROM = 3
"""With so many photos or more the last one is not learned from, but judged on."""


@dataclass(eq=False)
class EarlyStopping:
    """Follows the validation loss of one stage. curve: (step, loss)."""

    every: int = 0
    patience: int = 0
    measure: Callable[[], float] = float
    curve: list[tuple[int, float]] = field(default_factory=list)
    best_step: int | None = None
    best: list[Tensor] | None = None

    def look(self, step: int, parameters: Sequence[nn.Parameter], last: bool = False) -> bool:
        """Measure if it is time for it at the beginning of `step`; True when learning should stop."""
        if not self.every or (step % self.every and not last) or (self.curve and self.curve[-1][0] == step):
            return False
        loss = self.measure()
        self.curve.append((step, loss))
        if self.best_step is None or loss < dict(self.curve)[self.best_step]:
            self.best_step, self.best = step, [p.detach().clone() for p in parameters]
        since = sum(at > self.best_step for at, _ in self.curve)
        return bool(self.patience) and since >= self.patience

    def begin(self, step: int, parameters: Sequence[nn.Parameter]) -> None:
        """A new stage begins at `step`: as they are now the parameters may be the best that it comes to."""
        self.best, self.best_step = None, None
        self.curve = [(at, loss) for at, loss in self.curve if at != step]
        self.look(step, parameters, last=True)

    @torch.no_grad()
    def put_back(self, parameters: Sequence[nn.Parameter]) -> None:
        """The values of the best step."""
        if self.best is not None:
            for parameter, value in zip(parameters, self.best, strict=True):
                parameter.copy_(value)
