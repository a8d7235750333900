"""Options and small sentences that several commands share."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from conceptkit.base.load_options import DTYPES, OFFLOADS, QUANTIZATIONS
from conceptkit.cli.terminal import plain, safe_json
from conceptkit.extension_table import ExtensionTable
from conceptkit.files import check_folder
from conceptkit.registry.names import choose

MOST = 2**63 - 2
"""The largest number that the index can look for, less one for the row after it."""

DEBUG = "conceptkit.debug"
"""Key of the flag in click's `Context.meta`, which a command and its groups share."""
ANSWERED = "conceptkit.answered"
"""The same for whether the JSON that was asked for has been printed."""
GOES_ON = "conceptkit.goes_on"
"""The same for what Ctrl-C says of work that is kept, and how it goes on."""

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def debug_option(command: Decorated) -> Decorated:
    """`--debug`, accepted before and after the command's name."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[DEBUG] = value or ctx.meta.get(DEBUG, False)

    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Show the traceback of an error.",
    )(command)


class Choice(click.Choice):  # type: ignore[type-arg]  # no generic class before click 8.2
    """One of some words; of what is none of them, the nearest one comes first."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word itself. Raises click.BadParameter."""
        known = list(map(str, self.choices))
        if isinstance(value, str) and value not in known:
            self.fail(f"{value[:80]!r} is not known: {choose(value, known)}.", param, ctx)
        return str(super().convert(value, param, ctx))


class RowName(click.ParamType):
    """The name of a row of a table that other packages add to; they are asked when a name is not one of ours.

    check: raises ConceptError for a name that is not there.
    """

    name = "name"

    def __init__(self, table: ExtensionTable[Any], check: Callable[[str], object]) -> None:
        self.table, self.check = table, check

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """All the names."""
        return f"[{'|'.join(self.table)}]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself. Raises ConceptError."""
        self.check(str(value))
        return str(value)


class OutFolder(click.Path):
    """A folder that files can be put into, or that can be made: found out before anything is learned."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """The folder as a path. Raises ConceptError when no file can be put there."""
        return check_folder(Path(os.fsdecode(super().convert(value, param, ctx))))


def out_option(default: str | None, text: str) -> Callable[[Decorated], Decorated]:
    """`--out DIR`, required when there is no default."""
    kind = OutFolder(file_okay=False, writable=True, path_type=Path)
    # click takes an explicit default of None for a default, and then nothing is required
    given: dict[str, Any] = {"default": default, "show_default": True}
    when = {"required": True} if default is None else given
    return click.option("--out", type=kind, metavar="DIR", help=text, **when)


force_option = click.option("--force", is_flag=True, help="Write over files that are there already.")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")

base_option = click.option(
    "--base",
    metavar="ID|PATH",
    help="The text-to-image model: 'storybook' (built in), a diffusers folder, a .safetensors "
    "checkpoint, or a model id on the hub.",
)

device_option = click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Where to compute: cuda, cuda:1, mps or cpu; auto takes the first of them that is there.",
)


dtype_option = click.option(
    "--dtype", type=Choice(DTYPES), default="fp32", show_default=True, help="Precision of the base."
)

quantization_option = click.option(
    "--quantization",
    type=Choice(QUANTIZATIONS),
    help="Load the base's UNet or transformer in 4 or 8 bits, with bitsandbytes or torchao.",
)

offload_option = click.option(
    "--offload",
    type=Choice(OFFLOADS),
    help="Keep what is not at work on the CPU, whole models or layer by layer: less memory, more time.",
)


def echo_json(value: Any) -> None:
    """Print JSON; a command that prints some does so once."""
    click.echo(safe_json(json.dumps(value, indent=2, ensure_ascii=False)))
    if context := click.get_current_context(silent=True):
        context.meta[ANSWERED] = True


def note(sentence: str) -> None:
    """Something the user should know, beside the result."""
    click.secho(f"Note: {plain(sentence, lines=True)}", err=True, fg="yellow")


def wrote(path: Path) -> None:
    """Say which file was written."""
    click.echo(f"Wrote {plain(path)}")


def free_path(folder: Path, stem: str, suffix: str) -> Path:
    """`folder/stem.suffix`, or `stem-2`, `stem-3`, ... when that exists: pictures are never overwritten."""
    path, number = folder / f"{stem}{suffix}", 1
    while os.path.lexists(path):
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path
