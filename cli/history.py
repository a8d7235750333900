"""`conceptkit rename`, `history`, `rollback` and `lineage`: what became of a name. No torch in here."""

import click

from conceptkit.cli.shared_options import MOST, debug_option, echo_json, json_option, note
from conceptkit.cli.terminal import CELL, clip, echo, echo_table


@click.command()
@click.argument("old")
@click.argument("new")
@debug_option
def rename(old: str, new: str) -> None:
    """Give a concept another name.

    All its versions, tags, notes and its history go with it.

    \b
    Example:
      conceptkit rename my_dog rex
    """
    from conceptkit.registry import concept_header
    from conceptkit.registry.catalogue import history
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        entry = history.rename(registry, old, new)
        header = concept_header.read_if_any(registry.read(entry))
    echo(f"{old} is now {entry.ref}.")
    if header and len(header.words) > 1:
        note(f"In prompts its parts keep their names: {', '.join(header.words)}.")


@click.command("history")
@click.argument("name")
@json_option
@debug_option
def history_(name: str, as_json: bool) -> None:
    """Show what a name has pointed at.

    \b
    Example:
      conceptkit history my_dog
    """
    from conceptkit.registry.catalogue import history
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        events = history.history(registry, name)
    if as_json:
        echo_json([event.to_json() for event in events])
        return
    head = ("WHEN", "WHAT", "VERSION", "HASH", "")
    rows = [
        (e.at[:19].replace("T", " "), e.event, f"{e.name}@{e.version}", (e.hash or "")[:12], e.detail or "")
        for e in events
    ]
    echo_table([head, *rows])


@click.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(1, MOST), required=False)
@json_option
@debug_option
def rollback(name: str, version: int | None, as_json: bool) -> None:
    """Let a name point at an older version.

    Without VERSION it is the one before. Nothing is deleted; going forward again works the same way.

    \b
    Example:
      conceptkit rollback my_dog 1
    """
    from conceptkit.registry.catalogue import history
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        entry = history.rollback(registry, name, version)
    if as_json:
        echo_json(entry.to_json())
    else:
        echo(f"{entry.name} points at version {entry.version} now.")


@click.command("lineage")
@click.argument("name")
@json_option
@debug_option
def lineage_(name: str, as_json: bool) -> None:
    """Show what a merge was made of.

    And below the tree, what was made of it.

    \b
    Example:
      conceptkit lineage together
    """
    from conceptkit.registry.catalogue import lineage
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        node = lineage.tree(registry, name)
        made = lineage.children(registry, registry.get(name))
    if as_json:
        echo_json(node.to_json() | {"merged_into": made})
        return
    for line in lineage.lines(node):
        echo(clip(line, 2 * CELL))
    if made:
        echo(f"Merged into {', '.join(made)}.")
