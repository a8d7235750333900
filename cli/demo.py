"""`conceptkit demo`: the whole road on two concepts, ending in one contact sheet."""

from pathlib import Path

import click

from conceptkit.cli.progress import bar
from conceptkit.cli.shared_options import debug_option, out_option


@click.command()
@out_option("demo", "Where the contact sheet goes.")
@debug_option
def demo(out: Path) -> None:
    """Learn two concepts and draw them together.

    Works on the built-in base and writes one contact sheet.

    \b
    Example:
      conceptkit demo
    """
    from conceptkit.workflows import demo as library

    with bar("Demo", stages=True) as tick:
        library.run(out, tick)
    click.echo(f"Wrote {out / 'contact_sheet.png'}")
