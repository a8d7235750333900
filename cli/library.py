"""`conceptkit scan` and `library`: the LoRAs and embeddings of other programs, where they lie."""

from pathlib import Path

import click

from conceptkit.cli.listing import size
from conceptkit.cli.progress import bar
from conceptkit.cli.shared_options import debug_option, echo_json, json_option, note
from conceptkit.cli.terminal import TEXT, clip, echo, echo_table
from conceptkit.registry.library.files import SORTS

SHOWN = 10
"""Sentences about single files that a scan prints."""


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@json_option
@debug_option
def scan(folder: Path, as_json: bool) -> None:
    """Find LoRAs and embeddings of other programs.

    They stay in the folder, and nothing is copied. What is known is not read again, a moved file is known by
    its hash, and a scan that is stopped goes on where it was. Nothing is asked of the network.

    \b
    Example:
      conceptkit scan ~/ComfyUI/models/loras
    """
    scan_folder(folder, as_json)


def scan_folder(folder: Path, as_json: bool) -> None:
    """Scan, and say what was found."""
    from dataclasses import asdict

    from conceptkit.registry.library.files import Library

    with Library() as library, bar("Scanning") as tick:
        done = library.scan(folder, tick)
    if as_json:
        echo_json(asdict(done))
        return
    counts = [(done.new, "new"), (done.changed, "changed"), (done.moved, "moved"), (done.gone, "gone")]
    told = ", ".join(f"{count:,} {what}" for count, what in counts if count) or "nothing new"
    same = f" {done.duplicates:,} hold the same tensors as another." if done.duplicates else ""
    echo(f"{done.files:,} files in {folder}: {told}.{same}")
    for sentence in done.problems[:SHOWN]:
        note(sentence)
    if len(done.problems) > SHOWN:
        note(f"{len(done.problems) - SHOWN:,} more files are like that: --json lists all.")


@click.command()
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--sort", type=click.Choice(list(SORTS)), default="name", show_default=True, help="The order.")
@click.option("--family", metavar="NAME", help="Only files for sd1, sd2, sdxl, sd3 or flux.")
@click.option("--kind", metavar="NAME", help="Only LoRA, LoHa, LoKr, DoRA, embedding, ...")
@click.option("--tag", metavar="TAG", help="Only files with that tag.")
@click.option("--duplicates", is_flag=True, help="Only files that hold the same tensors as another.")
@click.option("--add-tag", multiple=True, metavar="TAG", help="Put that tag on all files that are listed.")
@click.option("--remove-tag", multiple=True, metavar="TAG", help="Take that tag off all of them.")
@json_option
@debug_option
def library(
    words: tuple[str, ...],
    sort: str,
    duplicates: bool,
    add_tag: tuple[str, ...],
    remove_tag: tuple[str, ...],
    as_json: bool,
    **only: str | None,
) -> None:
    """List the files that `scan` found.

    WORDs are looked for in names, trigger words, tags and folders. `conceptkit import NAME` takes one of the
    files into the registry.

    \b
    Example:
      conceptkit library ink --family sdxl --sort date
    """
    from conceptkit.registry.library.files import Library

    with Library() as files:
        found = files.search(words, sort=sort, **only)
        if duplicates:
            twice = {one.path for group in files.duplicates() for one in group}
            found = [one for one in found if one.path in twice]
        if add_tag or remove_tag:
            count = files.tag(found, add_tag, remove_tag)
            echo(f"Tagged {count:,} files.", err=as_json)
            if not as_json:
                return
    if as_json:
        echo_json([one.to_json() for one in found])
    elif not found:
        echo("No file is like that; `conceptkit scan FOLDER` finds those of other programs.")
    else:
        head = ("NAME", "KIND", "FAMILY", "SIZE", "WORDS", "HASH", "TAGS")
        rows = [
            (
                clip(one.name, TEXT),
                one.about.kind,
                one.about.family or "-",
                size(one.bytes),
                clip(", ".join(one.about.words), TEXT),
                one.about.autov2,
                clip(" ".join(one.tags), TEXT),
            )
            for one in found
        ]
        echo_table([head, *rows])
