"""`conceptkit remote`, `push`, `pull` and `sync`: places to share concepts at."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from conceptkit.cli.export import refusals
from conceptkit.cli.import_ import require_signed_option, take_option
from conceptkit.cli.progress import bar
from conceptkit.cli.shared_options import debug_option, echo_json, json_option, note
from conceptkit.cli.terminal import VALUE, echo, echo_table
from conceptkit.errors import ConceptError

if TYPE_CHECKING:
    from conceptkit.registry.sharing.incoming import ImportResult
    from conceptkit.registry.sharing.sync import Sent


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
@click.option(
    "--key", "keys", multiple=True, metavar="NAME", help="Take only what that key signed; may be repeated."
)
@debug_option
def add(name: str, place: str, options: tuple[str, ...], keys: tuple[str, ...]) -> None:
    """Remember a place under NAME.

    PLACE is a folder, sftp://HOST/FOLDER, s3://BUCKET/FOLDER or hf://USER/REPOSITORY. It is marked as a
    remote if it is not one yet.

    \b
    Example:
      conceptkit remote add usb /media/usb/concepts
    """
    from conceptkit.registry import paths
    from conceptkit.registry.sharing import remote_config, signing

    pairs = [text.partition("=") for text in options]
    for key, equals, _ in pairs:
        if not equals:
            raise ConceptError(f"{key[:80]!r} is no option: write --option KEY=VALUE.")
    bound = signing.chosen(paths.home(), keys) if keys else frozenset()
    where = remote_config.add(paths.home(), name, place, {key: value for key, _, value in pairs}, bound)
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
    from conceptkit.registry import paths
    from conceptkit.registry.sharing import remote_config

    known = remote_config.load(paths.home())
    if as_json:
        echo_json(
            [{"name": name, "url": place.url, "keys": sorted(place.keys)} for name, place in known.items()]
        )
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
    from conceptkit.registry import paths
    from conceptkit.registry.sharing import remote_config

    echo(f"Forgot {name}, which is {remote_config.remove(paths.home(), name).url}.")


_remote_argument = click.argument("remote")
_sign_option = click.option("--sign", is_flag=True, help="Sign what is sent with your key.")
_key_option = click.option("--key", metavar="NAME", help="Which of your keys signs; implies --sign.")
_names_argument = click.argument("names", nargs=-1, metavar="[NAME]...")


@click.command()
@_remote_argument
@_names_argument
@_sign_option
@_key_option
@json_option
@debug_option
def push(remote: str, names: tuple[str, ...], sign: bool, key: str | None, as_json: bool) -> None:
    """Send concepts to a remote.

    All versions of every NAME, or of everything you have, that REMOTE does not have yet. What broke off goes
    on when it is run again.

    \b
    Example:
      conceptkit push team my_dog
    """
    _exchange(Wish(remote, names, as_json, pull=False, key=(key or "") if sign or key else None))


@click.command()
@_remote_argument
@_names_argument
@require_signed_option
@take_option
@json_option
@debug_option
def pull(remote: str, names: tuple[str, ...], require_signed: bool, take: bool, as_json: bool) -> None:
    """Get concepts from a remote.

    All versions of every NAME, or of everything there, that you do not have yet. Nothing of yours is lost:
    what differs becomes a version beside it, and your names go on meaning what they mean, unless you say
    --take.

    \b
    Example:
      conceptkit pull team
    """
    _exchange(Wish(remote, names, as_json, push=False, take=take, require_signed=require_signed))


@click.command()
@_remote_argument
@require_signed_option
@take_option
@_sign_option
@_key_option
@json_option
@debug_option
def sync(remote: str, require_signed: bool, take: bool, sign: bool, key: str | None, as_json: bool) -> None:
    """Pull everything, then push everything.

    \b
    Example:
      conceptkit sync team
    """
    signer = (key or "") if sign or key else None
    _exchange(Wish(remote, (), as_json, take=take, require_signed=require_signed, key=signer))


@dataclass(frozen=True)
class Wish:
    """What a command was asked to do with a remote."""

    remote: str
    names: tuple[str, ...]
    as_json: bool
    pull: bool = True
    push: bool = True
    take: bool = False
    require_signed: bool = False
    key: str | None = None


def _exchange(wish: Wish) -> None:
    from conceptkit.registry import private_names
    from conceptkit.registry.sharing import sync as library
    from conceptkit.registry.sharing.remote import Remote
    from conceptkit.registry.sharing.remote_config import find
    from conceptkit.registry.store import Registry

    pulled, pushed = library.Pulled([], []), library.Pushed([], [])
    broke_off: ConceptError | None = None
    try:
        with Registry() as registry, Remote(wish.remote, find(registry.home, wish.remote)) as remote:
            if wish.pull:
                how: dict[str, Any] = {
                    "take": wish.take,
                    "require_signed": wish.require_signed,
                    "into": pulled,
                }
                with bar("Pulling") as tick:
                    library.pull(registry, remote, wish.names, tick, **how)
            if wish.push:
                with bar("Pushing") as tick:
                    library.push(registry, remote, wish.names, tick, key=wish.key, into=pushed)
    except ConceptError as error:
        broke_off = error
    refused = pulled.refused + pushed.refused
    if wish.as_json:
        result: dict[str, Any] = {"pulled": [one.to_json() for one in pulled.arrivals]}
        result |= {"pushed": [one.to_json() for one in pushed.sent], "refused": refused}
        result |= {"private": pushed.private} if wish.push else {}
        echo_json(result | ({"error": str(broke_off)} if broke_off else {}))
    else:
        _tell(wish, pulled.arrivals, pushed.sent, quiet=bool(refused or broke_off))
    if pushed.private:
        note(private_names.sentence(pushed.private))
    if broke_off:
        raise broke_off
    refusals(refused)


def _tell(wish: Wish, arrivals: "list[ImportResult]", sent: "list[Sent]", quiet: bool) -> None:
    for arrival in arrivals:
        if arrival.new:
            echo(arrival.sentence())
    for one in sent:
        if one.new:
            echo(f"Sent {one.entry.ref}.")
    moved = any(arrival.new for arrival in arrivals) or any(one.new for one in sent)
    if not moved and not quiet:
        echo(f"Nothing to do: you and {wish.remote} have the same.")
