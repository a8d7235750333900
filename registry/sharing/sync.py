"""Push and pull: versions that one side lacks are sent to it, and none is ever lost or changed.

Blobs go first and their record last, so that whoever sees a record can have the version. What was sent or
received before a remote went away stays, whole, and the next run goes on from there.
"""

import hashlib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conceptkit.registry import (
    atomic_files,
    blobs,
    concept_validation,
    odd_files,
    paths,
    private_names,
    storage_errors,
)
from conceptkit.registry.catalogue import history
from conceptkit.registry.entries import Entry
from conceptkit.registry.errors import BadBlob, BadRemote, ConceptError, UnknownConcept
from conceptkit.registry.names import check_name
from conceptkit.registry.sharing import bundle, exchange, incoming, signing
from conceptkit.registry.sharing.incoming import ImportResult, IncomingConcept
from conceptkit.registry.sharing.remote import CHUNK, File, Remote
from conceptkit.registry.store import Registry

FORMAT = 1
SIGNED = 2
"""The format of a record with a signature."""
Progress = Callable[[int, int], object]


Bytes = bytes  # inside of a record, `bytes` is a size


@dataclass(frozen=True)
class Record:
    """A version of a name, as a remote tells of it; nothing of it is believed."""

    name: str
    hash: str
    bytes: int
    created: str
    preview: tuple[str, int] | None  # sha256 and size
    tags: tuple[str, ...]
    notes: tuple[str, ...]

    def to_bytes(self, sign: Callable[[Bytes], Bytes] | None = None) -> Bytes:
        """JSON, the same bytes for the same record and key."""
        if sign is None:
            return bundle.dumps({"format": FORMAT, **vars(self)})
        told = {"format": SIGNED, **vars(self)}
        return bundle.dumps(told | {"signature": sign(bundle.dumps(told)).decode("ascii")})


@dataclass(frozen=True)
class Sent:
    """One version that a push looked at: whether the remote lacked it."""

    entry: Entry
    new: bool

    def to_json(self) -> dict[str, Any]:
        return {**self.entry.to_json(), "new": self.new}


@dataclass(frozen=True)
class Pushed:
    """What was looked at, and a sentence for each version here that nobody could read.

    private: what versions that were sent tell of this machine, by ref.
    """

    sent: list[Sent]
    refused: list[str]
    private: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pulled:
    """What arrived, and a sentence for each name at the remote that was refused."""

    arrivals: list[ImportResult]
    refused: list[str]


def push(
    registry: Registry,
    remote: Remote,
    names: Sequence[str] = (),
    progress: Progress | None = None,
    *,
    key: str | None = None,
    into: Pushed | None = None,
) -> Pushed:
    """Send every version of `names`, or of all, that the remote lacks. Raises ConceptError.

    Of versions that are asked for by name the bytes are looked at too, and sent again where they are gone.
    key: the name of the key to sign with, "" for the only one; a remote that is bound to a key of one's own
    gets that one's signature by itself. into: what is told of everything sent, also when this breaks off.
    """
    sign = _signer(registry.home, remote, key)
    entries = exchange.chosen(registry, names or [head.name for head in registry.list()], every=True)
    remote.check()
    remote.sweep()
    if names:
        listed = [remote.records(name) for name in {entry.name for entry in entries}]
    else:
        listed = list(remote.all_records().values())
    there = {file for found in listed for file in found}
    pushed = into or Pushed([], [])
    for number, entry in enumerate(entries, 1):
        try:
            new, private = _push(registry, remote, entry, there, thorough=bool(names), sign=sign)
            pushed.sent.append(Sent(entry, new))
            pushed.private.update({entry.ref: private} if private else {})
        except BadBlob as error:
            pushed.refused.append(str(error))
        if progress:
            progress(number, len(entries))
    return pushed


def pull(
    registry: Registry,
    remote: Remote,
    names: Sequence[str] = (),
    progress: Progress | None = None,
    *,
    take: bool = False,
    require_signed: bool = False,
    into: Pulled | None = None,
) -> Pulled:
    """Fetch every version of `names`, or of all, that is not here. Raises ConceptError.

    A name with something wrong at the remote is refused as a whole, and the others arrive. A name of one's
    own goes on meaning what it means; with `take` it means what was made last of what is there.
    require_signed: refuse what no trusted key signed, as a remote that is bound to keys always does.
    into: what is told of everything that arrived, also when this breaks off.
    """
    signers = remote.place.keys or None
    if require_signed and signers is None:
        signers = frozenset(key.public for key in signing.keys(registry.home))
    remote.check()
    _sweep(registry.home)
    listed = {name: remote.records(check_name(name)) for name in names} if names else remote.all_records()
    for name, found in listed.items():
        if not found and names:
            raise UnknownConcept(f"The remote {remote.name!r} has no concept named {name[:80]!r}.")
    pulled = into or Pulled([], [])
    for number, (name, found) in enumerate(sorted(listed.items()), 1):
        try:
            records = list(_records(remote, name, found))
            if signers is not None:
                records = _of_signers(registry.home, remote, name, records, signers, pulled.refused)
            arrived = _fetch_name(registry, remote, name, [one for one, _ in records], take)
            pulled.arrivals.extend(arrived)
        except BadRemote:
            raise
        except ConceptError as error:
            pulled.refused.append(f"{name} was refused: {error}")
        if progress:
            progress(number, len(listed))
    return pulled


def _signer(home: Path, remote: Remote, key: str | None) -> Callable[[Bytes], Bytes] | None:
    """What signs the records of a push: the key that was named, or one's own that the remote asks for."""
    if key is None and remote.place.keys:
        own = (one.name for one in signing.keys(home) if one.own and one.public in remote.place.keys)
        key = next(own, None)
    return None if key is None else signing.signer(home, key, signing.RECORD)


def _of_signers(
    home: Path,
    remote: Remote,
    name: str,
    records: Sequence[tuple[Record, dict[str, Any]]],
    signers: Container[str],
    refused: list[str],
) -> list[tuple[Record, dict[str, Any]]]:
    """Those records that one of these keys has signed; a sentence in `refused` about the others."""
    kept = [(one, told) for one, told in records if _signed_by(home, told) in signers]
    hashes = {one.hash for one, _ in kept}
    if others := {one.hash for one, _ in records} - hashes:
        count = f"{len(others)} version{'s' if len(others) > 1 else ''}"
        refused.append(
            f"{name} was refused in {count}: no key that you trust for {remote.name!r} has signed it."
        )
    return kept


def _signed_by(home: Path, told: dict[str, Any]) -> str | None:
    """The public key whose right signature a record has, or None."""
    signature = told.get("signature")
    if not isinstance(signature, str):
        return None
    signed = {key: value for key, value in told.items() if key != "signature"}
    try:
        text = signature.encode("ascii")
        return signing.who(home, bundle.dumps(signed), text, signing.RECORD).public
    except (BadBlob, ValueError):
        return None


def _fetch_name(
    registry: Registry, remote: Remote, name: str, records: Sequence[Record], take: bool
) -> list[ImportResult]:
    origin, name = f"remote {remote.name}", registry.spelled(name)
    by_hash: dict[str, list[Record]] = {}
    for record in records:
        by_hash.setdefault(record.hash, []).append(record)
    tags = tuple(sorted({tag for records in by_hash.values() for record in records for tag in record.tags}))
    told = (note for records in by_hash.values() for record in records for note in record.notes)
    notes = tuple(dict.fromkeys(told))
    try:
        here = {entry.hash: entry for entry in registry.versions(name)}
    except UnknownConcept:
        here = {}
    coming = []
    for record in sorted(map(_oldest, by_hash.values()), key=_moment):
        preview = next((other.preview for other in by_hash[record.hash] if other.preview), None)
        known = here.get(record.hash)
        if known and (known.preview or not preview):
            continue
        data = registry.read(known) if known else fetch(registry.home, remote, record.hash, record.bytes)
        picture = fetch(registry.home, remote, *preview) if preview else None
        coming.append(IncomingConcept(name, data, record.created, picture, tags, notes))
    if not coming and here:
        incoming.label(registry, name, tags, notes, origin, take)
    arrivals = incoming.receive(registry, coming, "pull", origin=origin, take=take) if coming else []
    if take and by_hash and (arrivals or here):
        newest = max(map(_oldest, by_hash.values()), key=_moment)
        if (taken := history.take(registry, name, newest.hash, origin)) and newest.hash in here:
            here[newest.hash] = taken
    left_alone = set(by_hash) - {arrival.entry.hash for arrival in arrivals}
    return [ImportResult(here[digest], new=False) for digest in here if digest in left_alone] + arrivals


def fetch(home: Path, remote: Remote, digest: str, size: int) -> bytes:
    """The blob `digest` of a remote, verified. What is long goes on where an earlier try broke off."""
    path = f"blobs/{digest[:2]}/{digest[2:]}"
    there = remote.size(path)
    if there != size:
        how = "does not have" if there is None else "has not all of"
        raise ConceptError(
            f"the remote {remote.name!r} {how} what it announces; push it there again, by its name."
        )
    data = _resumed(home, remote, path, digest, size) if size > CHUNK else remote.read(path, size)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ConceptError(
            f"the remote {remote.name!r} sent other bytes than announced; try again, or delete its {path} "
            "and push the concept there again, by its name."
        )
    return data


def _resumed(home: Path, remote: Remote, path: str, digest: str, size: int) -> bytes:
    """A long blob, of which an earlier try may have left the beginning, as this one may for the next."""
    file = paths.make_private(home / "incoming") / f"{digest}.part"
    places = range(0, size, CHUNK)
    with storage_errors.told(home), atomic_files.claimed(file) as part:
        if part is None:
            return b"".join(remote.read(path, min(place + CHUNK, size), place) for place in places)
        if (start := part.seek(0, os.SEEK_END)) > size:
            start = part.truncate(0)
        for place in range(start, size, CHUNK):
            part.write(remote.read(path, min(place + CHUNK, size), place))
        part.seek(0)
        data = part.read(size)
        file.unlink(missing_ok=True)
    return data


def _sweep(home: Path) -> None:
    """Delete what pulls that nobody went on with have left."""
    for file in odd_files.unfinished_pulls(home):
        with suppress(OSError):
            file.unlink()


def _push(
    registry: Registry,
    remote: Remote,
    entry: Entry,
    there: Container[File],
    thorough: bool,
    sign: Callable[[Bytes], Bytes] | None,
) -> tuple[bool, list[str]]:
    """Send what of one version is not there, by its record or, `thorough`, by each file.

    Whether that was any, and what then left that tells of this machine.
    """
    record = _record(registry, entry).to_bytes(sign)
    file = File(f"concepts/{entry.name}/{hashlib.sha256(record).hexdigest()}.json", len(record))
    if file in there and not thorough:
        return False, []
    private = private_names.held(exchange.check_own(registry, entry))
    lacked = _send(remote, entry.hash, entry.bytes, lambda: registry.read(entry))
    if (picture := registry.preview(entry)) is not None:
        lacked |= _send(remote, entry.preview or "", len(picture), lambda: picture)
    if file not in there:
        remote.write(file.path, record)
    sent = lacked or file not in there
    return sent, private if sent else []


def _record(registry: Registry, entry: Entry) -> Record:
    tags, notes = incoming.labels_of(registry, entry.name)
    picture = None
    if entry.preview:
        picture = (entry.preview, blobs.size(registry.blobs, entry.preview) or 0)
    return Record(entry.name, entry.hash, entry.bytes, entry.created, picture, tags, tuple(sorted(notes)))


def _send(remote: Remote, digest: str, size: int, read: Callable[[], bytes]) -> bool:
    """Write a blob that is not there in its full size; whether that was so."""
    path = f"blobs/{digest[:2]}/{digest[2:]}"
    if remote.size(path) == size:
        return False
    remote.write(path, read())
    return True


def _records(remote: Remote, name: str, found: Sequence[File]) -> Iterator[tuple[Record, dict[str, Any]]]:
    for file, data in zip(found, remote.read_many(found), strict=True):
        if (
            hashlib.sha256(data).hexdigest() == file.path[-69:-5]
        ):  # one that was broken off is as good as none
            yield parse_record(data, name), concept_validation.strict_json(data.decode("ascii"))


def parse_record(data: bytes, name: str) -> Record:
    """The record in these bytes, if it is one of `name`. Raises ConceptError."""
    try:
        value = concept_validation.strict_json(data.decode("ascii"))
        form = value.pop("format")
        if type(form) is not int or form not in (FORMAT, SIGNED):
            raise ConceptError("a newer conceptkit wrote of it; update conceptkit.")
        if form == SIGNED:
            value.pop("signature")
        tags, notes = incoming.check_texts(value.pop("tags"), value.pop("notes"))
        preview = value.pop("preview")
        record = Record(**value, preview=None if preview is None else tuple(preview), tags=tags, notes=notes)
        sizes = [(record.hash, record.bytes, concept_validation.LARGEST)]
        if record.preview is not None:
            sizes.append((*record.preview, incoming.LARGEST_PREVIEW))
        for digest, size, most in sizes:
            if not bundle.is_digest(digest) or type(size) is not int or not 0 <= size <= most:
                raise ValueError
        if not isinstance(record.created, str) or record.name.lower() != name.lower():
            raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConceptError("its record at the remote is damaged; push it there again.") from error
    return record


def _moment(record: Record) -> tuple[str, str]:
    return record.created, record.hash


def _oldest(records: Iterable[Record]) -> Record:
    return min(records, key=_moment)
