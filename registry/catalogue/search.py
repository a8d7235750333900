"""Searching and leafing: full-text search, filters, and lists a page at a time."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from conceptkit.registry.entries import COLUMNS, HEADS, Entry, from_row
from conceptkit.registry.errors import ConceptError
from conceptkit.registry.names import nearest
from conceptkit.registry.store import Registry
from conceptkit.registry.texts import composed

RANKED = 2000
"""With more hits than this the newest come first: ranking reads every hit, and so many are alike anyway."""

PAGE = 50

COMPARED = 5000
"""Words that are compared with one that is nowhere, those with its first letter before others."""
_VOCABULARY = "fts5vocab('main', 'texts_fts', 'row')"


@dataclass(frozen=True)
class Filters:
    """What an entry must have; None lets all pass.

    base, noun, method, tag: exactly this. min_size, max_size: bytes, inclusive.
    since, until: days, ISO 8601, inclusive; as the clock on this machine's wall has them.
    """

    base: str | None = None
    noun: str | None = None
    method: str | None = None
    tag: str | None = None
    favourite: bool = False
    min_size: int | None = None
    max_size: int | None = None
    since: str | None = None
    until: str | None = None

    def sql(self) -> tuple[str, list[Any]]:
        """A condition over `HEADS`, "1" for none, and its values. Raises ConceptError for no date."""
        parts: list[tuple[str, list[Any]]] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value is not False:
                condition = _CONDITIONS[field.name]
                parts.append((condition, [_given(field.name, value)] if "?" in condition else []))
        return " and ".join(part for part, _ in parts) or "1", [
            value for _, values in parts for value in values
        ]


_CONDITIONS = {
    "base": "v.base = ?",
    "noun": "v.noun = ?",
    "method": "v.method = ?",
    "tag": "exists (select 1 from tags where name_id = n.id and tag = ?)",
    "favourite": "n.id in (select id from names where favourite)",
    "min_size": "v.bytes >= ?",
    "max_size": "v.bytes <= ?",
    "since": "v.created >= ?",
    "until": "v.created < ?",
}

_VALUES = {
    **{
        column: f"select distinct {column} from versions where {column} is not null"
        for column in ("base", "noun", "method")
    },
    "tag": "select distinct tag from tags",
}
"""The values that concepts have of what is filtered by a word."""

ANY = Filters()

FEW = 5000
"""So many entries are looked at one by one and put in order; of more, those in order are looked at."""

_HEADS_OF = """select few_n.id from versions few_v
               join names few_n on few_n.name = few_v.name and few_n.version = few_v.version where few_v"""
_NUMBERS = {
    "tag": ("select name_id as id from tags where tag = ?", "select 1 from tags where tag = ?"),
    "favourite": ("select id from names where favourite", "select 1 from names where favourite"),
    "noun": (f"{_HEADS_OF}.noun = ?", "select 1 from versions where noun = ?"),
    "base": (f"{_HEADS_OF}.base = ?", "select 1 from versions where base = ?"),
    "method": (f"{_HEADS_OF}.method = ?", "select 1 from versions where method = ?"),
}
"""By filter: the numbers of the names that pass it, and as many rows as those are at most."""
_RANGES = (("min_size", "max_size"), ("since", "until"))
"""Filters that bound a column from below and from above."""
_BOTH = "select rowid as id from texts_fts where texts_fts match ?"


def page(
    registry: Registry, filters: Filters = ANY, *, after: str | None = None, limit: int | None = PAGE
) -> list[Entry]:
    """Current versions by name: the first `limit`, or those that follow the name `after`; None is all."""
    condition, values = filters.sql()
    # the table whose index has both what is asked for and the order
    t = "v" if filters.base or filters.noun or filters.method else "n"
    source = HEADS
    if few := _few(registry, filters):
        numbers, given = few
        source = f"({numbers}) few cross join {HEADS.replace(' join ', ' cross join ')} and n.id = few.id"
        values = [*given, *values]
    if after is not None:
        condition += f" and {t}.name collate nocase >= ? and ({t}.name collate nocase, {t}.name) > (?, ?)"
        values += [after, after, after]
    query = (
        f"select {COLUMNS} from {source} where {condition} order by {t}.name collate nocase, {t}.name limit ?"
    )
    return [from_row(row) for row in registry.index.query(query, [*values, -1 if limit is None else limit])]


def _few(registry: Registry, filters: Filters) -> tuple[str, list[Any]] | None:
    """SELECT of the numbers of all names that can pass, with its values, where those are few; or None."""
    choices = _ranges(filters)
    for name, (numbers, rows) in _NUMBERS.items():
        value = getattr(filters, name)
        if value is not None and value is not False:
            choices.append((numbers, rows, [_given(name, value)] if "?" in numbers else []))
    if len(choices) == 1 and (filters.base or filters.noun or filters.method):
        return None  # an index has them in order
    if filters.noun and filters.tag:
        words = [composed(text).replace('"', '""') for text in (filters.noun, filters.tag)]
        if all(re.search(r"[^\W_]", word) for word in words):  # else there is no word to look for
            both = 'noun : "{}" AND tags : "{}"'.format(*words)
            choices.insert(0, (_BOTH, _BOTH, [both]))
    for numbers, rows, values in choices:
        count = f"select count(*) from (select 1 from ({rows}) limit {FEW + 1})"
        if registry.index.query(count, values)[0][0] <= FEW:
            return numbers, values
    return None


def _ranges(filters: Filters) -> list[tuple[str, str, list[Any]]]:
    """The same as `_NUMBERS` for sizes and days, whatever bounds them on both sides, with the values."""
    choices = []
    for names in _RANGES:
        bounds = [name for name in names if getattr(filters, name) is not None]
        if bounds:
            few = " and ".join(f"few_{_CONDITIONS[name]}" for name in bounds)
            rows = " and ".join(_CONDITIONS[name].removeprefix("v.") for name in bounds)
            values = [_given(name, getattr(filters, name)) for name in bounds]
            choices.append(
                (f"{_HEADS_OF.removesuffix('few_v')}{few}", f"select 1 from versions where {rows}", values)
            )
    return choices


def search(registry: Registry, words: str, filters: Filters = ANY, *, limit: int = PAGE) -> list[Entry]:
    """Current versions whose name, class, tags, captions or notes have all `words`, the best first.

    Of very long notes the newest `entries.SEARCHED` letters are looked at.
    Words are whole words, in any case and without accents; the last one may be the beginning of one.
    A concept of exactly that name comes first. Raises ConceptError when there is no word to look for.
    """
    match = expression(words)
    condition, values = filters.sql()
    counted = registry.index.query(
        f"select count(*) from (select 1 from texts_fts where texts_fts match ? limit {RANKED + 1})", [match]
    )
    order = "bm25(texts_fts, 8.0, 4.0, 4.0, 1.0, 2.0)" if counted[0][0] <= RANKED else "texts_fts.rowid desc"
    query = f"""select {COLUMNS} from texts_fts cross join names n on n.id = texts_fts.rowid
                cross join versions v on v.name = n.name and v.version = n.version
                where texts_fts match ? and {condition} order by {order} limit ?"""
    found = [from_row(row) for row in registry.index.query(query, [match, *values, limit])]
    exact = f"select {COLUMNS} from {HEADS} where n.name = ? and {condition}"
    first = [from_row(row) for row in registry.index.query(exact, [words.strip(), *values])]
    return (first + [entry for entry in found if entry not in first])[:limit]


def nearest_words(registry: Registry, words: Sequence[str]) -> list[str]:
    """The words, the nearest known one for each that is nowhere; empty when nothing is like those."""
    found = [_nearest_word(registry, word) for word in words]
    return found if found != [composed(word).lower() for word in words] else []


def _nearest_word(registry: Registry, word: str) -> str:
    """The word itself, in small letters, if it is somewhere or nothing is like it."""
    word = composed(word).lower()
    with registry.index.using() as conn:  # a table of this connection alone
        conn.execute(f"create virtual table if not exists temp.known_words using {_VOCABULARY}")
    if registry.index.query("select 1 from temp.known_words where term = ?", [word]):
        return word
    query = f"""select term from temp.known_words where abs(length(term) - ?) < 3
                order by substr(term, 1, 1) <> ? limit {COMPARED}"""
    terms = [row[0] for row in registry.index.query(query, [len(word), word[:1]])]
    return nearest(word, terms) or word


def expression(words: str) -> str:
    """The FTS5 expression for what a person typed; every word is quoted, so nothing in it is syntax."""
    plain = re.findall(r"[^\W_]+", composed(words))
    if not plain:
        raise ConceptError(f"There is no word to look for in {words[:80]!r}: give letters or digits.")
    return " ".join(f'"{word}"' for word in plain[:20]) + "*"


def nearest_filters(registry: Registry, filters: Filters) -> dict[str, str]:
    """The filters whose value no concept has, each with the nearest value that some have."""
    found = {}
    for name, query in _VALUES.items():
        if (value := getattr(filters, name)) is None:
            continue
        known = [row[0] for row in registry.index.query(f"{query} limit {COMPARED}")]
        if value not in known and (near := nearest(value, known)):
            found[name] = near
    return found


def labels(registry: Registry, entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """By name: {"tags": [...], "favourite": bool} of these entries."""
    names = sorted({entry.name for entry in entries})
    found: dict[str, dict[str, Any]] = {name: {"tags": [], "favourite": False} for name in names}
    for start in range(0, len(names), 500):
        some = names[start : start + 500]
        marks = ", ".join("?" * len(some))
        query = f"""select n.name, n.favourite, t.tag from names n left join tags t on t.name_id = n.id
                    where n.name in ({marks}) order by t.tag"""
        for name, favourite, tag in registry.index.query(query, some):
            found[name]["favourite"] = bool(favourite)
            found[name]["tags"] += [tag] if tag else []
    return found


def _given(field: str, value: Any) -> Any:
    """The value of a filter as the index has such values."""
    if field in ("since", "until"):
        return _midnight(value, field == "until")
    return composed(value) if isinstance(value, str) else value


def _midnight(text: str, after: bool) -> str:
    """The moment at which a day begins here, or ends (`after`), as the index has moments: in UTC.

    What lies before the first moment that there is, or after the last, is that one.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ConceptError(f"{text[:80]!r} is no date: write it as in '2026-01-31'.") from None
    try:
        moment = datetime.combine(day + timedelta(days=after), time()).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        moment = (datetime.min if day.year < datetime.max.year // 2 else datetime.max).replace(tzinfo=UTC)
    return moment.isoformat(timespec="microseconds")
