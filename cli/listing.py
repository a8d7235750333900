"""How commands list concepts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conceptkit.cli.shared_options import echo_json
from conceptkit.cli.terminal import TEXT, clip, echo_table, local, star
from conceptkit.renamed import method_today

if TYPE_CHECKING:
    import inflect

    from conceptkit.registry.entries import Entry
    from conceptkit.registry.sharing.incoming import ImportResult
    from conceptkit.registry.sharing.trash import BroughtBack
    from conceptkit.registry.store import Registry


def echo_entries(registry: "Registry", entries: "list[Entry]", as_json: bool) -> None:
    """A listing, with what people say of each and what merges were made of."""
    from conceptkit.registry.catalogue import lineage, search

    marks = search.labels(registry, entries)
    if as_json:
        echo_json([to_json(entry) | dict(marks[entry.name]) for entry in entries])
        return
    head = ("NAME", "VERSION", "KIND", "CLASS", "BASE", "SIZE", "CREATED", "TAGS")
    table = [head, *(_row(entry, marks[entry.name], lineage.parts(registry, entry)) for entry in entries)]
    tagged = any(row[-1] for row in table[1:])
    echo_table(table if tagged else [row[:-1] for row in table])


def to_json(entry: "Entry | ImportResult | BroughtBack") -> dict[str, Any]:
    """All of an entry as JSON, or of what became of one; its method under the name that it has today."""
    value = entry.to_json()
    about = value.get("summary")
    if isinstance(about, dict) and isinstance(about.get("method"), str):
        value["summary"] = about | {"method": method_today(about["method"])}
    return value


def counted(count: int, noun: str) -> str:
    """The words "1 preview", or "2 previews"."""
    return f"{count:,} {plurals().plural_noun(noun, count)}"


def plurals() -> "inflect.engine":
    """What knows plurals."""
    import inflect  # takes a second, and most commands need no plurals

    return inflect.engine()


def size(count: int) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    return f"{count / 1000:,.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"


def _row(entry: "Entry", marks: Mapping[str, Any], parts: Sequence[str]) -> tuple[str, ...]:
    about = entry.summary
    what = about.get("noun") or " + ".join(parts) or "-"
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
