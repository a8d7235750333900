"""`conceptkit compose`: concepts and a prompt become pictures."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptkit.cli.options import (
    base_option,
    debug_option,
    device_option,
    free_path,
    note,
    out_option,
    wrote,
)
from conceptkit.cli.progress import bar
from conceptkit.errors import BadPrompt
from conceptkit.merging import request

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
    type=click.Choice(list(request.WAYS)),
    default=request.HOW,
    show_default=True,
    help="How to merge; the first three are meant for use, the others for comparison.",
)
@click.option(
    "--shared",
    type=click.Choice(request.SHARED),
    default=request.SHARED[0],
    show_default=True,
    help="With --how routed: what the end of the prompt reads of the concepts in it.",
)
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="NAME=WHERE",
    help="Keep a concept in a part of the picture: left, top, right-third, ..., a box x0,y0,x1,y1 in "
    "fractions, or a PNG that is white there.",
)
@click.option("--separate", is_flag=True, help="Let the concepts split the picture by themselves.")
@click.option(
    "--side-by-side/--one-frame",
    "side_by_side",
    default=None,
    help="Draw a wide picture with a window for each concept in the prompt, or all in one frame.  "
    "[default: side by side on storybook]",
)
@click.option(
    "--read-apart/--read-together",
    "read_apart",
    default=None,
    help="In one frame, read each concept's words in a prompt without the other concepts, or the prompt as "
    "it is.  [default: apart on storybook]",
)
@click.option(
    "--heatmap",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a picture of who disturbs whom.",
)
@click.option("--save", metavar="NAME", help="Keep the merge as a concept of its own.")
@base_option
@device_option
@click.option("--steps", type=click.IntRange(1), default=25, show_default=True, help="Denoising steps.")
@click.option("--guidance", type=float, help="Guidance scale.  [default: the base's]")
@click.option(
    "--pag",
    type=click.FloatRange(0),
    metavar="SCALE",
    help="Scale of perturbed-attention guidance: things hold together better, for half as much time again. "
    " [default: 1.5 on storybook, else 0, which is none]",
)
@debug_option
def compose(
    names: tuple[str, ...],
    prompt: str,
    count: int,
    out: Path,
    seed: int,
    how: str,
    shared: str,
    regions: tuple[str, ...],
    separate: bool,
    side_by_side: bool | None,
    read_apart: bool | None,
    heatmap: Path | None,
    save: str | None,
    base: str | None,
    device: str,
    steps: int,
    guidance: float | None,
    pag: float | None,
) -> None:
    """Draw concepts together in one picture.

    Merges the concepts NAME... and draws the prompt; one name works too. NAME:0.8 is one at 0.8 of its
    strength.

    \b
    Example:
      conceptkit compose my_dog moongate --prompt "my_dog in front of a moongate" -n 4
    """
    from conceptkit.registry.store import Registry

    if not prompt.strip():
        raise BadPrompt(
            "An empty prompt draws nothing in particular: say what to draw, with a concept's name in it."
        )
    ordered = request.read(names)
    request.check_one_way_apart(regions, separate, side_by_side)
    with Registry() as registry:
        entries = [registry.get(name) for name in ordered]
        if save:
            registry.check_free(save)

        from conceptkit.base import devices
        from conceptkit.base import pipeline as bases
        from conceptkit.concepts import prompt_words
        from conceptkit.inference.attach import attach
        from conceptkit.inference.generate import guided
        from conceptkit.merging import compose as library
        from conceptkit.pictures import contact_sheet, png_metadata

        if regions:
            from conceptkit.inference import regions as places

            places.read(regions)
        with bar("Merging") as tick:
            where = devices.choose(device)
            loaded = bases.load(base or entries[0].summary.get("base_name", "storybook"), device=where)
            options: dict[str, Any] = {
                "registry": registry,
                "name": save,
                "how": how,
                "shared": shared,
                "tick": tick,
            }
            merge = library.compose(*names, base=loaded, **options)
            shown: Any = merge
            if save and len(entries) == 1:  # what is kept answers to `save`; the prompt has the name as given
                shown = merge.concept.called(entries[0].name)
            words = getattr(shown, "concept", shown).words
        apart: dict[str, Any] = {"regions": regions} if regions else {"separate": True} if separate else {}
        for name in sorted(set(words) - prompt_words.mentioned(prompt, words)):
            note(f"The prompt does not mention {name!r}: write the name where the thing should be.")

        metadata = {
            "prompt": prompt,
            "concepts": [entry.ref for entry in entries],
            "hashes": [entry.hash for entry in entries],
            "base": loaded.name,
            "weights": list(ordered.values()),
            "how": how,
            **apart,
            "steps": steps,
        }
        tiles = []
        with (
            attach(
                loaded.pipe, shown, side_by_side=side_by_side, read_apart=read_apart, **apart
            ) as attachment,
            guided(loaded, guidance, pag) as (pipe, scales),
        ):
            metadata |= {"guidance": scales["guidance_scale"], "pag": scales.get("pag_scale", 0.0)}
            metadata["read_apart"] = attachment.read_apart
            drawing = {"num_inference_steps": steps, **scales}
            if clauses := attachment.clauses(prompt):
                metadata["windows"] = list(clauses.values())
                note("Side by side: " + " | ".join(clauses.values()))
            for number, picture in draw(pipe, prompt, range(seed, seed + count), drawing):
                path = free_path(out, f"{slug(prompt)}-{number}", ".png")
                png_metadata.save_png(picture, path, **metadata, seed=number)
                wrote(path)
                tiles.append(contact_sheet.Tile(picture, f"seed {number}"))
        if save:  # last, so that a merge that cannot be drawn is not kept
            stored = registry.add(save, merge.concept.to_bytes(), merge.concept.summary())
            click.echo(f"Stored {stored.ref}.")
    if count > 1:
        path = free_path(out, f"{slug(prompt)}-sheet", ".png")
        sheet = contact_sheet.sheet(
            [contact_sheet.Row(tiles)], title=prompt, subtitle=" + ".join(names), per_line=4
        )
        png_metadata.save_png(sheet, path, **metadata, seeds=list(range(seed, seed + count)))
        wrote(path)
    _tell(merge.report, heatmap)


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


def _tell(report: Any, file: Path | None) -> None:
    """Who disturbs whom, where several are merged, and what each keeps."""
    interference = getattr(report, "interference", ())
    if interference:
        from rich.console import Console

        from conceptkit.pictures import heatmap

        click.echo(f"{heatmap.TITLE}:")
        Console().print(heatmap.table(report.names, interference))
        if file:
            from conceptkit.pictures.png_metadata import save_png

            wrote(save_png(heatmap.picture(report.names, interference), file, concepts=list(report.names)))
    elif file:
        from conceptkit.merging.report import MOST_PAIRED

        alone = len(getattr(report, "kept", ())) < 2
        note(
            "There is no heat map, because nobody can disturb a concept that is alone."
            if alone
            else f"There is no heat map of more than {MOST_PAIRED} concepts; compose fewer to see one."
        )
    click.echo(report.text())


def slug(prompt: str) -> str:
    """The beginning of a prompt as a file name: lower case, at most 48 characters."""
    return re.sub(r"\W+", "_", prompt.lower()).strip("_")[:48].rstrip("_") or "picture"
