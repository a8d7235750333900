"""Concepts that come from another registry: received whole or not at all, and never trusted.

A version is the same wherever it is because its bytes are; its number belongs to one registry. So a version
that is here already is left alone, and any other becomes a new version: two that meet are both kept.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from conceptkit.registry import atomic_files, concept_validation
from conceptkit.registry.catalogue import labels
from conceptkit.registry.entries import Entry, New
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
    """What became of a parcel: whether it is new here, beside others, and whether its name means it now."""

    entry: Entry
    new: bool
    diverged: bool = False
    points: bool = True

    def sentence(self) -> str:
        if not self.new:
            return f"{self.entry.ref} is here already."
        if not self.diverged:
            return f"{self.entry.ref} is new."
        name = self.entry.name
        now = f"now means {self.entry.ref}" if self.points else "still means what was made later"
        return (
            f"{self.entry.ref} is new; {name} was here with other content, both are kept, and {name} {now}."
        )

    def to_json(self) -> dict[str, Any]:
        return {**self.entry.to_json(), "new": self.new, "diverged": self.diverged, "points": self.points}


def receive(registry: Registry, parcels: Sequence[IncomingConcept], event: str) -> list[ImportResult]:
    """Add what is not here yet: all of it or nothing; `event` is the word for it in the history.

    The last parcel of a name is what the name means where it comes from. A name that is here means that
    afterwards too, unless what it means here was made later; so all who share a name come to mean the same.

    Raises BadBlob, BadName and ConceptError for a parcel that is not what it should be.
    """
    checked = [_check(parcel) for parcel in parcels]
    with atomic_files.turn(registry.home):
        here = {name: _versions(registry, name) for name in {parcel.name for parcel in parcels}}
        last = {parcel.name: number for number, parcel in enumerate(parcels)}
        news: dict[int, New] = {}
        known = {name: {entry.hash for entry in entries} for name, entries in here.items()}
        for number, (parcel, (digest, summary)) in enumerate(zip(parcels, checked, strict=True)):
            if digest in known[parcel.name]:
                continue
            known[parcel.name].add(digest)
            created = _utc(parcel.created)
            points = not here[parcel.name] or (
                number == last[parcel.name] and _later(created, digest, registry.get(parcel.name))
            )
            word = event if points else f"{event} aside"
            news[number] = New(parcel.name, parcel.data, summary, {}, created, word, points)
        added = dict(zip(news, registry.add_many(list(news.values()), new_version=True), strict=True))
        arrivals = []
        for number, (parcel, (digest, _)) in enumerate(zip(parcels, checked, strict=True)):
            entry = added.get(number) or _same(registry, parcel.name, digest)
            diverged = bool(here[parcel.name])
            points = number in news and news[number].points
            arrivals.append(ImportResult(entry, number in added, diverged and number in added, points))
        _label(registry, parcels, arrivals)
    return arrivals


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


def _later(created: str | None, digest: str, entry: Entry) -> bool:
    """Whether a version was made after `entry`; of one moment it is the larger hash, for all who look."""
    return created is None or (created, digest) > (entry.created, entry.hash)


def _versions(registry: Registry, name: str) -> list[Entry]:
    try:
        return registry.versions(name)
    except ConceptError:
        return []


def _same(registry: Registry, name: str, digest: str) -> Entry:
    for entry in registry.versions(name):
        if entry.hash == digest:
            return entry
    raise ConceptError(f"{name!r} was removed while it came in: try again.")


def label(registry: Registry, name: str, tags: Iterable[str], notes: Iterable[str]) -> None:
    """Add those tags and notes that a name does not have yet."""
    had_tags, had_notes = labels_of(registry, name)
    labels.tag(registry, name, sorted(set(tags) - set(had_tags)))
    for text in dict.fromkeys(notes):
        if text.strip() not in had_notes:
            labels.note(registry, name, text)


def _label(registry: Registry, parcels: Sequence[IncomingConcept], arrivals: Sequence[ImportResult]) -> None:
    """What a killed import left out is made good here by the next one, so this looks at old versions too."""
    for parcel, arrival in zip(parcels, arrivals, strict=True):
        if parcel.preview is not None and not arrival.entry.preview:
            registry.set_preview(arrival.entry.name, arrival.entry.version, parcel.preview)
        label(registry, parcel.name, parcel.tags, parcel.notes)
