"""Concepts that come from another registry: received whole or not at all, and never trusted.

A version is the same wherever it is because its bytes are; its number belongs to one registry. So a version
that is here already is left alone, and any other becomes a new version: two that meet are both kept. A name
is whose it is: what comes from elsewhere lies beside what the user made, until the user says otherwise.
"""

import hashlib
import sqlite3
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from conceptkit.registry import atomic_files, concept_validation
from conceptkit.registry.catalogue import history, labels
from conceptkit.registry.entries import Entry, New, belongs
from conceptkit.registry.errors import BadBlob, BadName, ConceptError
from conceptkit.registry.names import check_name
from conceptkit.registry.store import Registry

LARGEST_PREVIEW = 16 << 20
WIDEST_PREVIEW = 16_384
MOST_LABELS = 1_000


@dataclass(frozen=True)
class IncomingConcept:
    """One version of one concept, and what was said of its name."""

    name: str
    data: bytes
    created: str | None = None  # ISO 8601 with its offset
    preview: bytes | None = None  # PNG
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
        said = {"new": self.new, "diverged": self.diverged, "points": self.points}
        return {**self.entry.to_json(), **said, "left_out": self.left_out}


def receive(
    registry: Registry,
    parcels: Sequence[IncomingConcept],
    event: str,
    *,
    origin: str | None = None,
    take: bool = False,
) -> list[ImportResult]:
    """Add what is not here yet, with its preview, tags and notes: all of it or nothing, in one moment.

    event: the word for it in the history. origin: whose it is, "remote team" or a key; None for whoever made
    exactly these. A name that is new here means the last parcel of that name. So does a name that has only
    ever meant what came from that origin. Any other name is somebody else's, mostly the user's own, and goes
    on meaning what it means, whatever dates they wrote; with `take` it means the last parcel too.

    Raises BadBlob, BadName and ConceptError for a parcel that is not what it should be.
    """
    checked = [_check(parcel) for parcel in parcels]
    origin = origin or _unsigned(digest for digest, _ in checked)
    with atomic_files.turn(registry.home):
        names = [registry.spelled(parcel.name) for parcel in parcels]
        names = [{name.lower(): name for name in reversed(names)}[name.lower()] for name in names]
        here = {name: registry.versions(name) if registry.has(name) else [] for name in set(names)}
        news: dict[int, New] = {}
        known = {name: {entry.hash for entry in entries} for name, entries in here.items()}
        for number, (name, parcel, (digest, summary)) in enumerate(zip(names, parcels, checked, strict=True)):
            if digest not in known[name]:
                known[name].add(digest)
                created = _utc(parcel.created)
                news[number] = New(name, parcel.data, summary, {}, created, event, origin, parcel.preview)
        theirs: set[str] = set()
        by_name: dict[str, list[IncomingConcept]] = {}
        for name, parcel in zip(names, parcels, strict=True):
            by_name.setdefault(name, []).append(parcel)

        def also(conn: sqlite3.Connection, added: list[Entry]) -> None:
            fresh = dict(zip(news, added, strict=True))
            for name, last in {name: number for number, name in enumerate(names)}.items():
                if take or belongs(conn, labels.number_of(registry, name), origin):
                    theirs.add(name)
                    tags = {tag: None for parcel in by_name[name] for tag in parcel.tags}
                    notes = [note for parcel in by_name[name] for note in parcel.notes]
                    if tags or notes:
                        labels.put(conn, labels.number_of(registry, name), tags, notes)
                if take:
                    entry = fresh.get(last) or _same(registry, name, checked[last][0])
                    history.point(registry, entry, "take", origin)

        added = dict(
            zip(news, registry.add_many(list(news.values()), new_version=True, also=also), strict=True)
        )
        heads = {name: registry.get(name).version for name in set(names)}
        arrivals = []
        for number, (name, parcel, (digest, _)) in enumerate(zip(names, parcels, checked, strict=True)):
            entry = added.get(number) or _same(registry, name, digest)
            if name in theirs and number not in added and parcel.preview and not entry.preview:
                registry.set_preview(entry.name, entry.version, parcel.preview)
            new, points = number in added, heads[name] == entry.version
            left_out = name not in theirs and bool(parcel.tags or parcel.notes)
            arrivals.append(ImportResult(entry, new, new and bool(here[name]), points, left_out))
    return arrivals


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
    if len(tags) + len(notes) > MOST_LABELS or not all(isinstance(tag, str) for tag in tags):
        raise BadBlob("Its tags are no tags: ask for it again.")
    return tuple(map(labels.check_tag, tags)), notes


def check_preview(data: bytes) -> bytes:
    """The bytes of a PNG that can be shown. Raises BadBlob."""
    start = data[:24]
    if len(data) <= LARGEST_PREVIEW and len(start) == 24 and start[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack(">II", start[16:24])
        if start[12:16] == b"IHDR" and 0 < width <= WIDEST_PREVIEW and 0 < height <= WIDEST_PREVIEW:
            return data
    raise BadBlob("A preview in it is not a picture of a bearable size: ask for it again.")


def _check(parcel: IncomingConcept) -> tuple[str, dict[str, Any]]:
    """(sha256, summary) of a parcel whose every part is fit to be kept."""
    if not isinstance(parcel.name, str):
        raise BadName("A concept in it has no name: ask for it again.")
    check_name(parcel.name)
    header = concept_validation.check(parcel.data)
    check_texts(parcel.tags, parcel.notes)
    if parcel.preview is not None:
        check_preview(parcel.preview)
    _utc(parcel.created)
    return hashlib.sha256(parcel.data).hexdigest(), header.summary


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


def _same(registry: Registry, name: str, digest: str) -> Entry:
    for entry in registry.versions(name):
        if entry.hash == digest:
            return entry
    raise ConceptError(f"{name!r} was removed while it came in: try again.")


def label(
    registry: Registry, name: str, tags: Iterable[str], notes: Iterable[str], origin: str, take: bool = False
) -> None:
    """Add those tags and notes that a name does not have yet, if it is theirs to describe."""
    with registry.index.writing() as conn:
        number = labels.number_of(registry, name)
        if take or belongs(conn, number, origin):
            labels.put(conn, number, tags, notes)
