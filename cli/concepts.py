"""`conceptkit list`, `show` and `rm`: what is in the registry. Nothing here may import torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptkit.cli.listing import echo_entries, size, to_json
from conceptkit.cli.search import filter_options, filters, nearest_filters
from conceptkit.cli.shared_options import (
    MOST,
    Choice,
    debug_option,
    echo_json,
    force_option,
    json_option,
    note,
    wrote,
)
from conceptkit.cli.terminal import VALUE, echo, echo_table, local
from conceptkit.errors import ConceptError
from conceptkit.files import check_new_file
from conceptkit.registry.merge_recipe import AS_RECIPE

if TYPE_CHECKING:
    from conceptkit.registry.entries import Entry
    from conceptkit.registry.store import Registry


REFERENCE = (
    "a reference photo is in it and looked at in every step; compose draws it alone, shrink and export --out "
    "refuse it, export --bundle and push take the photo along"
)


@click.command("list")
@filter_options
@click.option(
    "--limit", type=click.IntRange(1, MOST), default=100, show_default=True, help="Show at most so many."
)
@click.option("--after", metavar="NAME", help="Begin behind that name, for the next page.")
@click.option("--all", "everything", is_flag=True, help="Show all, however many there are.")
@click.option(
    "--sort",
    type=Choice(["name", "date", "size"]),
    default="name",
    show_default=True,
    help="The order; newest or largest first.",
)
@json_option
@debug_option
def list_(limit: int, after: str | None, everything: bool, sort: str, as_json: bool, **values: Any) -> None:
    """List your concepts.

    \b
    Example:
      conceptkit list --class dog --favourite
    """
    from conceptkit.registry.catalogue import search
    from conceptkit.registry.store import Registry

    if after and sort != "name":
        raise click.UsageError("--after goes by name: leave it out with --sort, and give --all or --limit.")
    with Registry() as registry:
        most = None if everything or sort != "name" else limit + 1
        found = search.page(registry, filters(values), after=after, limit=most)
        if sort != "name":
            found.sort(key=lambda e: e.created if sort == "date" else e.bytes, reverse=True)
        entries = found if everything else found[:limit]
        if entries or as_json:
            echo_entries(registry, entries, as_json)
        near = "" if entries else nearest_filters(registry, filters(values))
    if not entries and not as_json:
        some = after or any(values.values())
        none = f"No concept is like that: {near or '`conceptkit list` shows what there is.'}"
        echo(none if some else "No concepts yet: teach one with `conceptkit add NAME PHOTOS`.")
    if len(found) > len(entries):
        more = f"--after {entries[-1].name}" if sort == "name" else f"--limit {2 * limit}"
        echo(f"There are more: add {more}, or --all.", err=True)


@click.command()
@click.argument("name")
@click.option(
    "--preview",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write its preview as a PNG.",
)
@force_option
@click.option("--rebuild", is_flag=True, help="Compose a merge again from its parts, and compare the bytes.")
@json_option
@debug_option
def show(name: str, preview: Path | None, force: bool, rebuild: bool, as_json: bool) -> None:
    """Show what is known of a concept.

    NAME is the version that it points at, NAME@2 another one.

    \b
    Example:
      conceptkit show my_dog --preview my_dog.png
    """
    from conceptkit.registry import atomic_files, odd_files
    from conceptkit.registry.catalogue import labels, lineage, search
    from conceptkit.registry.store import Registry

    if preview:
        check_new_file(preview, force)
    with Registry() as registry:
        entry = registry.get(name)
        versions = registry.versions(entry.name)
        marks = search.labels(registry, [entry])[entry.name]
        marks["notes"] = [note.text for note in labels.notes(registry, entry.name)]
        picture = registry.preview(entry) if preview else None
        parts = lineage.parts(registry, entry)
        instead = _instead(registry, entry, versions) if preview and picture is None else ""
    if as_json:
        echo_json(to_json(entry) | {"versions": [other.version for other in versions]} | marks)
    else:
        echo(entry.ref)
        facts = _facts(entry, versions, parts) | {
            "tags": ", ".join(marks["tags"]),
            "favourite": "yes" if marks["favourite"] else "",
            "notes": " / ".join(" ".join(note.split()) for note in marks["notes"]),
        }
        echo_table([(f"  {key}", value) for key, value in facts.items() if value], VALUE)
    if rebuild:
        _rebuild(entry)
    if preview:
        if picture is None:
            raise ConceptError(f"{entry.ref} was stored without a preview: {instead}")
        odd_files.check_output(preview, mine=True)
        atomic_files.write_whole(preview, lambda out: out.write(picture))
        if not as_json:
            wrote(preview)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--now", is_flag=True, help="Keep nothing in the trash.")
@click.option("--undo", is_flag=True, help="Take back what was removed last under these names.")
@json_option
@debug_option
def rm(names: tuple[str, ...], now: bool, undo: bool, as_json: bool) -> None:
    """Remove concepts.

    NAME goes with all its versions, NAME@2 is one version. They stay in the trash, until `conceptkit gc
    --yes` empties it. With --undo they come back as they were, with tags, notes and previews.

    \b
    Example:
      conceptkit rm my_dog
      conceptkit rm --undo my_dog
    """
    if undo:
        _take_back(tuple(dict.fromkeys(names)), as_json)
        return
    from conceptkit.registry import odd_files
    from conceptkit.registry.sharing import trash
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        stopped = {name: odd_files.checkpoint_of(registry.home, name) for name in names}
        only = {name: file for name, file in stopped.items() if file and not registry.has(name)}
        names = tuple(name for name in names if name not in only)
        for name in names:
            registry.get(name)  # all are known, or none is removed
        for file in only.values():
            file.unlink(missing_ok=True)
        # A name goes with all its versions, and one of them beside it says nothing more.
        wanted = [n for n in dict.fromkeys(names) if "@" not in n or n.partition("@")[0] not in names]
        gone, lost, kept = [], [], []
        for name in wanted:
            removed, sentence = (registry.remove(name), None) if now else trash.discard(registry, name)
            gone += removed
            lost += [sentence] if sentence else []
            kept += [] if now or sentence else [name]
    if as_json:
        echo_json([*(to_json(e) for e in gone), *({"name": n, "checkpoint": str(only[n])} for n in only)])
        return
    for sentence in lost:
        note(sentence)
    if gone:
        echo(f"Removed {', '.join(entry.ref for entry in gone)}.")
    if kept:
        them = "it" if len(gone) == 1 else "them"
        echo(f"`conceptkit rm --undo {' '.join(kept)}` brings {them} back, until `conceptkit gc --yes`.")
    if only:
        echo(f"Removed the checkpoint of {', '.join(only)}, whose learning was stopped.")


def _take_back(names: tuple[str, ...], as_json: bool) -> None:
    from conceptkit.registry.sharing import trash
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        for name in names:
            trash.find(registry.home, name)  # all are there, or none is taken back
        found = [version for name in names for version in trash.take_back(registry, name)]
    if as_json:
        echo_json([to_json(version) for version in found])
        return
    for version in found:
        echo(version.sentence())


def _instead(registry: "Registry", entry: "Entry", versions: "list[Entry]") -> str:
    """Where there is a picture of what has no preview, or which command draws one."""
    from conceptkit.registry import concept_header

    if shown := [other.ref for other in versions if other.preview]:
        return f"`conceptkit show {shown[-1]} --preview FILE` writes that of {shown[-1]}."
    header = concept_header.read_if_any(registry.read(entry))
    words = " and ".join(header.words) if header else entry.name
    return f'`conceptkit compose {entry.ref} --prompt "a picture of {words}"` draws one.'


def _rebuild(entry: "Entry") -> None:
    from hashlib import sha256

    from conceptkit.merging import recipes
    from conceptkit.merging.compose import rebuild
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        built = recipes.told(registry.read(entry)).built or entry.hash
        if sha256(rebuild(entry.ref, registry=registry).concept.to_bytes()).hexdigest() != built:
            raise ConceptError(
                f"{entry.ref} composed again from its parts has other bytes, as it may on another machine or "
                "with other versions of the libraries; the stored merge is whole"
            )
    echo("Composed again from its parts: the same bytes.", err=True)


def _bits(about: dict[str, Any]) -> str:
    """What each part of a concept that was made smaller takes: "keys and values 2.1, other maps 0.7"."""
    parts = about.get("bits")
    if not isinstance(parts, dict):
        return ""
    return ", ".join(f"{part} {bits:.2g} ({count:,} values)" for part, (count, bits) in parts.items())


def _facts(entry: "Entry", versions: "list[Entry]", parts: list[str]) -> dict[str, str]:
    from conceptkit.registry.catalogue import lineage

    about = to_json(entry)["summary"]
    made = "made smaller from" if lineage.made_smaller(entry) else "merged from"
    facts = {
        "kind": about.get("kind"),
        "class": about.get("noun"),
        "base": about.get("base_name"),
        "method": about.get("method"),
        "rank": about.get("rank"),
        "tokens": ", ".join(about.get("tokens") or ()),
        "photo": REFERENCE if about.get("reference") else "",
        made: ", ".join(parts),
        "size": size(entry.bytes),
        "stored as": "its recipe, built from its parts when it is wanted" if about.get(AS_RECIPE) else "",
        "bits a value": _bits(about),
        "created": local(entry.created),
        "hash": entry.hash,
        "versions": ", ".join(str(other.version) for other in versions),
    }
    return {key: str(value) for key, value in facts.items() if value not in (None, "")}
