"""`conceptkit compose`: concepts and a prompt become pictures."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptkit.cli.options import base_option, debug_option, free_path, note, out_option, wrote
from conceptkit.cli.progress import bar
from conceptkit.errors import BadPrompt

if TYPE_CHECKING:
    from PIL import Image


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--prompt", required=True, help="What to draw; a concept's name is a word in it.")
@click.option("-n", "count", type=click.IntRange(1), default=1, show_default=True, help="How many pictures.")
@out_option("pictures", "Where the pictures go.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the first picture.")
@click.option(
    "--how",
    type=click.Choice(["constrained", "sum"]),
    default="constrained",
    show_default=True,
    help="How to merge; 'sum' is naive addition, for comparison.",
)
@click.option("--save", metavar="NAME", help="Keep the merge as a concept of its own.")
@base_option
@click.option("--steps", type=click.IntRange(1), default=25, show_default=True, help="Denoising steps.")
@click.option("--guidance", type=float, help="Guidance scale.  [default: the base's]")
@debug_option
def compose(
    names: tuple[str, ...],
    prompt: str,
    count: int,
    out: Path,
    seed: int,
    how: str,
    save: str | None,
    base: str | None,
    steps: int,
    guidance: float | None,
) -> None:
    """Draw concepts together in one picture.

    Merges the concepts NAME... and draws the prompt; one name works too.

    \b
    Example:
      conceptkit compose my_dog moongate --prompt "my_dog in front of a moongate" -n 4
    """
    from conceptkit.registry.store import Registry

    if not prompt.strip():
        raise BadPrompt(
            "An empty prompt draws nothing in particular: say what to draw, with a concept's name in it."
        )
    with Registry() as registry:
        entries = [registry.get(name) for name in names]
        if save:
            registry.check_free(save)

        from conceptkit import base as bases
        from conceptkit import images, prompts
        from conceptkit import merge as library
        from conceptkit.attach import attach

        with bar("Merging"):
            loaded = bases.load(base or entries[0].summary.get("base_name", "storybook"))
            merge = library.compose(*names, base=loaded, registry=registry, name=save, how=how)
        for name in sorted(set(merge.concept.words) - prompts.mentioned(prompt, merge.concept.words)):
            note(f"The prompt does not mention {name!r}: write the name where the thing should be.")

        guidance = loaded.guidance if guidance is None else guidance
        metadata = {
            "prompt": prompt,
            "concepts": [entry.ref for entry in entries],
            "hashes": [entry.hash for entry in entries],
            "base": loaded.name,
            "how": how,
            "steps": steps,
            "guidance": guidance,
        }
        options = {"num_inference_steps": steps, "guidance_scale": guidance}
        tiles = []
        with attach(loaded.pipe, merge):
            for number, picture in draw(loaded.pipe, prompt, range(seed, seed + count), options):
                path = free_path(out, f"{slug(prompt)}-{number}", ".png")
                images.save_png(picture, path, **metadata, seed=number)
                wrote(path)
                tiles.append(images.Tile(picture, f"seed {number}"))
        if save:  # last, so that a merge that cannot be drawn is not kept
            stored = registry.add(save, merge.concept.to_bytes(), merge.concept.summary())
            click.echo(f"Stored {stored.ref}.")
    if count > 1:
        path = free_path(out, f"{slug(prompt)}-sheet", ".png")
        sheet = images.sheet([images.Row(tiles)], title=prompt, subtitle=" + ".join(names), per_line=4)
        images.save_png(sheet, path, **metadata, seeds=list(range(seed, seed + count)))
        wrote(path)
    click.echo(merge.report.text())


def draw(
    pipe: Any, prompt: str, seeds: range, options: Mapping[str, Any]
) -> "Iterator[tuple[int, Image.Image]]":
    """One (seed, picture) after another; each has a seed of its own, so that it can be drawn again alone."""
    import torch

    total = len(seeds) * options["num_inference_steps"]
    with bar("Drawing") as tick:
        for i, seed in enumerate(seeds):

            def after_step(_: Any, step: int, time: Any, kept: dict[str, Any], i: int = i) -> dict[str, Any]:
                tick(i * options["num_inference_steps"] + step + 1, total)
                return kept

            generator = torch.Generator("cpu").manual_seed(seed)
            result = pipe(prompt, generator=generator, callback_on_step_end=after_step, **options)
            yield seed, result.images[0]


def slug(prompt: str) -> str:
    """The beginning of a prompt as a file name: lower case, at most 48 characters."""
    return re.sub(r"\W+", "_", prompt.lower()).strip("_")[:48].rstrip("_") or "picture"
