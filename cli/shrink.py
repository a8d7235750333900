"""`conceptkit shrink`: a stored concept in fewer bytes, as its next version."""

from __future__ import annotations

import click

from conceptkit.cli.listing import size as shown_size
from conceptkit.cli.listing import to_json
from conceptkit.cli.shared_options import Choice, debug_option, echo_json, json_option, note
from conceptkit.cli.terminal import echo

SIZES = ("tiny", "small", "recipe", "full")


@click.command()
@click.argument("name")
@click.option(
    "--size",
    type=Choice(SIZES),
    help="tiny or small; of a merge also recipe, how it is made of its parts alone, and full, whole again.  "
    "[default: small]",
)
@click.option("--bytes", "amount", metavar="SIZE", help="The best file of at most so many bytes, like 8kB.")
@click.option(
    "--keep", type=float, metavar="SHARE", help="The smallest file that keeps this share of its effect."
)
@click.option("--base", help="The base to measure on; by default the one it was learned on.")
@json_option
@debug_option
def shrink(
    name: str, size: str | None, amount: str | None, keep: float | None, base: str | None, as_json: bool
) -> None:
    """Store a concept in fewer bytes.

    Its numbers are rounded where pictures depend on them least. The result is the next version of NAME; the
    one before stays, and conceptkit rm NAME@1 removes it.

    \b
    Example:
      conceptkit shrink my_dog --keep 0.99
    """
    from conceptkit.compression.sizes import SizeRequest
    from conceptkit.registry.store import Registry
    from conceptkit.workflows.shrink import shrink_to

    wish = SizeRequest(size if size or amount or keep is not None else "small", amount, keep)
    with Registry() as registry:
        before = registry.get(name)
        made = shrink_to(name, wish, base=base, registry=registry)
    if as_json:
        echo_json(to_json(made.entry) | {"kept": made.kept})
        return
    if made.notice:
        note(made.notice)
    kept = "" if made.kept is None else f", and keeps {made.kept:.1%} of its effect on unseen noise"
    if made.entry.bytes > before.bytes:
        echo(f"{made.entry.ref} is stored whole again, in {shown_size(made.entry.bytes)}.")
        return
    echo(
        f"{made.entry.ref} takes {shown_size(made.entry.bytes)} instead of {shown_size(before.bytes)}{kept}."
    )
