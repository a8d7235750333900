"""Concepts that come from another registry: received whole or not at all, and never trusted.

A version is the same wherever it is because its bytes are; its number belongs to one registry. So a version
that is here already is left alone, and any other becomes a new version: two that meet are both kept. A name
is whose it is: what comes from elsewhere lies beside what the user made, until the user says otherwise.
"""

import hashlib
import json
import sqlite3
import struct
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from conceptkit.registry import atomic_files, concept_validation
from conceptkit.registry.catalogue import history, labels
from conceptkit.registry.entries import Entry, New, belongs
from conceptkit.registry.errors import BadBlob, BadName, ConceptError
from conceptkit.registry.names import check_name
from conceptkit.registry.sources import Source
from conceptkit.registry.store import Registry

LARGEST_PREVIEW = 16 << 20
WIDEST_PREVIEW = 16_384
LONGEST_SUMMARIES = 64 << 20
"""Characters, as JSON, of what all concepts that arrive at once say of themselves."""


@dataclass(frozen=True)
class IncomingConcept:
    """One version of one concept, and what was said of its name."""

    name: str
    data: bytes | Source
    created: str | None = None  # ISO 8601 with its offset
    preview: bytes | Source | None = None  # PNG
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportResult:
    """What became of a parcel: whether it is new here, beside others, and whether its name means it now.

    left_out: whether it came with tags or notes, and its name is not theirs to describe.
    """

    entry: Entry
    new: bool
    diverged: bool = False
    points: bool = True
    left_out: bool = False

    def sentence(self) -> str:
        """What became of it, for a person."""
        name, ref = self.entry.name, self.entry.ref
        if not self.new:
            return f"{ref} is here already."
        if not self.diverged:
            return f"{ref} is new."
        both = f"{ref} is new; {name} was here with other content, both are kept, and {name}"
        if self.points:
            return f"{both} now means {ref}."
        without = ", and their tags and notes were left out" if self.left_out else ""
        command = f"`conceptkit rollback {name} {self.entry.version}`"
        return f"{both} still means what it meant{without}: {command} takes theirs."

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        said = {"new": self.new, "diverged": self.diverged, "points": self.points}
        return {**self.entry.to_json(), **said, "left_out": self.left_out}


def receive(
    registry: Registry,
    parcels: Sequence[IncomingConcept],
    event: str,
    *,
    origin: str | None = None,
    take: bool = False,
    twins: Container[str] = (),
) -> list[ImportResult]:
    """Add what is not here yet, with its preview, tags and notes: all of it or nothing, in one moment.

    event: the word for it in the history. origin: whose it is, "remote team" or a key; None for whoever made
    exactly these. A name that is new here means the last parcel of that name. So does a name that has only
    ever meant what came from that origin. Any other name is somebody else's, mostly the user's own, and goes
    on meaning what it means, whatever dates they wrote; with `take` it means the last parcel too.
    A name that differs from one here by case alone goes onto that one, unless there are several such names
    where it comes from: in these parcels, or among `twins`. Each of those is a name of its own.

    Raises BadBlob, BadName and ConceptError for a parcel that is not what it should be.
    """
    checked = _check_all(parcels)
    origin = origin or _unsigned(digest for digest, _ in checked)
    with atomic_files.turn(registry.home):
        names = _names_here(registry, parcels, twins)
        here = {name: registry.versions(name) if registry.has(name) else [] for name in set(names)}
        news: dict[int, New] = {}
        known = {name: {entry.hash for entry in entries} for name, entries in here.items()}
        for number, (name, parcel, (digest, summary)) in enumerate(zip(names, parcels, checked, strict=True)):
            if digest not in known[name]:
                known[name].add(digest)
                created = _utc(parcel.created)
                news[number] = New(name, parcel.data, summary, {}, created, event, origin, parcel.preview)
        theirs: set[str] = set()
        there: dict[str, dict[str, Entry]] = {}
        by_name: dict[str, list[IncomingConcept]] = {}
        for name, parcel in zip(names, parcels, strict=True):
            by_name.setdefault(name, []).append(parcel)

        def also(conn: sqlite3.Connection, added: list[Entry]) -> None:
            for name, last in {name: number for number, name in enumerate(names)}.items():
                there[name] = {entry.hash: entry for entry in registry.versions(name)}
                if take or belongs(conn, labels.number_of(registry, name), origin):
                    theirs.add(name)
                    tags, notes = _said(by_name[name])
                    if tags or notes:
                        labels.put(conn, labels.number_of(registry, name), tags, notes)
                if take:
                    history.point(registry, _same(there[name], name, checked[last][0]), "take", origin)

        added = dict(
            zip(news, registry.add_many(list(news.values()), new_version=True, also=also), strict=True)
        )
        heads = {name: registry.get(name).version for name in set(names)}
        arrivals = []
        for number, (name, parcel, (digest, _)) in enumerate(zip(names, parcels, checked, strict=True)):
            entry = added.get(number) or _same(there[name], name, digest)
            if name in theirs and number not in added and parcel.preview and not entry.preview:
                registry.set_preview(entry.name, entry.version, parcel.preview)
            new, points = number in added, heads[name] == entry.version
            left_out = name not in theirs and bool(parcel.tags or parcel.notes)
            arrivals.append(ImportResult(entry, new, new and bool(here[name]), points, left_out))
    return arrivals


def _names_here(registry: Registry, parcels: Sequence[IncomingConcept], twins: Container[str]) -> list[str]:
    """What each parcel is called here."""
    alike = Counter(name.lower() for name in {parcel.name for parcel in parcels})
    own = {name for parcel in parcels if alike[(name := parcel.name).lower()] > 1 or name in twins}
    return [parcel.name if parcel.name in own else registry.spelled(parcel.name) for parcel in parcels]


def _said(parcels: Iterable[IncomingConcept]) -> tuple[Iterable[str], Iterable[str]]:
    """All tags and notes of these, each once; most of them have the same."""
    said = dict.fromkeys((parcel.tags, parcel.notes) for parcel in parcels)
    tags = dict.fromkeys(tag for some, _ in said for tag in some)
    return tags, dict.fromkeys(note for _, some in said for note in some)


def _unsigned(digests: Iterable[str]) -> str:
    """The origin of what nobody signed: only the same contents have the same."""
    return f"file {hashlib.sha256(' '.join(digests).encode()).hexdigest()[:16]}"


def labels_of(registry: Registry, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tags and notes of a name, less the notes that nobody could receive."""
    texts = [labels.with_plain_breaks(note.text) for note in labels.notes(registry, name)]
    fit = (text for text in texts if concept_validation.is_plain_note(text, labels.LONGEST_NOTE))
    return tuple(labels.tag(registry, name)), tuple(fit)


def check_texts(tags: Iterable[Any], notes: Iterable[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tags and notes as they came. Raises BadBlob when they are not some."""
    tags, notes = tuple(tags), tuple(notes)
    for note in notes:
        if not isinstance(note, str) or not note.strip() or len(note) > labels.LONGEST_NOTE:
            raise BadBlob("A note in it is no text of a bearable length: ask for it again.")
        if not concept_validation.is_plain_note(note, labels.LONGEST_NOTE):
            raise BadBlob("A note in it has control characters: ask for it again.")
    if len(tags) + len(notes) > labels.MOST or not all(isinstance(tag, str) for tag in tags):
        raise BadBlob("Its tags are no tags: ask for it again.")
    return tuple(map(labels.check_tag, tags)), notes


def check_preview(data: bytes | Source) -> Source:
    """The bytes of a PNG that can be shown. Raises BadBlob."""
    source = Source.of(data)
    with source.open() as reader:
        start = reader.read(24)
    if source.size <= LARGEST_PREVIEW and len(start) == 24 and start[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack(">II", start[16:24])
        if start[12:16] == b"IHDR" and 0 < width <= WIDEST_PREVIEW and 0 < height <= WIDEST_PREVIEW:
            return source
    raise BadBlob("A preview in it is not a picture of a bearable size: ask for it again.")


def _check_all(parcels: Sequence[IncomingConcept]) -> list[tuple[str, dict[str, Any]]]:
    """(sha256, summary) of every parcel, all of it fit to be kept, and together in memory. Raises BadBlob."""
    checked, said, size = [], set(), 0
    for parcel in parcels:
        if (parcel.tags, parcel.notes) not in said:  # all versions of a name have the same
            check_texts(parcel.tags, parcel.notes)
            said.add((parcel.tags, parcel.notes))
        checked.append(_check(parcel))
        size += len(json.dumps(checked[-1][1]))
        if size > LONGEST_SUMMARIES:
            raise BadBlob("It says too much of its concepts: ask for fewer of them at once.")
    return checked


def _check(parcel: IncomingConcept) -> tuple[str, dict[str, Any]]:
    """(sha256, summary) of a parcel; its tags and notes have been looked at."""
    if not isinstance(parcel.name, str):
        raise BadName("A concept in it has no name: ask for it again.")
    check_name(parcel.name)
    source = Source.of(parcel.data)
    header = concept_validation.check(source)
    if parcel.preview is not None:
        check_preview(parcel.preview)
    _utc(parcel.created)
    return source.digest(), header.summary


def _utc(created: Any) -> str | None:
    """A moment in the form of the index; one to come is taken for now, or it would be the newest for ever."""
    if created is None:
        return None
    try:
        if not isinstance(created, str) or len(created) > 40 or not created.isascii():
            raise ValueError
        moment = datetime.fromisoformat(created)
        if moment.tzinfo is None:
            raise ValueError
        return min(moment.astimezone(UTC), datetime.now(UTC)).isoformat(timespec="microseconds")
    except (ValueError, OverflowError):
        raise BadBlob(f"{created!r:.40} in it is no moment in time: ask for it again.") from None


def _same(there: Mapping[str, Entry], name: str, digest: str) -> Entry:
    """The version of a name with these bytes. Raises ConceptError."""
    if digest not in there:
        raise ConceptError(f"{name!r} was removed while it came in: try again.")
    return there[digest]


def label(
    registry: Registry, name: str, tags: Iterable[str], notes: Iterable[str], origin: str, take: bool = False
) -> None:
    """Add those tags and notes that a name does not have yet, if it is theirs to describe."""
    with registry.index.writing() as conn:
        number = labels.number_of(registry, name)
        if take or belongs(conn, number, origin):
            labels.put(conn, number, tags, notes)
