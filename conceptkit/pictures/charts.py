"""Charts as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def loss_curve(
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
