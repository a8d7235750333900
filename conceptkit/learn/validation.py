"""When to stop: the loss on fixed views with fixed noise at fixed timesteps, and the best step by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL import Image

SAMPLES = 16
HELD_OUT_FROM = 3
"""With so many photos or more the last one is not learned from, but judged on."""


@dataclass(eq=False)
class Watch:
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


def picture(
    curve: Sequence[tuple[int, float]], best: int | None, title: str, size: tuple[int, int] = (640, 400)
) -> Image.Image:
    """The curve as a picture: loss over steps, the best step marked, ends of both axes written out."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = size
    left, right, top, bottom = 76, width - 24, 52, height - 48
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    steps, losses = [step for step, _ in curve], [loss for _, loss in curve]
    low, high = min(losses), max(losses)
    wide, tall = max(1, max(steps) - min(steps)), max(high - low, 1e-9)

    def place(step: int, loss: float) -> tuple[float, float]:
        x = left + (right - left) * (step - min(steps)) / wide
        return x, bottom - (bottom - top) * (loss - low) / tall

    draw.text((left, 14), title, fill="black", font=font)
    draw.line([(left, top), (left, bottom), (right, bottom)], fill="#999999")
    draw.text((8, top - 8), f"{high:.4f}", fill="#444444", font=small)
    draw.text((8, bottom - 10), f"{low:.4f}", fill="#444444", font=small)
    draw.text((left, bottom + 10), str(min(steps)), fill="#444444", font=small)
    draw.text((right, bottom + 10), f"step {max(steps)}", fill="#444444", font=small, anchor="ra")
    points = [place(*point) for point in curve]
    if len(points) > 1:
        draw.line(points, fill="#2563a8", width=3, joint="curve")
    for x, y in points:
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill="#2563a8")
    if best is not None:
        x, y = place(best, dict(curve)[best])
        draw.ellipse([x - 7, y - 7, x + 7, y + 7], outline="#c2410c", width=3)
        draw.text(
            ((left + right) / 2, bottom + 10), f"kept: step {best}", fill="#c2410c", font=small, anchor="ma"
        )
    return image
