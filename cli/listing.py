"""How commands list concepts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptkit.cli.shared_options import echo_json
from conceptkit.cli.terminal import TEXT, clip, echo_table, local, star

if TYPE_CHECKING:
    from conceptkit.registry.entries import Entry


def echo_entries(entries: "list[Entry]", marks: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    """A listing; `marks` as `catalogue.search.labels` returns them."""
    if as_json:
        echo_json([entry.to_json() | dict(marks[entry.name]) for entry in entries])
        return
    head = ("NAME", "VERSION", "KIND", "CLASS", "BASE", "SIZE", "CREATED", "TAGS")
    table = [head, *(_row(entry, marks[entry.name]) for entry in entries)]
    tagged = any(row[-1] for row in table[1:])
    echo_table(table if tagged else [row[:-1] for row in table])


def size(count: int) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    return f"{count / 1000:,.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"


def _row(entry: "Entry", marks: Mapping[str, Any]) -> tuple[str, ...]:
    about = entry.summary
    what = about.get("noun") or " + ".join(map(str, about.get("parents") or ())) or "-"
    base = about.get("base_name") or "-"
    return (
        entry.name,
        str(entry.version),
        about.get("kind") or "-",
        clip(what, TEXT),
        clip(base, TEXT),
        size(entry.bytes),
        local(entry.created)[:10],
        clip(" ".join(([star()] if marks["favourite"] else []) + marks["tags"]), TEXT),
    )
