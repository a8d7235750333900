"""What people say about their concepts: tags, notes, favourites. Of a name, whatever version it points at."""

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from conceptkit.registry import concept_validation
from conceptkit.registry.entries import now, refresh
from conceptkit.registry.errors import ConceptError
from conceptkit.registry.store import Registry
from conceptkit.registry.texts import composed

LONGEST_TAG = 64
LONGEST_NOTE = 10_000
MOST = 1_000
"""Tags and notes of one name together; nobody takes more of them from others."""


@dataclass(frozen=True)
class Note:
    """One note; number counts within the registry."""

    number: int
    text: str
    created: str  # UTC, ISO 8601

    def to_json(self) -> dict[str, object]:
        """All of it as JSON."""
        return asdict(self)


def tag(registry: Registry, name: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> list[str]:
    """Put tags on a name and take tags off; returns all it has then. Raises UnknownConcept, ConceptError."""
    add, remove = [check_tag(composed(text)) for text in add], [composed(text) for text in remove]
    name = registry.get(name).name
    if add or remove:
        with registry.index.writing() as conn:
            number = number_of(registry, name)
            for text in add:
                conn.execute("insert or ignore into tags values (?, ?)", [number, text])
            for text in remove:
                if not conn.execute(
                    "delete from tags where name_id = ? and tag = ?", [number, text]
                ).rowcount:
                    raise ConceptError(
                        f"{name!r} has no tag {text[:80]!r}: `conceptkit tag {name}` shows its tags."
                    )
            _check_count(conn, number, name, more=bool(add))
            refresh(conn, number)
    query = "select tag from tags where name_id = (select id from names where name = ?) order by tag"
    return [row[0] for row in registry.index.query(query, [name])]


def note(registry: Registry, name: str, text: str) -> Note:
    """Add a note to a name, its line breaks as "\\n".

    Raises UnknownConcept, and ConceptError when it is empty or too long, or holds what nobody could import.
    """
    text = with_plain_breaks(composed(text))
    if not text.strip() or len(text) > LONGEST_NOTE:
        raise ConceptError(
            f"A note has 1 to {LONGEST_NOTE:,} letters, not {len(text.strip()):,}: write another one."
        )
    if not concept_validation.is_plain_note(text, LONGEST_NOTE):
        raise ConceptError("A note has no control characters or directions of writing: take them out of it.")
    registry.get(name)
    with registry.index.writing() as conn:
        number, created = number_of(registry, name), now()
        values = [number, text.strip(), created]
        row = conn.execute("insert into notes (name_id, text, created) values (?, ?, ?)", values).lastrowid
        _check_count(conn, number, name)
        refresh(conn, number)
    return Note(row or 0, text.strip(), created)


def notes(registry: Registry, name: str) -> list[Note]:
    """The notes of a name, oldest first. Raises UnknownConcept."""
    query = """select id, text, created from notes
               where name_id = (select id from names where name = ?) order by id"""
    return [Note(*row) for row in registry.index.query(query, [registry.get(name).name])]


def drop_note(registry: Registry, name: str, number: int) -> None:
    """Take a note off a name. Raises UnknownConcept, and ConceptError when it has no such note."""
    registry.get(name)
    with registry.index.writing() as conn:
        owner = number_of(registry, name)
        if not conn.execute("delete from notes where id = ? and name_id = ?", [number, owner]).rowcount:
            raise ConceptError(f"{name!r} has no note {number}: `conceptkit note {name}` shows its notes.")
        refresh(conn, owner)


def favourite(registry: Registry, name: str, yes: bool = True) -> None:
    """Mark a name as a favourite, or as none. Raises UnknownConcept."""
    registry.get(name)
    with registry.index.writing() as conn:
        conn.execute("update names set favourite = ? where id = ?", [int(yes), number_of(registry, name)])


def put(
    conn: sqlite3.Connection,
    number: int,
    tags: Iterable[str],
    texts: Iterable[str],
    *,
    bounded: bool = True,
) -> None:
    """Tags and notes that a name does not have yet, checked before; in a transaction.

    bounded: whether ConceptError is raised when that comes to more than MOST, or all are kept.
    """
    had = {text for (text,) in conn.execute("select text from notes where name_id = ?", [number])}
    for text in tags:
        conn.execute("insert or ignore into tags values (?, ?)", [number, composed(text)])
    for text in dict.fromkeys(with_plain_breaks(composed(text)).strip() for text in texts):
        if text not in had:
            values = [number, text, now()]
            conn.execute("insert into notes (name_id, text, created) values (?, ?, ?)", values)
    if bounded:
        ((name,),) = conn.execute("select name from names where id = ?", [number]).fetchall()
        _check_count(conn, number, name)
    refresh(conn, number)


def _check_count(conn: sqlite3.Connection, number: int, name: str, more: bool = True) -> None:
    """ConceptError when a name has come to more labels than others take; in a transaction."""
    query = """select (select count(*) from tags where name_id = ?) +
                      (select count(*) from notes where name_id = ?)"""
    ((count,),) = conn.execute(query, [number, number]).fetchall()
    if more and count > MOST:
        raise ConceptError(
            f"{name!r} would have {count:,} tags and notes, and {MOST:,} is the most: take some of them off."
        )


def with_plain_breaks(text: str) -> str:
    """The text with each line break, of whatever system, as "\\n"."""
    return re.sub("\r\n?|[\u2028\u2029]", "\n", text)


def check_tag(text: str) -> str:
    """`text` itself; ConceptError unless it is 1 to 64 letters, digits, `_`, `-`, `.` or `:`."""
    if not re.fullmatch(rf"[\w.:-]{{1,{LONGEST_TAG}}}", text):
        raise ConceptError(
            f"{text[:80]!r} cannot be a tag: use 1 to {LONGEST_TAG} letters, digits, '_', '-', '.' and ':'."
        )
    return text


def number_of(registry: Registry, name: str) -> int:
    """The number of a name, which outlives a rename; in a transaction. UnknownConcept when there is none."""
    rows = registry.index.query("select id from names where name = ?", [registry.get(name).name])
    return int(rows[0][0])
