"""What can still be read of a damaged index: its rows, table by table, and those of a backup beside them."""

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conceptkit.registry.blob_store import BlobStore
from conceptkit.registry.catalogue import labels
from conceptkit.registry.entries import refresh
from conceptkit.registry.errors import BadBlob, ConceptError
from conceptkit.registry.names import check_name
from conceptkit.registry.sources import is_digest

Row = dict[str, Any]

TABLES = ("names", "versions", "assets", "uses", "tags", "notes", "parents", "history")
"""All that an index holds; what it searches is made of these."""


@dataclass
class Rows:
    """The rows of an index by table; whole: the tables of which no row is lost."""

    tables: dict[str, list[Row]] = field(default_factory=lambda: {table: [] for table in TABLES})
    whole: set[str] = field(default_factory=set)


def schema(conn: sqlite3.Connection) -> dict[str, str]:
    """name -> the SQL that made it, of every table, index and trigger of a good index."""
    return dict(conn.execute("select name, sql from sqlite_master where sql is not null"))


def read(file: Path, good: Mapping[str, str]) -> Rows:
    """The rows in a copy of an index, which may be changed here; `good`: the `schema` that it should have.

    Nothing is raised for what is damaged: it is left out.
    """
    found = Rows()
    try:
        _mend_schema(file, good)
        with closing(sqlite3.connect(file, isolation_level=None)) as conn:
            conn.text_factory = lambda data: data.decode("utf-8", "replace")
            conn.execute("pragma writable_schema = on")  # a schema with an error in it is read all the same
            for table in TABLES:
                rows, whole = _table(conn, table)
                found.tables[table] = rows
                if whole:
                    found.whole.add(table)
    except sqlite3.Error:
        pass
    return found


@dataclass(frozen=True)
class Filled:
    """versions: how many an index was filled with; said: tags and notes, and whether it is a favourite, of
    each name of which no version is left."""

    versions: int
    said: dict[str, tuple[list[str], list[str], bool]]


def fill(conn: sqlite3.Connection, first: Rows, second: Rows, store: BlobStore) -> Filled:
    """Put these rows into an empty index, in a transaction.

    first: what the damaged index has. second: a backup, for what the first does not have any more. Rows that
    contradict each other are made to agree; a summary that is lost is read from the concept in `store`.
    """
    tables = _merged(first, second, store)
    versions = _good_versions(tables["versions"], store)
    names = _good_names(tables, versions)
    by_id = {row["id"] for row in versions.values()}
    ids = {row["id"] for row in names.values()}
    good: dict[str, Collection[Row]] = {
        "names": names.values(),
        "versions": versions.values(),
        "assets": _unique([row for row in tables["assets"] if is_digest(row.get("hash"))], "key"),
        "uses": _unique([r for r in tables["uses"] if r.get("version_id") in by_id], "version_id", "role"),
        "parents": _unique(
            [r for r in tables["parents"] if r.get("version_id") in by_id], "version_id", "place"
        ),
        "tags": _unique([r for r in tables["tags"] if r.get("name_id") in ids], "name_id", "tag"),
        "notes": _unique([r for r in tables["notes"] if r.get("name_id") in ids], "id"),
        "history": _unique(tables["history"], "id"),
    }
    for table, rows in good.items():
        columns = [column[1] for column in conn.execute(f"pragma table_info({table})")]
        marks = ", ".join("?" * len(columns))
        for row in rows:
            values = [row.get(column) for column in columns]
            conn.execute(f"insert or ignore into {table} ({', '.join(columns)}) values ({marks})", values)
    for (number,) in conn.execute("select id from names").fetchall():
        refresh(conn, number)
    return Filled(len(versions), _of_lost_names(tables, names))


def say_again(conn: sqlite3.Connection, filled: Filled) -> None:
    """What was said of names that had lost their versions and have some again, in a transaction."""
    for name, (tags, notes, favourite) in filled.said.items():
        row = conn.execute("select id from names where name = ?", [name]).fetchone()
        if row is not None:
            labels.put(conn, row[0], tags, notes, bounded=False)
            conn.execute("update names set favourite = ? where id = ?", [int(favourite), row[0]])


def _of_lost_names(
    tables: Mapping[str, list[Row]], names: Mapping[str, Row]
) -> dict[str, tuple[list[str], list[str], bool]]:
    found = {}
    for row in tables["names"]:
        name, number = row.get("name"), row.get("id")
        if isinstance(name, str) and name not in names:
            tags = [r["tag"] for r in tables["tags"] if r.get("name_id") == number and r.get("tag")]
            notes = [r["text"] for r in tables["notes"] if r.get("name_id") == number and r.get("text")]
            found[name] = (tags, notes, row.get("favourite") == 1)
    return found


def damaged_rows(conn: sqlite3.Connection) -> Iterator[str]:
    """The names of versions whose row no listing could show."""
    for name, version, digest, summary in conn.execute("select name, version, hash, summary from versions"):
        if not _is_summary(summary) or not isinstance(version, int) or not isinstance(digest, str):
            yield f"{name!r:.80}"


def _mend_schema(file: Path, good: Mapping[str, str]) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as conn:
        conn.text_factory = bytes
        conn.execute("pragma writable_schema = on")
        there = {
            bytes(name or b""): bytes(sql or b"")
            for name, sql in conn.execute("select name, sql from sqlite_master")
        }
        for name, sql in good.items():
            if there.get(name.encode(), sql.encode()) != sql.encode():
                conn.execute("update sqlite_master set sql = ? where name = ?", [sql, name])


def _table(conn: sqlite3.Connection, table: str) -> tuple[list[Row], bool]:
    """The rows of a table that can be read: from its beginning, and from its end to what is damaged."""
    found: dict[int, Row] = {}
    for order in ("asc", "desc"):
        try:
            cursor = conn.execute(f"select rowid as _row, * from {table} not indexed order by rowid {order}")
            columns = [column[0] for column in cursor.description]
            for values in cursor:
                row = dict(zip(columns, values, strict=True))
                if (number := row.pop("_row")) in found:
                    break
                found[number] = row
            else:
                return list(found.values()), order == "asc"
        except sqlite3.Error:
            continue
    return [found[number] for number in sorted(found)], False


def _merged(first: Rows, second: Rows, store: BlobStore) -> dict[str, list[Row]]:
    """The rows of the first index, and of the second what the first does not know of."""
    tables = {table: list(rows) for table, rows in first.tables.items()}
    if not second.whole:
        return tables
    known = {row.get("hash") for row in tables["versions"]}
    ids: dict[Any, Any] = {row.get("name"): row.get("id") for row in tables["names"]}
    next_name = 1 + max(_numbers(tables["names"], "id"), _numbers(tables["history"], "name_id"))
    next_version = 1 + _numbers(tables["versions"], "id")
    names: dict[Any, int] = {}  # of the second -> here
    versions: dict[Any, int] = {}
    taken = {(row.get("name"), row.get("version")) for row in tables["versions"]}
    for row in second.tables["versions"]:
        gone = bool(known) and is_digest(row["hash"]) and store.size(row["hash"]) is None
        if row["hash"] in known or gone:
            continue
        row = dict(row)
        while (row["name"], row["version"]) in taken:
            row["version"] += 1
        taken.add((row["name"], row["version"]))
        versions[row["id"]], row["id"] = next_version, next_version
        next_version += 1
        tables["versions"].append(row)
    for row in second.tables["names"]:
        if row["name"] in ids:
            names[row["id"]] = ids[row["name"]]
        elif any(name == row["name"] for name, _ in taken):
            names[row["id"]], next_name = next_name, next_name + 1
            tables["names"].append(row | {"id": names[row["id"]]})
    new = {number for number in names.values() if number not in ids.values()}
    for table, key, numbers in (
        ("uses", "version_id", versions),
        ("parents", "version_id", versions),
        ("tags", "name_id", names),
        ("notes", "name_id", names),
        ("history", "name_id", names),
    ):
        rows = [row | {key: numbers[row[key]]} for row in second.tables[table] if row[key] in numbers]
        if key == "name_id" and table in first.whole:
            rows = [row for row in rows if row[key] in new]
        tables[table] += _renumbered(rows, tables[table]) if table in ("notes", "history") else rows
    assets = {row.get("key") for row in tables["assets"]}
    tables["assets"] += [row for row in second.tables["assets"] if row["key"] not in assets]
    return tables


def _renumbered(rows: Sequence[Row], there: Sequence[Row]) -> list[Row]:
    """Rows with ids of their own, in their order; those that are there already are left out."""
    known = {_content(row) for row in there}
    fresh = [row for row in rows if _content(row) not in known]
    start = 1 + _numbers(there, "id")
    return [row | {"id": number} for number, row in enumerate(fresh, start)]


def _content(row: Row) -> tuple[Any, ...]:
    return tuple(sorted((key, str(value)) for key, value in row.items() if key != "id"))


def _good_versions(rows: Sequence[Row], store: BlobStore) -> dict[tuple[str, int], Row]:
    """By name and number, the versions that can be shown; what a row has lost comes from its concept."""
    found: dict[tuple[str, int], Row] = {}
    used: set[int] = set()
    number = _numbers(rows, "id")
    for row in rows:
        name, version, digest = row.get("name"), row.get("version"), row.get("hash")
        if not (isinstance(name, str) and isinstance(version, int)):
            continue
        if not (isinstance(digest, str) and is_digest(digest)):
            continue
        try:
            check_name(name)
        except ConceptError:
            continue
        row = dict(row)
        if not _is_summary(row.get("summary")):
            try:
                row["summary"] = json.dumps(store.header(digest).summary)
            except (OSError, BadBlob):
                continue
        if not isinstance(row.get("id"), int) or row["id"] in used:
            number += 1
            row["id"] = number
        if not isinstance(row.get("bytes"), int):
            row["bytes"] = store.size(digest) or 0
        used.add(row["id"])
        row["created"] = (
            row["created"] if isinstance(row.get("created"), str) else "1970-01-01T00:00:00+00:00"
        )
        row["preview"] = row["preview"] if is_digest(row.get("preview")) else None
        found.setdefault((name, version), row)
    return found


def _good_names(tables: Mapping[str, list[Row]], versions: Mapping[tuple[str, int], Row]) -> dict[str, Row]:
    """By name, each name that has a version; it points at one, and knows its highest number."""
    numbers: dict[str, list[int]] = {}
    for name, version in versions:
        numbers.setdefault(name, []).append(version)
    known = {row["name"]: row for row in tables["names"] if isinstance(row.get("name"), str)}
    next_id = 1 + max(_numbers(tables["names"], "id"), _numbers(tables["history"], "name_id"))
    trail: dict[Any, int] = {}
    for row in tables["history"]:
        event = str(row.get("event"))
        if event not in ("rename", "remove") and not event.endswith(" aside"):  # as entries.POINTS says it
            trail[row.get("name_id")] = row.get("version")  # type: ignore[assignment]
    used: set[int] = set()
    found: dict[str, Row] = {}
    for name, there in numbers.items():
        row = dict(known.get(name, {"name": name}))
        if not isinstance(row.get("id"), int) or row["id"] in used:
            row["id"], next_id = next_id, next_id + 1
        used.add(row["id"])
        head = row.get("version")
        if head not in there:
            head = trail.get(row["id"]) if trail.get(row["id"]) in there else max(there)
        newest = row["newest"] if isinstance(row.get("newest"), int) else 0
        found[name] = row | {
            "version": head,
            "newest": max([newest, *there]),
            "favourite": int(row.get("favourite") == 1),
        }
    return found


def _unique(rows: Sequence[Row], *keys: str) -> list[Row]:
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if all(row.get(key) is not None for key in keys):
            found.setdefault(tuple(row[key] for key in keys), row)
    return list(found.values())


def _numbers(rows: Sequence[Row], key: str) -> int:
    """The highest number in a column."""
    return max((row[key] for row in rows if isinstance(row.get(key), int)), default=0)


def _is_summary(text: Any) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, TypeError, RecursionError):
        return False
