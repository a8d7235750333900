"""Charts as pictures, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

DPI = 100
BLUE, ORANGE = "#1f5fa8", "#c2410c"
COLD, HOT = (252, 250, 245), (196, 62, 40)
"""Red, green and blue of 0 and of 1 in a matrix."""
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
        axes.annotate(name, (x, y), (6, 5 if own else -12), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.12)
    axes.set_xlabel(across)
    axes.set_ylabel(upward)
    return _picture(figure)


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
