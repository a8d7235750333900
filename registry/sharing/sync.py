"""Push and pull: versions that one side lacks are sent to it, and none is ever lost or changed.

Blobs go first and their record last, so that whoever sees a record can have the version. What was sent or
received before a remote went away stays, whole, and the next run goes on from there.
"""

import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conceptkit.registry import (
    atomic_files,
    concept_validation,
    odd_files,
    paths,
    private_names,
    storage_errors,
)
from conceptkit.registry.catalogue import history
from conceptkit.registry.entries import Entry
from conceptkit.registry.errors import BadBlob, BadRemote, ConceptError, UnknownConcept
from conceptkit.registry.sharing import bundle, exchange, incoming, signing
from conceptkit.registry.sharing.incoming import ImportResult, IncomingConcept
from conceptkit.registry.sharing.records import Bytes, Known, Labels, Record, moment, parse_record
from conceptkit.registry.sharing.remote import CHUNK, LONGEST_RECORD, File, Remote, fold
from conceptkit.registry.sources import Source, Spool, digest_of
from conceptkit.registry.store import Registry

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Sent:
    """One version that a push looked at: whether the remote lacked it."""

    entry: Entry
    new: bool

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
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
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name, []).append(entry)
    listed = remote.all_records() if remote.place.kind.flat and not names else None
    pushed = into or Pushed([], [])
    done = 0
    for name, versions in by_name.items():
        found = remote.records(name) if listed is None else remote.bounded(name, listed.get(name, []))
        there = _There(remote, frozenset(found), bool(names), sign, incoming.labels_of(registry, name))
        for entry in versions:
            try:
                new, private = _push(registry, there, entry)
                pushed.sent.append(Sent(entry, new))
                pushed.private.update({entry.ref: private} if private else {})
            except BadBlob as error:
                pushed.refused.append(str(error))
            done += 1
            if progress:
                progress(done, len(entries))
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
    for name in names:
        if not remote.has(name):
            raise UnknownConcept(f"The remote {remote.name!r} has no concept named {name[:80]!r}.")
    listed = remote.all_records() if remote.place.kind.flat and not names else None
    wanted = (
        sorted(set(names), key=fold)
        if names
        else remote.names()
        if listed is None
        else sorted(listed, key=fold)
    )
    pulled = into or Pulled([], [])
    for number, name in enumerate(wanted, 1):
        beside = {
            other for other in wanted[max(0, number - 2) : number + 1] if fold(other)[0] == fold(name)[0]
        }
        try:
            found = remote.records(name) if listed is None else remote.bounded(name, listed[name])
            records = _records(remote, name, found)
            if signers is not None:
                records = _of_signers(registry.home, remote, name, records, signers, pulled.refused)
            groups = Known.by_name(one for one, _ in records)
            for one, known in _asked_for(groups, name, bool(names)).items():
                twin = len(beside | set(groups)) > 1 or _has_twin(registry, remote, one)
                pulled.arrivals.extend(_fetch_name(registry, remote, one, known, take, twin))
        except BadRemote:
            raise
        except ConceptError as error:
            pulled.refused.append(f"{name} was refused: {error}")
        if progress:
            progress(number, len(wanted))
    return pulled


def _asked_for(groups: Mapping[str, Known], name: str, alone: bool) -> Mapping[str, Known]:
    """What to take of the names in one folder: all of them, or the one that was asked for, if it is there.

    A disk that folds case has twins such as rex and Rex in one folder.
    """
    return {name: groups[name]} if alone and name in groups else groups


def _has_twin(registry: Registry, remote: Remote, name: str) -> bool:
    """Whether a name that is not here has a twin in another case, both here and at the remote."""
    here = registry.spelled(name)
    if here == name:
        return False
    return any(one.name == here for one, _ in _records(remote, here, remote.records(here)))


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
    records: Iterable[tuple[Record, dict[str, Any]]],
    signers: Container[str],
    refused: list[str],
) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Those records that one of these keys has signed; at last a sentence in `refused` about the others."""
    kept, others = set(), set()
    for one, told in records:
        if _signed_by(home, told) in signers:
            kept.add(one.hash)
            yield one, told
        else:
            others.add(one.hash)
    if others := others - kept:
        count = f"{len(others)} version{'s' if len(others) > 1 else ''}"
        refused.append(
            f"{name} was refused in {count}: no key that you trust for {remote.name!r} has signed it."
        )


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
    registry: Registry, remote: Remote, name: str, known: Known, take: bool, twin: bool
) -> list[ImportResult]:
    """Fetch what is lacking of a name. twin: the remote has it in two cases, so each keeps its spelling."""
    origin, twins = f"remote {remote.name}", {name} if twin else set()
    name = name if twin else registry.spelled(name)
    tags, notes = tuple(sorted(known.tags)), tuple(known.notes)
    here = {entry.hash: entry for entry in registry.versions(name)} if registry.has(name) else {}
    with storage_errors.told(registry.home), Spool(paths.make_private(registry.home / "incoming")) as spool:
        coming = []
        for record, preview in _lacking(registry, known, here):
            if record.hash in here:
                data = registry.source(here[record.hash])
            else:
                data = fetch(spool, remote, record.hash, record.bytes)
            picture = fetch(spool, remote, *preview) if preview else None
            coming.append(IncomingConcept(name, data, record.created, picture, tags, notes))
        if not coming and here:
            incoming.label(registry, name, tags, notes, origin, take)
        arrivals = (
            incoming.receive(registry, coming, "pull", origin=origin, take=take, twins=twins)
            if coming
            else []
        )
    if take and known.oldest and (arrivals or here):
        newest = max(known.oldest.values(), key=moment)
        if (taken := history.take(registry, name, newest.hash, origin)) and newest.hash in here:
            here[newest.hash] = taken
    left_alone = set(known.oldest) - {arrival.entry.hash for arrival in arrivals}
    return [ImportResult(here[digest], new=False) for digest in here if digest in left_alone] + arrivals


def _lacking(
    registry: Registry, known: Known, here: Mapping[str, Entry]
) -> list[tuple[Record, tuple[str, int] | None]]:
    """The versions that are not here, or not with their preview, the oldest first.

    Raises ConceptError when the disk has no room for what they announce.
    """
    found = []
    for record in sorted(known.oldest.values(), key=moment):
        preview = known.previews.get(record.hash)
        if record.hash not in here or (preview and not here[record.hash].preview):
            found.append((record, preview))
    size = sum(one.bytes * (one.hash not in here) + (shown[1] if shown else 0) for one, shown in found)
    room = shutil.disk_usage(registry.home).free
    if 2 * size > room:  # once as it comes in, once as it is stored
        raise ConceptError(f"it takes {2 * size:,} bytes to fetch and the disk has {room:,}; free some room.")
    return found


def fetch(spool: Spool, remote: Remote, digest: str, size: int) -> Source:
    """The blob `digest` of a remote, verified. What is long goes on where an earlier try broke off."""
    path = f"blobs/{digest[:2]}/{digest[2:]}"
    there = remote.size(path)
    if there != size:
        how = "does not have" if there is None else "has not all of"
        raise ConceptError(
            f"the remote {remote.name!r} {how} what it announces; push it there again, by its name."
        )
    if size > CHUNK:
        source = _resumed(spool, remote, path, digest, size)
    else:
        source = spool.add([remote.read(path, size)])
    if source.digest() != digest:
        raise ConceptError(
            f"the remote {remote.name!r} sent other bytes than announced; try again, or delete its {path} "
            "and push the concept there again, by its name."
        )
    return source


def _resumed(spool: Spool, remote: Remote, path: str, digest: str, size: int) -> Source:
    """A long blob, of which an earlier try may have left the beginning, as this one may for the next."""
    file = spool.folder / f"{digest}.part"
    places = range(0, size, CHUNK)
    with atomic_files.claimed(file) as part:
        if part is None:
            return spool.add(remote.read(path, min(place + CHUNK, size), place) for place in places)
        if (start := part.seek(0, os.SEEK_END)) > size:
            start = part.truncate(0)
        for place in range(start, size, CHUNK):
            part.write(remote.read(path, min(place + CHUNK, size), place))
        source = spool.add(Source.part_of(part, 0, size).pieces())
        file.unlink(missing_ok=True)
    return source


def _sweep(home: Path) -> None:
    """Delete what pulls that nobody went on with have left."""
    for file in odd_files.unfinished_pulls(home):
        with suppress(OSError):
            file.unlink()


@dataclass(frozen=True)
class _There:
    """Where versions of one name are pushed to, what is there of it, and what goes with all of them.

    thorough: whether each file is looked for, or only the records. labels: tags and notes.
    """

    remote: Remote
    records: frozenset[File]
    thorough: bool
    sign: Callable[[Bytes], Bytes] | None
    labels: Labels


def _push(registry: Registry, there: _There, entry: Entry) -> tuple[bool, list[str]]:
    """Send what of one version is not there: was it any, and what then left that tells of this machine?

    Raises BadBlob for what nobody could read.
    """
    record = _record(registry, entry, there.labels).to_bytes(there.sign)
    if len(record) > LONGEST_RECORD:
        raise BadBlob(f"{entry.ref} cannot be pushed with notes of that length: take some of them off.")
    file = File(f"concepts/{entry.name}/{digest_of([record])}.json", len(record))
    if file in there.records and not there.thorough:
        return False, []
    source = exchange.check_own(registry, entry)
    lacked = _send(there.remote, source)
    if (picture := registry.preview_source(entry)) is not None:
        lacked |= _send(there.remote, picture)
    if file not in there.records:
        there.remote.write(file.path, record)
    sent = lacked or file not in there.records
    return sent, private_names.held(source) if sent else []


def _record(registry: Registry, entry: Entry, said: Labels | None = None) -> Record:
    """What to tell of a version; said: the tags and notes of its name, where they are at hand."""
    tags, notes = said or incoming.labels_of(registry, entry.name)
    picture = None
    if entry.preview:
        picture = (entry.preview, registry.blob_store.size(entry.preview) or 0)
    return Record(entry.name, entry.hash, entry.bytes, entry.created, picture, tags, tuple(sorted(notes)))


def _send(remote: Remote, source: Source) -> bool:
    """Write a blob that is not there in its full size; whether that was so."""
    path = f"blobs/{source.digest()[:2]}/{source.digest()[2:]}"
    if remote.size(path) == source.size:
        return False
    remote.write(path, source)
    return True


def _records(remote: Remote, name: str, found: Sequence[File]) -> Iterator[tuple[Record, dict[str, Any]]]:
    for file, data in zip(found, remote.read_many(found), strict=True):
        if digest_of([data]) == file.path[-69:-5]:  # one that was broken off is as good as none
            yield parse_record(data, name), concept_validation.strict_json(data.decode("ascii"))
