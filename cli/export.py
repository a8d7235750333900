"""`conceptkit export` and `import`: files for other programs, and bundles for other people."""

from pathlib import Path
from typing import Any

import click

from conceptkit.cli.progress import bar
from conceptkit.cli.shared_options import (
    RowName,
    base_option,
    debug_option,
    force_option,
    note,
    wrote,
)
from conceptkit.cli.terminal import echo
from conceptkit.errors import ConceptError
from conceptkit.files import check_folder, check_new_file
from conceptkit.formats.dialects import DIALECT, DIALECTS, dialect_of
from conceptkit.registry.paths import expanded


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    metavar="DIR",
    help="A folder for the files.",
)
@click.option(
    "--for",
    "dialect",
    type=RowName(DIALECTS, dialect_of),
    help=f"With --out or --to: whose files they are.  [default: {DIALECT}]",
)
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The folder of the program itself, which is there: the files go where it looks for them.",
)
@click.option(
    "--bundle",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="One file for other people's conceptkit, instead of --out.",
)
@click.option(
    "--all-versions", is_flag=True, help="In a bundle: every version, not only the one a name points at."
)
@click.option("--with-parents", is_flag=True, help="In a bundle: also what merges were made of.")
@click.option("--sign", is_flag=True, help="Sign the bundle with your key.")
@click.option("--key", metavar="NAME", help="Which of your keys signs; implies --sign.")
@force_option
@click.option(
    "--with-names",
    is_flag=True,
    help="With --out: also where the base lies on this machine, and what the photos are called.",
)
@base_option
@debug_option
def export(
    names: tuple[str, ...],
    out: Path | None,
    dialect: str | None,
    to: Path | None,
    bundle: Path | None,
    all_versions: bool,
    with_parents: bool,
    sign: bool,
    key: str | None,
    force: bool,
    with_names: bool,
    base: str | None,
) -> None:
    """Write files for other programs, or a bundle.

    A LoRA and embeddings of one concept, or of the merge of several. With --bundle, concepts with their
    previews, tags and notes, as `conceptkit import` reads them; photos are not in it, but for the reference
    photo of a concept learned with --method vico. No file has a path of this machine in it, or the names of
    your photos; only their hashes.

    \b
    Example:
      conceptkit export my_dog moongate --out ./for_diffusers
      conceptkit export my_dog --for comfyui --to ~/ComfyUI
      conceptkit export my_dog moongate --bundle ours.bundle
    """
    if to is not None and (out is not None or bundle is not None or dialect is None):
        raise click.UsageError(
            "--to is the folder of a program: give --for with it, and no --out or --bundle."
        )
    if to is not None:
        out = expanded(to)
        if not out.is_dir():
            raise ConceptError(f"There is no folder {to}; name the one that the program is in")
    if (out is None) == (bundle is None):
        raise click.UsageError("Missing option '--out' or '--bundle': give one of them.")
    if bundle is None and (all_versions or with_parents or sign or key):
        raise click.UsageError("--all-versions, --with-parents, --sign and --key belong to --bundle.")
    if bundle is not None and with_names:
        raise click.UsageError(
            "--with-names belongs to --out: in a bundle concepts are as they were learned."
        )
    if bundle is not None and dialect is not None:
        raise click.UsageError("--for belongs to --out: a bundle is for conceptkit.")
    if bundle is not None and base is not None:
        raise click.UsageError("--base belongs to --out: in a bundle concepts are as they were learned.")

    if out is not None:
        _files(names, out, base, dialect=dialect or DIALECT, force=force, with_names=with_names)
    if bundle is not None:
        check_new_file(bundle, force)

        from conceptkit.registry import private_names
        from conceptkit.registry.sharing import exchange
        from conceptkit.registry.store import Registry

        with Registry() as registry, bar("Exporting") as tick:
            entries = exchange.chosen(registry, names, every=all_versions, parents=with_parents)
            signer = (key or "") if sign or key else None
            done = exchange.export(registry, entries, bundle, signer=signer, progress=tick)
        if held := ", ".join(entry.ref for entry in done.entries if entry.summary.get("reference")):
            note(f"The bundle holds the reference photo of {held}, small but recognisable.")
        if done.private:
            note(private_names.sentence(done.private))
        echo(f"Wrote {done.file} with {', '.join(entry.ref for entry in done.entries)}.")
        echo(
            f"In it are {done.previews:,} previews, {done.said:,} tags and notes, "
            "and of photos the hashes alone."
        )


def refusals(sentences: list[str]) -> None:
    """Show what was refused while the rest went well, and end as for a mistake."""
    for sentence in sentences:
        note(sentence)
    if sentences:
        import inflect

        words = inflect.engine()
        count = len(sentences)
        things = f"{words.number_to_words(str(count), threshold=1)} {words.plural_noun('thing', count)}"
        was = words.plural_verb("was", count)
        raise ConceptError(f"All but {things} {was} sent or received: the notes above say why.")


def _files(names: tuple[str, ...], out: Path, base: str | None, **written: Any) -> None:
    from conceptkit.merging import request
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        for name in request.read(names):  # before torch and a base are loaded
            registry.get(name)
        check_folder(out)

        from conceptkit.workflows import export as workflow

        with bar("Exporting") as progress:
            done = workflow.export(names, out, base=base, registry=registry, progress=progress, **written)
    for sentence in done.notices:
        note(sentence)
    for path in done.files:
        wrote(path)
