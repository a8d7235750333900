"""The help of all commands as it stands in README.md; `python -m conceptkit.cli.reference` writes it anew."""

from collections.abc import Iterator
from pathlib import Path

import click

from conceptkit.cli.main import main as root

BEGIN = "<!-- commands: written by `make readme` -->"
END = "<!-- end of commands -->"
WIDTH = 92


def pages(command: click.Command, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """(command line, help page) of a command and of all below it, `WIDTH` columns wide."""
    name = command.name if parent else "conceptkit"
    context = click.Context(
        command, info_name=name, parent=parent, terminal_width=WIDTH, **command.context_settings
    )
    yield context.command_path, context.get_help()
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found and not found.hidden:
                yield from pages(found, context)


def block() -> str:
    """The markdown between the markers: the overview, and the page of each command folded away."""
    (_, overview), *others = pages(root)
    folded = [f"**{line}**\n\n{_fenced(page)}" for line, page in others]
    summary = "<details>\n<summary>Every command and its options</summary>"
    return "\n\n".join([_fenced(overview), summary, *folded, "</details>"])


def renewed(text: str) -> str:
    """A README with its block written anew. Raises ClickException when it has no markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise click.ClickException(f"no place for the commands: put {BEGIN} and {END} where they belong")
    return f"{head}{BEGIN}\n{block()}\n{END}{tail}"


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), default="README.md")
def main(file: Path) -> None:
    """Write the help of all commands into FILE."""
    old = file.read_text(encoding="utf-8")
    new = renewed(old)
    file.write_text(new, encoding="utf-8")
    click.echo(f"{file} was up to date" if new == old else f"Wrote {file}")


def _fenced(page: str) -> str:
    return f"```text\n{page}\n```"


if __name__ == "__main__":
    main()
