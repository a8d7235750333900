"""`conceptkit keys`: whose concepts one loads."""

import click

from conceptkit.cli.shared_options import debug_option, echo_json, json_option
from conceptkit.cli.terminal import echo, echo_table


@click.group()
def keys() -> None:
    """Keys that sign bundles, and keys you trust.

    \b
    Example:
      conceptkit keys create me
    """


@keys.command()
@click.argument("name", default="me")
@debug_option
def create(name: str) -> None:
    """Make a key of your own.

    Prints what others need to trust it. The key itself stays on this machine.

    \b
    Example:
      conceptkit keys create me
    """
    from conceptkit.registry import paths
    from conceptkit.registry.sharing import signing

    key = signing.create(paths.home(), name)
    echo(f"Made the key {key.name}; others trust it with: conceptkit keys trust YOUR_NAME {key.public}")


@keys.command("list")
@json_option
@debug_option
def list_(as_json: bool) -> None:
    """List your keys and those you trust.

    \b
    Example:
      conceptkit keys list
    """
    from conceptkit.registry import paths
    from conceptkit.registry.sharing import signing

    known = signing.keys(paths.home())
    if as_json:
        echo_json([key.to_json() for key in known])
    elif not known:
        echo("No keys yet: make one with `conceptkit keys create NAME`.")
    else:
        rows = [(key.name, "yours" if key.own else "trusted", key.public) for key in known]
        echo_table([("NAME", "", "PUBLIC KEY"), *rows])


@keys.command()
@click.argument("name")
@click.argument("public_key")
@debug_option
def trust(name: str, public_key: str) -> None:
    """Take signed bundles from somebody.

    PUBLIC_KEY is what `conceptkit keys create` printed for them; get it from them in person.

    \b
    Example:
      conceptkit keys trust alice ck-ed25519:AbCd...
    """
    from conceptkit.registry import paths
    from conceptkit.registry.sharing import signing

    echo(f"Bundles signed with that key are {signing.trust(paths.home(), name, public_key).name}'s now.")


@keys.command()
@click.argument("name")
@debug_option
def distrust(name: str) -> None:
    """Forget a key that you trusted.

    \b
    Example:
      conceptkit keys distrust alice
    """
    from conceptkit.registry import paths
    from conceptkit.registry.sharing import signing

    signing.distrust(paths.home(), name)
    echo(f"Forgot the key of {name}.")
