"""`conceptkit remote`, `push`, `pull` and `sync`: places to share concepts at."""

from typing import TYPE_CHECKING

import click

from conceptkit.cli.options import debug_option, echo_json, json_option
from conceptkit.cli.progress import bar
from conceptkit.cli.share import refusals
from conceptkit.cli.terminal import VALUE, echo, echo_table
from conceptkit.errors import ConceptError

if TYPE_CHECKING:
    from conceptkit.registry.parcels import Arrival
    from conceptkit.registry.sync import Sent


@click.group()
def remote() -> None:
    """Places to share concepts at.

    \b
    Example:
      conceptkit remote add team sftp://me@our-server/srv/concepts
    """


@remote.command()
@click.argument("name")
@click.argument("place")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="How to reach it.")
@debug_option
def add(name: str, place: str, options: tuple[str, ...]) -> None:
    """Remember a place under NAME.

    PLACE is a folder, sftp://HOST/FOLDER, s3://BUCKET/FOLDER or hf://USER/REPOSITORY. It is marked as a
    remote if it is not one yet.

    \b
    Example:
      conceptkit remote add usb /media/usb/concepts
    """
    from conceptkit.registry import paths, remotes

    pairs = [text.partition("=") for text in options]
    for key, equals, _ in pairs:
        if not equals:
            raise ConceptError(f"{key[:80]!r} is no option: write --option KEY=VALUE.")
    where = remotes.add(paths.home(), name, place, {key: value for key, _, value in pairs})
    echo(f"Added {name}, which is {where.url}.")


@remote.command("list")
@json_option
@debug_option
def list_(as_json: bool) -> None:
    """List your remotes.

    \b
    Example:
      conceptkit remote list
    """
    from conceptkit.registry import paths, remotes

    known = remotes.load(paths.home())
    if as_json:
        echo_json([{"name": name, "url": place.url} for name, place in known.items()])
    elif not known:
        echo("No remotes yet: add one with `conceptkit remote add NAME PLACE`.")
    else:
        echo_table([("NAME", "PLACE"), *((name, place.url) for name, place in known.items())], VALUE)


@remote.command()
@click.argument("name")
@debug_option
def rm(name: str) -> None:
    """Forget a remote; what is there stays there.

    \b
    Example:
      conceptkit remote rm usb
    """
    from conceptkit.registry import paths, remotes

    echo(f"Forgot {name}, which is {remotes.remove(paths.home(), name).url}.")


_remote_argument = click.argument("remote")
_names_argument = click.argument("names", nargs=-1, metavar="[NAME]...")


@click.command()
@_remote_argument
@_names_argument
@json_option
@debug_option
def push(remote: str, names: tuple[str, ...], as_json: bool) -> None:
    """Send concepts to a remote.

    All versions of every NAME, or of everything you have, that REMOTE does not have yet. What broke off goes
    on when it is run again.

    \b
    Example:
      conceptkit push team my_dog
    """
    _exchange(remote, names, as_json, pull=False, push=True)


@click.command()
@_remote_argument
@_names_argument
@json_option
@debug_option
def pull(remote: str, names: tuple[str, ...], as_json: bool) -> None:
    """Get concepts from a remote.

    All versions of every NAME, or of everything there, that you do not have yet. Nothing of yours is lost:
    what differs becomes a version beside it, and the name then means what was made last.

    \b
    Example:
      conceptkit pull team
    """
    _exchange(remote, names, as_json, pull=True, push=False)


@click.command()
@_remote_argument
@json_option
@debug_option
def sync(remote: str, as_json: bool) -> None:
    """Pull everything, then push everything.

    \b
    Example:
      conceptkit sync team
    """
    _exchange(remote, (), as_json, pull=True, push=True)


def _exchange(name: str, names: tuple[str, ...], as_json: bool, *, pull: bool, push: bool) -> None:
    from conceptkit.registry import sync as library
    from conceptkit.registry.remote import Remote
    from conceptkit.registry.remotes import find
    from conceptkit.registry.store import Registry

    arrivals: list[Arrival] = []
    sent: list[Sent] = []
    refused: list[str] = []
    with Registry() as registry, Remote(name, find(registry.home, name)) as remote:
        if pull:
            with bar("Pulling") as tick:
                pulled = library.pull(registry, remote, names, tick)
            arrivals, refused = pulled.arrivals, pulled.refused
        if push:
            with bar("Pushing") as tick:
                pushed = library.push(registry, remote, names, tick)
            sent, refused = pushed.sent, refused + pushed.refused
    if as_json:
        result = {"pulled": [one.to_json() for one in arrivals], "pushed": [one.to_json() for one in sent]}
        echo_json(result | {"refused": refused})
    else:
        for arrival in arrivals:
            if arrival.new:
                echo(arrival.sentence())
        for one in sent:
            if one.new:
                echo(f"Sent {one.entry.ref}.")
        moved = any(arrival.new for arrival in arrivals) or any(one.new for one in sent)
        if not refused and not moved:
            echo(f"Nothing to do: you and {name} have the same.")
    refusals(refused)
