"""The generated pages of the reference; `python -m conceptkit.cli.reference` writes them anew."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click

from conceptkit.cli import configuration_reference
from conceptkit.cli.main import main as root

WIDTH = 76
FOLDER = Path(__file__).parents[1] / "docs" / "reference"
HEAD = """\
<!-- Written by `make reference`; change the help of the commands instead. -->

# Commands

Every command takes `--help`, and `--debug` to show the traceback of an error.
[Files and exit codes](files.md) says what a command reads and leaves behind.
"""


def helps(command: click.Command, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """(command line, help) of a command and of all below it, `WIDTH` columns wide."""
    name = command.name if parent else "conceptkit"
    context = click.Context(
        command, info_name=name, parent=parent, terminal_width=WIDTH, **command.context_settings
    )
    yield context.command_path, context.get_help()
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found and not found.hidden:
                yield from helps(found, context)


def commands_page() -> str:
    """The help of all commands, a heading each."""
    (_, overview), *others = helps(root)
    parts = [HEAD, _fenced(overview)]
    for line, text in others:
        level = "#" * len(line.split())
        parts.append(f"{level} {line}\n\n{_fenced(text)}")
    return "\n".join(parts)


PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "configuration.md": configuration_reference.page,
}
"""File name -> what writes it; adding a page is adding a row."""


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER)
def main(folder: Path) -> None:
    """Write the generated pages of the reference into FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in PAGES.items():
        file, text = folder / name, write()
        old = file.read_text(encoding="utf-8") if file.exists() else ""
        file.write_text(text, encoding="utf-8")
        click.echo(f"{file} was up to date" if text == old else f"Wrote {file}")


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```\n"


if __name__ == "__main__":
    main()
