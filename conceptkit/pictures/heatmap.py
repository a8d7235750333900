"""Who disturbs whom in a merge, as a table for the terminal and as a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from conceptkit.pictures import charts
from conceptkit.pictures.charts import COLD, HOT

if TYPE_CHECKING:
    from rich.table import Table


WIDEST = 12
"""Concepts that a terminal has columns for."""
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
    return charts.matrix(TITLE, LEGEND, names, interference, cell)


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
