"""Charts as pictures, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import Bbox
from PIL import Image

DPI = 100
BLUE, ORANGE = "#1f5fa8", "#c2410c"
COLD, HOT = (252, 250, 245), (196, 62, 40)
"""Red, green and blue of 0 and of 1 in a matrix."""
_LABEL_PLACES = (
    *((7, 0, "left", "center"), (-7, 0, "right", "center"), (0, 8, "center", "bottom")),
    *((0, -8, "center", "top"), (7, 8, "left", "bottom"), (7, -8, "left", "top")),
    *((-7, 8, "right", "bottom"), (-7, -8, "right", "top"), (0, 22, "center", "bottom")),
    (0, -22, "center", "top"),
)
"""Where a point's name may stand: so far right of it and above it (1/72 inch), and how it is aligned."""
_LINE_PIECES = 100
COLOURS = (BLUE, "#d65824", "#348650", "#9648a0", "#78643c", "#c8285a", "#5a5a5a")


def loss_curve(
    curve: Sequence[tuple[int, float]], best: int | None, title: str, size: tuple[int, int] = (640, 400)
) -> Image.Image:
    """The loss over steps.

    curve: (step, loss) pairs, at least one. best: the step that was kept, marked; None: none was.
    size: pixels, (width, height).
    """
    figure, axes = _figure(size, title)
    steps, losses = zip(*curve, strict=True)
    axes.plot(steps, losses, color=BLUE, marker="o", markersize=4)
    if best is not None:
        loss = dict(curve)[best]
        axes.plot([best], [loss], "o", markersize=11, markerfacecolor="none", markeredgewidth=2, color=ORANGE)
        text, place = f"kept: step {best}", (0, -22)
        axes.annotate(text, (best, loss), place, textcoords="offset points", color=ORANGE, ha="center")
        axes.margins(y=0.25)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss")
    return _picture(figure)


def curves(
    title: str, across: str, upward: str, lines: Mapping[str, Sequence[tuple[float, float]]]
) -> Image.Image:
    """A line for each name through its points (x, y); x is logarithmic, y reaches from 0 to 1 at least."""
    figure, axes = _figure((1230, 720), title)
    for (name, points), colour in zip(
        lines.items(), COLOURS * (1 + len(lines) // len(COLOURS)), strict=False
    ):
        axes.plot([x for x, _ in points], [y for _, y in points], color=colour, marker="o", label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.0), max(high, 1.0))
    axes.set_xlabel(across)
    axes.set_ylabel(upward)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return _picture(figure)


def scatter(
    title: str, across: str, upward: str, points: Mapping[str, tuple[float, float]], joined: str = ""
) -> Image.Image:
    """A point (x, y) with its name for each, x logarithmic; those whose names begin with `joined` are a
    line."""
    figure, axes = _figure((900, 560), title)
    line = sorted(point for name, point in points.items() if joined and name.startswith(joined))
    if line:
        axes.plot([x for x, _ in line], [y for _, y in line], color=ORANGE, linewidth=2)
    for name, (x, y) in points.items():
        own = bool(joined) and name.startswith(joined)
        axes.plot([x], [y], "o", color=ORANGE if own else BLUE)
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.12)
    axes.set_xlabel(across)
    axes.set_ylabel(upward)
    axes.xaxis.set_major_formatter(EngFormatter())
    _name_points(figure, axes, points, line)
    return _picture(figure)


def _name_points(
    figure: Figure,
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    line: Sequence[tuple[float, float]],
) -> None:
    """A name beside each point, where it is clear of the points, the line and the names before it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # from here on the axes know where their points are, in pixels
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in _pixels(axes, list(points.values()))]
    ends = _pixels(axes, line)
    for first, second in pairwise(ends):
        taken += [Bbox.from_bounds(x - 2, y - 2, 4, 4) for x, y in np.linspace(first, second, _LINE_PIECES)]
    for name, point in points.items():
        best: tuple[int, Bbox, Annotation] | None = None
        for right, above, side, level in _LABEL_PLACES:
            label = axes.annotate(
                name, point, (right, above), textcoords="offset points", fontsize=9, ha=side, va=level
            )
            box = label.get_window_extent(canvas.get_renderer())
            outside = not (axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1)
            hits = sum(box.overlaps(other) for other in taken) + 2 * outside
            if best is None or hits < best[0]:
                if best is not None:
                    best[2].remove()
                best = hits, box, label
            else:
                label.remove()
            if not hits:
                break
        assert best is not None
        taken.append(best[1])


def _pixels(axes: Axes, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Where points (x, y) are in the picture: (n, 2)."""
    return np.asarray(axes.transData.transform(np.reshape(points, (-1, 2))))


def matrix(
    title: str, legend: str, names: Sequence[str], values: Sequence[Sequence[float]], cell: int = 72
) -> Image.Image:
    """A square table of colours with a name beside each row and column; the diagonal stays pale.

    values: (n, n), from 0, which is paper, to 1 and above, which is red. cell: pixels, less where n is large.
    """
    count = len(names)
    cell = max(18, min(cell, 1800 // max(1, count)))
    figure, axes = _figure((max(560, count * cell + 320), count * cell + 330), title)
    shades = [[0.0 if i == j else value for j, value in enumerate(row)] for i, row in enumerate(values)]
    ends = [[channel / 255 for channel in colour] for colour in (COLD, HOT)]
    axes.imshow(shades, cmap=LinearSegmentedColormap.from_list("paper to red", ends), vmin=0.0, vmax=1.0)
    size = max(6, min(11, cell // 5))
    axes.set_xticks(range(count), names, rotation=90, fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    if cell >= 40:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                colour = "#999999" if i == j else "white" if value > 0.6 else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=size, color=colour)
    figure.supxlabel(legend, fontsize=9, color="#555555", wrap=True)
    return _picture(figure)


def _figure(size: tuple[int, int], title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _picture(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
