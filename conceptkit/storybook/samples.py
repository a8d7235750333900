"""A hundred pictures for the model card, none chosen: `python -m conceptkit.storybook.samples`."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from conceptkit import base as bases
from conceptkit.images import grid, save_png
from conceptkit.storybook import data

COUNT, BATCH, STEPS = 100, 20, 25


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "samples.png", show_default=True
)
def main(out: Path) -> None:
    """Draw the captions of the first hundred held-out scenes with the seeds 0 to 99."""
    base = bases.load()
    told = [data.caption("scored", k, 0, empty=0) for k in range(COUNT)]
    drawn = []
    for start in range(0, COUNT, BATCH):
        drawn += base.pipe(
            told[start : start + BATCH],
            num_inference_steps=STEPS,
            guidance_scale=base.guidance,
            generator=[torch.Generator("cpu").manual_seed(k) for k in range(start, start + BATCH)],
        ).images
    save_png(grid(drawn, columns=10, tile=128, enlarge="nearest"), out, prompts=told, steps=STEPS)
    out.with_suffix(".txt").write_text("".join(f"{k:2} {text}\n" for k, text in enumerate(told)))
    click.echo(f"Wrote {out}")


if __name__ == "__main__":
    main()
