"""The root of the `conceptkit` command, and the one place where errors become sentences and exit codes.

0: done; 1: something unexpected; 2: a mistake that one sentence explains; 130: stopped with Ctrl-C.
"""

import copy
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from conceptkit import __version__
from conceptkit.cli import (
    add,
    bases,
    compose,
    concepts,
    demo,
    export,
    history,
    import_,
    keys,
    library,
    maintenance,
    remotes,
    search,
    shrink,
    storybook,
    tokens,
)
from conceptkit.cli.shared_options import ANSWERED, DEBUG, debug_option, echo_json
from conceptkit.cli.terminal import any_text, plain
from conceptkit.errors import ConceptError

STOPPED = "Stopped; nothing half-written was kept."
RENAMED_OPTIONS = {
    "--how": "--merge-method",
    "--shared": "--padding-delta",
    "--separate": "--auto-regions",
    "--read-apart": "--isolate-concepts",
    "--read-together": "--no-isolate-concepts",
    "--prior-photos": "--class-images",
    "--precision": "--mixed-precision",
    "--guidance": "--guidance-scale",
    "--pag": "--pag-scale",
    "--larger": "--min-size",
    "--smaller": "--max-size",
}
"""What options were called before: whoever gives one hears its name of today."""


class Mistake(click.ClickException):
    """A sentence for the user and exit code 2, like a wrong option."""

    exit_code = 2


class Root(click.Group):
    """The group at the root: it turns every error into a sentence and an exit code."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """The context of a command line; what others wrote in it is shown escaped."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.ClickException as error:
            raise _escaped(error) from error

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; see the module for the exit codes."""
        as_json = "--json" in ctx.args
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except click.ClickException as error:
            if isinstance(error, click.NoSuchOption) and error.option_name in RENAMED_OPTIONS:
                renamed = RENAMED_OPTIONS[error.option_name]
                error = click.UsageError(f"{error.option_name} is called {renamed} now.", error.ctx)
            error = _escaped(error)
            _answer(ctx, as_json, error.message)
            raise error
        except KeyboardInterrupt:
            click.echo(f"\n{STOPPED}", err=True)
            _answer(ctx, as_json, STOPPED)
            ctx.exit(130)
        except ConceptError as error:
            _refuse(ctx, as_json, str(error), error)
        except BrokenPipeError:  # nobody reads on: click ends quietly
            raise
        except UnicodeEncodeError as error:
            _refuse(ctx, as_json, f"{error.object[:60]!a} is no text; type it in UTF-8", error)
        except OSError as error:
            if error.strerror is None:
                raise
            what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            _refuse(ctx, as_json, f"{what}; check that place and try again", error)
        except Exception as error:
            _explain(ctx)
            hint = "" if ctx.meta.get(DEBUG) else "; run it again with --debug to see where"
            what = f"unexpectedly, {type(error).__name__}: {error}{hint}"
            _answer(ctx, as_json, what)
            raise click.ClickException(plain(what)) from error


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="conceptkit")
@debug_option
@click.pass_context
def main(ctx: click.Context) -> None:
    """Teach a text-to-image model your own things, and draw them together.

    \b
    Example:
      conceptkit add my_dog ./photos
      conceptkit compose my_dog --prompt "my_dog in the snow"
    """
    ctx.with_resource(any_text())
    if not ctx.meta.get(DEBUG):
        ctx.with_resource(_quiet())


for command in (
    add.add,
    bases.bases,
    compose.compose,
    concepts.list_,
    concepts.show,
    concepts.rm,
    search.search,
    search.tag,
    search.note,
    search.favourite,
    history.rename,
    history.history_,
    history.rollback,
    history.lineage_,
    maintenance.verify,
    maintenance.gc,
    maintenance.stats,
    maintenance.backup,
    maintenance.restore,
    maintenance.rebuild,
    shrink.shrink,
    export.export,
    import_.import_,
    library.scan,
    library.library,
    remotes.remote,
    remotes.push,
    remotes.pull,
    remotes.sync,
    keys.keys,
    demo.demo,
    storybook.storybook,
    tokens.tokens,
):
    main.add_command(command)


@contextmanager
def _quiet() -> Iterator[None]:
    """While a command runs, libraries warn nobody; whoever calls it from a program hears them afterwards."""
    unset = [name for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY") if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, "error"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in unset:
            os.environ.pop(name, None)


def _refuse(ctx: click.Context, as_json: bool, text: str, error: Exception) -> NoReturn:
    """End with a sentence and exit code 2."""
    _explain(ctx)
    sentence = text if text.endswith((".", "?", "!")) else f"{text}."
    _answer(ctx, as_json, sentence)
    raise Mistake(plain(sentence, lines=True)) from error


def _escaped(error: click.ClickException) -> click.ClickException:
    """The same error, with nothing in its message that a terminal would obey."""
    twin = copy.copy(error)
    vars(twin)["message"] = plain(error.message, lines=True)
    return twin


def _answer(ctx: click.Context, as_json: bool, sentence: str) -> None:
    """Whoever asked for JSON gets some, whatever happens."""
    if as_json and not ctx.meta.get(ANSWERED):
        echo_json({"error": sentence})


def _explain(ctx: click.Context) -> None:
    if ctx.meta.get(DEBUG):
        traceback.print_exc()
