"""`conceptkit storybook`: the world of the built-in base."""

from pathlib import Path

import click

from conceptkit.cli.shared_options import debug_option, force_option, out_option, wrote


@click.group()
def storybook() -> None:
    """Draw subjects of the built-in world.

    \b
    Example:
      conceptkit storybook draw --class cat --seed 3
    """


@storybook.command()
@click.option("--class", "noun", metavar="NOUN", default="dog", show_default=True, help="What to draw.")
@click.option("--seed", type=int, default=0, show_default=True, help="Each seed is another subject.")
@click.option(
    "-n", "count", type=click.IntRange(1), default=5, show_default=True, help="How many pictures of it."
)
@out_option("my_photos", "Where the pictures go.")
@force_option
@debug_option
def draw(noun: str, seed: int, count: int, out: Path, force: bool) -> None:
    """Draw photos of a subject of your own.

    Teach it with `conceptkit add` afterwards.

    \b
    Example:
      conceptkit storybook draw --class dog --seed 7 --out ./my_photos
    """
    from conceptkit import storybook as library

    for path in library.draw_subject(noun, seed, count, out, force=force):
        wrote(path)
