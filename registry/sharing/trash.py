"""What `rm` took away, whole in the home, until `gc` empties it: bytes, rows of the index, labels.

A removal is a file in the container of `bundle`, whose manifest holds rows of the index of this machine
instead of what others may read. Removals of before are bundles as `export` writes them; they are imported.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptkit.registry import atomic_files, merge_recipe, paths, storage_errors, trash_files
from conceptkit.registry.catalogue import labels, search
from conceptkit.registry.entries import POINTS, Entry, New, refresh
from conceptkit.registry.errors import BadBlob, UnknownConcept
from conceptkit.registry.names import split_version
from conceptkit.registry.sharing import bundle, exchange
from conceptkit.registry.sources import Source
from conceptkit.registry.store import Registry

EVENT = "undo remove"
"""The word of the history for what was brought back."""


@dataclass(frozen=True)
class BroughtBack:
    """What became of a version that was removed.

    was: the number it had. new: whether it is stored again, and was not here with the same bytes.
    meant: what its name means, where it meant this version before the removal and does not now.
    """

    entry: Entry
    was: int
    new: bool = True
    meant: str | None = None

    def sentence(self) -> str:
        """What became of it, for a person."""
        name, ref = self.entry.name, self.entry.ref
        if not self.new:
            return f"{ref} is here already, with the same bytes."
        text = f"{name}@{self.was} is back"
        if self.was != self.entry.version:
            text += f" as {ref}, because another version has the number {self.was} now"
        if self.meant:
            command = f"`conceptkit rollback {name} {self.entry.version}` lets it mean {ref}"
            text += f"; {name} goes on meaning {self.meant}, and {command}"
        return f"{text}."

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {**self.entry.to_json(), "was": self.was, "new": self.new, "meant": self.meant}


def discard(registry: Registry, name: str) -> tuple[list[Entry], str | None]:
    """Remove a name, or a version of it, and keep it in the trash: what was removed, and a sentence.

    The sentence says what could not be kept since its bytes are damaged; all else is. Raises UnknownConcept,
    and ConceptError for a part that a merge stored as its recipe needs, or where nothing can be read or
    written at the moment; then nothing is removed.
    """
    bare, version = split_version(name)
    entries = [registry.get(name)] if version is not None else registry.versions(bare)
    merge_recipe.check_unneeded(registry, entries)
    file = paths.make_private(registry.home / trash_files.FOLDER) / f"{name}.{time.time_ns()}.bundle"
    registry.blob_store.check_writable()
    sentence = None
    try:
        _keep(registry, entries, file)
    except BadBlob as error:
        whole = [entry for entry in entries if _is_whole(registry, entry)]
        lost = [entry.ref for entry in entries if entry not in whole]
        sentence = f"{name if not whole else ' and '.join(lost)} is not in the trash: {error}"
        if whole:
            _keep(registry, whole, file)
    return registry.remove(name), sentence


def take_back(registry: Registry, name: str) -> list[BroughtBack]:
    """What was removed last under that name, `my_dog` or `my_dog@1`, back into the registry.

    A version keeps its number, if that is free, and all that was known of it. Where its name is here, that
    goes on meaning what it means; else it is back as it was, with its labels. Raises UnknownConcept.
    """
    found = find(registry.home, name)
    with storage_errors.told(registry.home), found.file.open("rb") as handle:
        announced = bundle.read(handle)
        if _is_removal(announced.concepts):
            bundle.check(handle, announced)
            with atomic_files.turn(registry.home):
                done = _put_back(registry, announced.concepts[0], bundle.parts(handle, announced))
        else:
            arrivals = exchange.import_file(registry, found.file, take=True).arrivals
            done = [BroughtBack(one.entry, one.entry.version, one.new) for one in arrivals]
    found.file.unlink(missing_ok=True)
    return done


def find(home: Path, name: str) -> trash_files.TrashFile:
    """What was removed last under that name, `my_dog` or `my_dog@1`. Raises UnknownConcept."""
    if (found := trash_files.last(home, *split_version(name))) is not None:
        return found
    there = list(dict.fromkeys(one.ref for one in reversed(trash_files.listing(home))))
    more = f" and {len(there) - 5:,} more" if len(there) > 5 else ""
    held = f"in it are {', '.join(there[:5])}{more}" if there else "it is empty"
    raise UnknownConcept(f"There is no {name[:80]!r} in the trash: {held}.")


def empty(home: Path, delete: bool = False) -> tuple[int, int]:
    """(how many removals are in the trash, their bytes), which are deleted if `delete`."""
    found = trash_files.count(home)
    for one in trash_files.listing(home) if delete else ():
        one.file.unlink(missing_ok=True)
    return found


def _is_whole(registry: Registry, entry: Entry) -> bool:
    """Whether all bytes of a version are what they were."""
    digests = [entry.hash, entry.preview, *registry.used(entry).values()]
    return all(registry.blob_store.whole(digest) for digest in digests if digest is not None)


def _keep(registry: Registry, entries: Sequence[Entry], file: Path) -> None:
    """Write a removal: the rows of these versions of one name, and all bytes they need."""
    sources: dict[str, Source] = {}
    versions = []
    for entry in entries:
        used = registry.used(entry)
        sources[entry.hash] = registry.source(entry)
        with storage_errors.told(registry.home):
            for digest in (entry.preview, *used.values()):
                if digest is not None:
                    sources[digest] = registry.blob_store.source(digest)
        rows = registry.index.query(_PARENTS, [entry.name, entry.version])
        versions.append(
            {
                "version": entry.version,
                "hash": entry.hash,
                "created": entry.created,
                "summary": json.dumps(entry.summary),
                "preview": entry.preview,
                "uses": used,
                "parents": [list(row) for row in rows],
            }
        )
    sizes = {digest: source.size for digest, source in sources.items()}
    bundle.write(file, [_name_rows(registry, entries) | {"versions": versions}], sizes, sources.__getitem__)


def _name_rows(registry: Registry, entries: Sequence[Entry]) -> dict[str, Any]:
    """What the index says of a name of which these versions are removed; origin: whose what it means is."""
    name = entries[0].name
    ((number, head, newest),) = registry.index.query(
        "select id, version, newest from names where name = ?", [name]
    )
    origin = f"""select detail from history where name_id = ? and version = ? and {POINTS}
                 and event <> 'rollback' order by id desc limit 1"""
    return {
        "name": name,
        "number": number,
        "head": head,
        "newest": newest,
        "whole": len(entries) == len(registry.versions(name)),
        "origin": next((detail for (detail,) in registry.index.query(origin, [number, head])), None),
        "notes": [[note.text, note.created] for note in labels.notes(registry, name)],
        **search.labels(registry, entries)[name],
    }


def _is_removal(concepts: Sequence[Any]) -> bool:
    return len(concepts) == 1 and isinstance(concepts[0], dict) and "head" in concepts[0]


def _put_back(registry: Registry, kept: Mapping[str, Any], parts: Mapping[str, Source]) -> list[BroughtBack]:
    """Add the versions of a removal with all their rows, in one moment. Raises BadBlob."""
    try:
        name, head, was_here = kept["name"], kept["head"], registry.has(kept["name"])
        here = {entry.version: entry for entry in (registry.versions(name) if was_here else ())}
        rows = sorted(kept["versions"], key=lambda row: (row["version"] != head, row["version"]))
        same = [row for row in rows if row["version"] in here and here[row["version"]].hash == row["hash"]]
        fresh = [row for row in rows if row not in same]
        news = [_new(kept, row, parts) for row in fresh]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadBlob("What the trash holds of it is damaged: add it again.") from error

    def also(conn: sqlite3.Connection, added: list[Entry]) -> None:
        for entry, row in zip(added, fresh, strict=True):
            _set_parents(conn, entry, row["parents"])
        if kept["whole"] or not was_here:
            _set_labels(conn, kept)
        conn.execute("update names set newest = max(newest, ?) where name = ?", [kept["newest"], name])

    added = registry.add_many(news, new_version=True, also=also)
    means = registry.get(name)
    done = [BroughtBack(here[row["version"]], row["version"], new=False) for row in same]
    for entry, row in zip(added, fresh, strict=True):
        moved = row["version"] == head and means.version != entry.version
        done.append(BroughtBack(entry, row["version"], meant=means.ref if moved else None))
    return sorted(done, key=lambda one: one.was)


def _new(kept: Mapping[str, Any], row: Mapping[str, Any], parts: Mapping[str, Source]) -> New:
    preview = parts[row["preview"]] if row["preview"] else None
    return New(
        kept["name"],
        parts[row["hash"]],
        json.loads(row["summary"]),
        {role: parts[digest].read() for role, digest in row["uses"].items()},
        row["created"],
        EVENT,
        kept["origin"] if row["version"] == kept["head"] else None,
        preview,
        kept["number"],
        row["version"],
    )


def _set_parents(conn: sqlite3.Connection, entry: Entry, rows: Sequence[Sequence[Any]]) -> None:
    """The lineage as it was, whatever has become of the parents since; in a transaction."""
    query = "select id from versions where name = ? and version = ?"
    ((number,),) = conn.execute(query, [entry.name, entry.version]).fetchall()
    conn.execute("delete from parents where version_id = ?", [number])
    conn.executemany("insert into parents values (?, ?, ?, ?, ?)", [[number, *row] for row in rows])


def _set_labels(conn: sqlite3.Connection, kept: Mapping[str, Any]) -> None:
    """Tags, notes with their days, and the mark of a favourite, beside those it has; in a transaction."""
    ((number,),) = conn.execute("select id from names where name = ?", [kept["name"]]).fetchall()
    for tag in kept["tags"]:
        conn.execute("insert or ignore into tags values (?, ?)", [number, tag])
    had = {text for (text,) in conn.execute("select text from notes where name_id = ?", [number])}
    for text, created in kept["notes"]:
        if text not in had:
            values = [number, text, created]
            conn.execute("insert into notes (name_id, text, created) values (?, ?, ?)", values)
    if kept["favourite"]:
        conn.execute("update names set favourite = 1 where id = ?", [number])
    refresh(conn, number)


_PARENTS = """select place, name, version, hash from parents
              where version_id = (select id from versions where name = ? and version = ?) order by place"""
