"""`conceptkit export`: files for programs that do not have conceptkit."""

from pathlib import Path

import click

from conceptkit.cli.options import base_option, debug_option, out_option, wrote
from conceptkit.cli.progress import bar


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@out_option(None, "A folder for the files.")
@base_option
@debug_option
def export(names: tuple[str, ...], out: Path, base: str | None) -> None:
    """Write files for plain diffusers.

    A LoRA and embeddings of one concept, or of the merge of several.

    \b
    Example:
      conceptkit export my_dog moongate --out ./for_diffusers
    """
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        entries = [registry.get(name) for name in names]

        from conceptkit import base as bases
        from conceptkit import merge as library
        from conceptkit.concept import read
        from conceptkit.formats import diffusers

        with bar("Exporting"):
            if len(names) == 1:
                what = read(registry, entries[0].ref)
            else:
                loaded = bases.load(base or entries[0].summary.get("base_name", "storybook"))
                what = library.compose(*names, base=loaded, registry=registry).concept
            files = diffusers.export(what, out)
    for path in files:
        wrote(path)
