"""A hundred pictures for the model card, none chosen: `python -m conceptkit.storybook.training.samples`."""

from __future__ import annotations

from pathlib import Path

import click

from conceptkit.base import pipeline as bases
from conceptkit.inference.generate import STEPS, draw
from conceptkit.pictures.contact_sheet import grid
from conceptkit.pictures.png_metadata import save_png
from conceptkit.storybook.training import data

COUNT = 100


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parents[1] / "samples.png",
    show_default=True,
)
def main(out: Path) -> None:
    """Draw the captions of the first hundred held-out scenes with the seeds 0 to 99."""
    base = bases.load()
    told = [data.caption("scored", k, 0, empty=0) for k in range(COUNT)]
    drawn = draw(base, told, range(COUNT), pag=0.0)  # as plain diffusers draws them
    save_png(grid(drawn, columns=10, tile=128, enlarge="nearest"), out, prompts=told, steps=STEPS)
    out.with_suffix(".txt").write_text("".join(f"{k:2} {text}\n" for k, text in enumerate(told)))
    click.echo(f"Wrote {out}")


if __name__ == "__main__":
    main()
