"""One version of one concept as a value, and as a row of the index."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from conceptkit.registry import concept_header
from conceptkit.registry.errors import ConceptError
from conceptkit.registry.sources import Source

COLUMNS = "v.name, v.version, v.hash, v.bytes, v.created, v.summary, v.preview"
"""Of the table versions as v, in the order of `from_row`."""

HEADS = "names n join versions v on v.name = n.name and v.version = n.version"
"""Each name with the version it points at."""

POINTS = "event not in ('rename', 'remove') and event not like '% aside'"
"""Of the events in the history, those after which a name points at their version."""


SEARCHED = 200_000
"""Letters of the notes of a name that are searched, the newest ones: every change of its labels indexes them
anew."""


@dataclass(frozen=True)
class Entry:
    """One version of one concept in the index."""

    name: str
    version: int
    hash: str  # sha256 of the blob, hex
    bytes: int  # size of the blob
    created: str  # UTC, ISO 8601
    summary: dict[str, Any] = field(default_factory=dict)
    preview: str | None = None  # sha256 of a PNG

    @property
    def ref(self) -> str:
        """`my_dog@2`, which reads this version for good."""
        return f"{self.name}@{self.version}"

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class New:
    """A concept to be added: its name, its bytes, what the index shows of it.

    uses: blobs to keep with this version, by role ("photo/1.png", "prior"): bytes, or the sha256 of an
    asset that is already there. created, event: another time and another word in the history, for imports.
    number: for what was removed and comes back, the number its name had, where neither is there any more.
    version: the one it had, if that is free; it moves no name that is there.
    """

    name: str
    data: bytes | Source
    summary: Mapping[str, Any] = field(default_factory=dict)
    uses: Mapping[str, "bytes | str"] = field(default_factory=dict)
    created: str | None = None
    event: str = "add"
    origin: str | None = None  # whose it is; a name that did not come from there then stays as it is
    preview: bytes | Source | None = None  # PNG
    number: int | None = None
    version: int | None = None


def from_row(row: Sequence[Any]) -> Entry:
    """The entry in a row of COLUMNS. Raises ConceptError when the row is damaged."""
    name, version, digest, size, created, summary, preview = row
    try:
        about = json.loads(summary)
        if not (isinstance(about, dict) and isinstance(name, str) and isinstance(created, str)):
            raise ValueError("it is no entry")
        return Entry(name, int(version), str(digest), int(size), created, about, preview)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConceptError(
            f"The index is damaged (in its row of {name!r:.80}): make it anew with `conceptkit rebuild`."
        ) from error


def now() -> str:
    """This moment in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass
class Batch:
    """What is found out once, or done once at the end, for all that is inserted in one transaction."""

    theirs: dict[tuple[int, str], bool] = field(default_factory=dict)  # `belongs` by number and origin
    touched: set[int] = field(default_factory=set)  # numbers of names that the search must learn about

    def finish(self, conn: sqlite3.Connection) -> None:
        """Let the search know of every name that was touched."""
        for number in sorted(self.touched):
            refresh(conn, number)
        self.touched.clear()


def insert(
    conn: sqlite3.Connection,
    new: New,
    digest: str,
    header: concept_header.Header | None,
    size: int | None = None,
    batch: Batch | None = None,
) -> Entry:
    """The next version of a name, which points at it if it should. In a transaction; its bytes are stored.

    header: what the bytes say of themselves, None when that is nothing; size: of bytes that are not at hand.
    batch: to be finished by the caller, after the last of many.
    """
    size = Source.of(new.data).size if size is None else size
    created = new.created or now()
    found = conn.execute("select id, newest from names where name = ?", [new.name]).fetchone()
    if found is None:
        number, version, points = None, new.version or 1, True
    else:
        number, version = found[0], _free_version(conn, new, found[1])
    text = json.dumps(dict(new.summary))
    summary = json.loads(text)
    captions = summary.get("captions")
    row = conn.execute(
        """insert into versions (name, version, hash, bytes, created, summary, noun, base, method, captions)
           values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        [
            *(new.name, version, digest, size, created, text),
            *(_text(summary.get(key)) for key in ("noun", "base_name", "method")),
            "\n".join(map(str, captions)) if isinstance(captions, list) else None,
        ],
    ).lastrowid
    if number is None:
        number = _number(conn, new)
        values = [number, new.name, version, version]
        conn.execute("insert into names (id, name, version, newest) values (?, ?, ?, ?)", values)
    else:
        mine = new.origin is None or _belongs(conn, number, new.origin, batch)
        points = new.version is None and mine
        conn.execute("update names set newest = max(newest, ?) where id = ?", [version, number])
        if points:
            conn.execute("update names set version = ? where id = ?", [version, number])
    for place, (name, parent, parent_digest) in enumerate(_parents(conn, header, summary)):
        values = [row, place, name, parent, parent_digest]
        conn.execute("insert into parents values (?, ?, ?, ?, ?)", values)
    event = new.event if points else f"{new.event} aside"
    record(conn, number, new.name, event, version, digest, new.origin)
    if batch is None:
        refresh(conn, number)
    else:
        batch.touched.add(number)
    return Entry(new.name, version, digest, size, created, summary)


def _number(conn: sqlite3.Connection, new: New) -> int:
    """The number of a name that is not there: the one that it had before, or else one that nobody had."""
    had = """select 1 where not exists (select 1 from names where id = ?)
             and exists (select 1 from history where name_id = ? and name = ? and event = 'remove')"""
    if new.number is not None and conn.execute(had, [new.number, new.number, new.name]).fetchone():
        return new.number
    # A number that the history knows of belongs to a name that was removed, and stays that one's.
    query = """select 1 + max(coalesce((select max(id) from names), 0),
                              coalesce((select max(name_id) from history), 0))"""
    return int(conn.execute(query).fetchone()[0])


def _free_version(conn: sqlite3.Connection, new: New, newest: int) -> int:
    """The number of a further version of a name: the one that it had, if that is free, or else the next."""
    query = "select 1 from versions where name = ? and version = ?"
    if new.version is None or conn.execute(query, [new.name, new.version]).fetchone():
        return newest + 1
    return new.version


def belongs(conn: sqlite3.Connection, number: int, origin: str) -> bool:
    """Whether a name has never pointed at anything but what came from there: then it is theirs to move."""
    query = f"select 1 from history where name_id = ? and {POINTS} and coalesce(detail, '') <> ? limit 1"
    return conn.execute(query, [number, origin]).fetchone() is None


def _belongs(conn: sqlite3.Connection, number: int, origin: str, batch: Batch | None) -> bool:
    """The same, looked up once in a batch: what is inserted by one origin does not change it."""
    if batch is None:
        return belongs(conn, number, origin)
    if (number, origin) not in batch.theirs:
        batch.theirs[number, origin] = belongs(conn, number, origin)
    return batch.theirs[number, origin]


def record(
    conn: sqlite3.Connection,
    number: int | None,
    name: str,
    event: str,
    version: int | None,
    digest: str | None,
    detail: str | None = None,
) -> None:
    """A line in the history of a name; lines are only ever added."""
    conn.execute(
        "insert into history (name_id, name, event, version, hash, at, detail) values (?, ?, ?, ?, ?, ?, ?)",
        [number, name, event, version, digest, now(), detail],
    )


def refresh(conn: sqlite3.Connection, number: int | None) -> None:
    """What full-text search knows of a name, from the version it points at and from its labels."""
    row = conn.execute(
        f"""select v.name, v.noun, v.captions,
                   (select group_concat(tag, ' ') from tags where name_id = n.id),
                   substr((select group_concat(text, '\n') from
                       (select text from notes where name_id = n.id order by id desc)), 1, {SEARCHED}),
                   (select group_concat(p.name, ' ') from parents p where p.version_id = v.id)
            from {HEADS} where n.id = ?""",
        [number],
    ).fetchone()
    if row is None:
        raise sqlite3.DatabaseError("malformed rows: a name points at no version")
    name, noun, captions, tags, notes, parents = row
    texts = [name, noun or parents or "", tags or "", captions or "", notes or ""]
    known = conn.execute(
        "select name, noun, tags, captions, notes from texts where id = ?", [number]
    ).fetchone()
    if known is None:
        conn.execute("insert into texts values (?, ?, ?, ?, ?, ?)", [number, *texts])
    elif list(known) != texts:
        sets = "name = ?, noun = ?, tags = ?, captions = ?, notes = ?"
        conn.execute(f"update texts set {sets} where id = ?", [*texts, number])


def _parents(
    conn: sqlite3.Connection, header: concept_header.Header | None, summary: Mapping[str, Any]
) -> list[tuple[str, int | None, str | None]]:
    """(name, version, sha256) of what a merge was made of; the sha256 from its own header, else the index."""
    refs = summary.get("parents")
    if not isinstance(refs, list) or not refs:
        return []
    told = dict(header.parents) if header else {}
    found = []
    for ref in map(str, refs):
        name, _, written = ref.partition("@")
        version = int(written) if written.isdecimal() and len(written) < 10 else None
        query = "select version, hash from versions where name = ? and version = ?"
        if version is None:
            query = f"select v.version, v.hash from {HEADS} where n.name = ?"
        row = conn.execute(query, [name] if version is None else [name, version]).fetchone()
        digest = told.get(ref) or (row[1] if row else None)
        if version is None and row and row[1] == digest:
            version = row[0]
        found.append((name, version, digest))
    return found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
