"""Who disturbs whom in a merge, as a table for the terminal and as a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from conceptkit.pictures.contact_sheet import CARD, EDGE, INK, PAPER, SOFT
from conceptkit.pictures.text import block, length

if TYPE_CHECKING:
    from rich.table import Table


WIDEST = 12
"""Concepts that a terminal has columns for."""
COLD, HOT = (252, 250, 245), (196, 62, 40)
TITLE = "What each concept adds at the others' words"
LEGEND = (
    "Row: whose words. Column: who adds there, by what the row's own concept adds alone. 0 is undisturbed."
)

Matrix = Sequence[Sequence[float]]


def table(names: Sequence[str], interference: Matrix) -> "Table":
    """A coloured table for rich, own words on the diagonal; of many concepts those most disturbed."""
    from rich.table import Table
    from rich.text import Text

    shown = _worst(interference)
    view = Table(box=None, pad_edge=False)
    view.add_column("")
    for j in shown:
        view.add_column(names[j], justify="right", overflow="fold")
    for i in shown:
        cells = [
            Text(f"{interference[i][j]:.2f}", "dim" if i == j else f"black on {_hex(interference[i][j])}")
            for j in shown
        ]
        view.add_row(names[i], *cells)
    if len(shown) < len(names):
        view.caption = f"the {len(shown)} most disturbed of {len(names)} concepts"
    return view


def picture(names: Sequence[str], interference: Matrix, cell: int = 72) -> Image.Image:
    """The whole matrix with names around it: `cell` pixels a concept, smaller where there are many."""
    count = len(names)
    cell = max(18, min(cell, 1800 // max(1, count)))
    size = max(11, min(22, cell // 3))
    margin = 28
    left = margin + min(320, max(length(name, size) for name in names) + 14)
    legend = block(LEGEND, 16, max(360, count * cell + left - 2 * margin))
    heading = block(TITLE, 26, legend.width, bold=True)
    top = margin + heading.height + 10 + left - margin
    page = Image.new(
        "RGB",
        (
            left + max(count * cell, legend.width - left + margin) + margin,
            top + count * cell + legend.height + 40,
        ),
        PAPER,
    )
    page.paste(INK, (margin, margin), heading)
    pen = ImageDraw.Draw(page)
    for i, name in enumerate(names):
        label = block(name, size, left - margin - 8, align="right")
        middle = top + i * cell + (cell - label.height) // 2
        page.paste(INK, (margin, middle), label)
        upright = block(name, size, left - margin - 8).rotate(90, expand=True)
        page.paste(INK, (left + i * cell + (cell - upright.width) // 2, top - 8 - upright.height), upright)
        for j in range(count):
            box = (left + j * cell, top + i * cell, left + (j + 1) * cell - 1, top + (i + 1) * cell - 1)
            pen.rectangle(box, CARD if i == j else colour(interference[i][j]), EDGE)
            if cell >= 40:
                words = block(f"{interference[i][j]:.2f}", size, cell, align="center")
                at = (box[0], box[1] + (cell - words.height) // 2)
                page.paste(SOFT if i == j else INK, at, words)
    page.paste(SOFT, (margin, top + count * cell + 16), legend)
    return page


def colour(value: float) -> tuple[int, int, int]:
    """From paper at 0 to red at 1 and above."""
    share = min(1.0, max(0.0, value))
    red, green, blue = (round(cold + share * (hot - cold)) for cold, hot in zip(COLD, HOT, strict=True))
    return red, green, blue


def _worst(interference: Matrix) -> list[int]:
    """The concepts that are disturbed most, in their order."""
    disturbed = [sum(value**2 for j, value in enumerate(row) if j != i) for i, row in enumerate(interference)]
    most = sorted(range(len(disturbed)), key=lambda i: -disturbed[i])[:WIDEST]
    return sorted(most)


def _hex(value: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour(value))
