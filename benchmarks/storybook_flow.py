"""What a base of joint attention and flow draws of the storybook's world: plain diffusers, the same judge.

`--folder DIR` is what `conceptkit.storybook.training flow` wrote; by default, the one in the package.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from benchmarks.report import finish, shortfall, use_own_cores
from benchmarks.storybook_base import PICTURES, prompt, scenes, score
from conceptkit import storybook
from conceptkit.evaluate.scorers import AttributeJudge
from conceptkit.inference.generate import STEPS

BARS = {"class": 0.90, "place": 0.95, "colour": 0.85, "both objects": 0.60}
AT_ONCE = 50


def load(folder: Path) -> StableDiffusion3Pipeline:
    """The pipeline of a folder, without a T5 encoder."""
    pipe = StableDiffusion3Pipeline.from_pretrained(str(folder), text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(
    pipe: StableDiffusion3Pipeline, prompts: list[str], steps: int, guidance: float, zeros: int
) -> list[Image.Image]:
    """One picture for each prompt, with seeds 0, 1, ... and so many rows of zeros in T5's place."""
    out: list[Image.Image] = []
    for k in range(0, len(prompts), AT_ONCE):
        part = prompts[k : k + AT_ONCE]
        out += pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=zeros,
            generator=[torch.Generator().manual_seed(k + i) for i in range(len(part))],
        ).images
    return out


@click.command()
@click.option(
    "--folder",
    type=click.Path(exists=True, path_type=Path),
    default=Path(storybook.path("flow")),
    help="The pipeline.  [default: the one in the package]",
)
@click.option("--count", default=PICTURES, show_default=True)
@click.option("--steps", default=STEPS, show_default=True)
@click.option("--guidance", default=4.0, show_default=True)
@click.option("--zeros", default=0, show_default=True, help="Rows of zeros behind the text.")
def main(folder: Path, count: int, steps: int, guidance: float, zeros: int) -> None:
    use_own_cores()
    pipe, judge = load(folder), AttributeJudge()
    found: dict[str, float] = {}
    for pair in (False, True):
        told = scenes(count, pair)
        found |= score(judge, told, draw(pipe, [prompt(scene) for scene in told], steps, guidance, zeros))
    for name, value in found.items():
        print(f"{name:13} {value:.3f}" + (f"  (bar {BARS[name]:.2f})" if name in BARS else ""))
    finish(
        "storybook_flow",
        found,
        "share",
        BARS,
        all(found.get(name, 0.0) >= bar for name, bar in BARS.items()),
        f"0..{count - 1}",
        trial=shortfall(pictures=(count, PICTURES)),
        steps=steps,
        guidance=guidance,
        zeros=zeros,
    )


if __name__ == "__main__":
    main()
