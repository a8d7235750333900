"""Concepts to a file, and from files: bundles of several, and single ones as they are stored."""

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from conceptkit.registry import concept_validation, odd_files, private_names, storage_errors
from conceptkit.registry.catalogue import lineage
from conceptkit.registry.entries import Entry
from conceptkit.registry.errors import BadBlob, ConceptError
from conceptkit.registry.merge_recipe import AS_RECIPE
from conceptkit.registry.sharing import bundle, incoming, signing
from conceptkit.registry.sharing.incoming import ImportResult, IncomingConcept
from conceptkit.registry.sources import Source
from conceptkit.registry.store import Registry


@dataclass(frozen=True)
class Export:
    """What was written where."""

    file: Path
    entries: list[Entry]
    bytes: int
    signer: str | None
    previews: int = 0
    tags: int = 0
    notes: int = 0
    private: dict[str, list[str]] = field(default_factory=dict)  # ref -> what it tells of this machine

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        refs = [entry.ref for entry in self.entries]
        told = {"previews": self.previews, "tags_and_notes": self.tags + self.notes, "private": self.private}
        return {"file": str(self.file), "concepts": refs, "bytes": self.bytes, "signer": self.signer} | told


@dataclass(frozen=True)
class Import:
    """What came out of a file, and whose it is."""

    file: Path
    arrivals: list[ImportResult]
    signer: signing.Signer | None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        signer = self.signer.to_json() if self.signer else None
        return {
            "file": str(self.file),
            "arrivals": [one.to_json() for one in self.arrivals],
            "signer": signer,
        }


def chosen(
    registry: Registry, names: Iterable[str], *, every: bool = False, parents: bool = False
) -> list[Entry]:
    """The versions that `names` mean, each once; with `every`, all versions of a name written without one.

    parents: also what merges were made of, as far as it is here. Of each name, the version that it points at
    comes last. Raises UnknownConcept.
    """
    found: dict[tuple[str, int], Entry] = {}
    for name in names:
        entry = registry.get(name)
        others = [other for other in registry.versions(entry.name) if other != entry] if every else []
        wanted = [*(others if "@" not in name else []), entry]
        found |= {(one.name, one.version): one for one in wanted}
    if parents:
        for one in lineage.ancestors(registry, list(found.values())):
            found.setdefault((one.name, one.version), one)
    return sorted(found.values(), key=lambda one: one == registry.get(one.name))


def export(
    registry: Registry,
    entries: Sequence[Entry],
    file: Path,
    *,
    signer: str | None = None,
    progress: bundle.Progress | None = None,
) -> Export:
    """Write a bundle of these versions, with previews, tags and notes; photos stay at home.

    signer: the name of the key to sign with. Raises ConceptError; then no file is written.
    """
    odd_files.check_output(file, mine=_is_bundle(file))
    entries = _different(entries)
    sizes: dict[str, int] = {}
    concepts: dict[str, dict[str, Any]] = {}
    shown: dict[str, Entry] = {}
    private: dict[str, list[str]] = {}
    for entry in entries:
        source = check_own(registry, entry)
        if found := private_names.held(source):
            private[entry.ref] = found
        sizes[entry.hash] = source.size
        if entry.preview and (picture := registry.preview_source(entry)) is not None:
            shown[entry.preview] = entry
            sizes[entry.preview] = incoming.check_preview(picture).size
        if entry.name not in concepts:
            tags, notes = incoming.labels_of(registry, entry.name)
            concepts[entry.name] = {"name": entry.name, "tags": tags, "notes": notes, "versions": []}
        version = {"created": entry.created, "hash": entry.hash, "preview": entry.preview}
        concepts[entry.name]["versions"].append(version)
    by_hash = {entry.hash: entry for entry in entries}

    def read(digest: str) -> Source:
        picture = registry.preview_source(shown[digest]) if digest in shown else None
        return registry.source(by_hash[digest]) if picture is None else picture

    sign = signing.signer(registry.home, signer) if signer is not None else None
    written = bundle.write(file, list(concepts.values()), sizes, read, sign, progress)
    tag_count, note_count = (sum(len(one[what]) for one in concepts.values()) for what in ("tags", "notes"))
    return Export(file, entries, written, signer, len(shown), tag_count, note_count, private)


def _different(entries: Sequence[Entry]) -> list[Entry]:
    """Of versions of one name with equal bytes, which are one to whoever receives them, the last alone."""
    found: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        found.pop((entry.name, entry.hash), None)
        found[entry.name, entry.hash] = entry
    return list(found.values())


def check_own(registry: Registry, entry: Entry) -> Source:
    """The bytes stored here as `entry`. Raises ConceptError when others would refuse them."""
    if entry.summary.get(AS_RECIPE):
        raise BadBlob(
            f"{entry.ref} is stored as its recipe, which others cannot build: store it whole with "
            f"`conceptkit shrink {entry.ref} --size full`, and share that."
        )
    try:
        source = registry.source(entry)
        with storage_errors.told(registry.home):
            concept_validation.check(source)
        return source
    except BadBlob as error:
        raise BadBlob(f"{entry.ref} cannot be shared, because nobody could read it: {error}") from error


def import_file(
    registry: Registry,
    file: Path,
    *,
    require_signed: bool = False,
    take: bool = False,
    progress: bundle.Progress | None = None,
) -> Import:
    """Add what is in a bundle, or a single concept, to the registry: all of it or nothing.

    require_signed: refuse what is not signed by a key that is trusted here. take: let names of mine mean what
    is in it. Raises ConceptError.
    """
    try:
        with _regular(file) as handle:  # from which the parcels are read until they are stored
            found, signer = open_file(handle, registry.home, progress)
            if require_signed and not (signer and signer.trusted):
                raise ConceptError(signing.refusal(file, signer))
            origin = f"key {signer.public}" if signer and signer.trusted else None
            return Import(file, incoming.receive(registry, found, "import", origin=origin, take=take), signer)
    except BadBlob as error:
        raise BadBlob(f"{file} was not imported: {_inside(error)}.") from error
    except MemoryError as error:
        raise ConceptError(
            f"{file} is too large for the memory of this machine: import it elsewhere."
        ) from error
    except OSError as error:
        raise ConceptError(
            f"{file} cannot be read ({error.strerror}): name a bundle or a concept."
        ) from error


def open_file(
    handle: BinaryIO, home: Path, progress: bundle.Progress | None = None
) -> tuple[list[IncomingConcept], signing.Signer | None]:
    """What is in a bundle or a concept, and whose it is; the bytes are read from `handle`, which stays open.

    Raises BadBlob; a wrong signature is one too.
    """
    if not bundle.is_bundle(handle):
        source = Source.part_of(handle, 0, handle.seek(0, os.SEEK_END))
        return [IncomingConcept(concept_validation.check(source).name, source)], None
    announced = bundle.read(handle)
    signer = signing.who(home, announced.manifest, announced.signature) if announced.signature else None
    found = _unpacked(announced.concepts, bundle.parts(handle, announced))
    bundle.check(handle, announced, progress)
    return found, signer


def from_bytes(data: bytes, home: Path) -> list[IncomingConcept]:
    """`open_file` for bytes that are at hand."""
    found, _ = open_file(io.BytesIO(data), home)
    return [
        replace(one, data=Source.of(one.data).read(), preview=one.preview and Source.of(one.preview).read())
        for one in found
    ]


def _unpacked(concepts: list[Any], blobs: dict[str, Source]) -> list[IncomingConcept]:
    """The parcels of a manifest, which must use every blob of its bundle and name no concept twice."""
    try:
        found: list[IncomingConcept] = []
        used: set[str] = set()
        names: set[str] = set()
        for concept in concepts:
            if set(concept) != {"name", "tags", "notes", "versions"} or concept["name"] in names:
                raise ValueError
            names.add(concept["name"])
            tags, notes = incoming.check_texts(concept["tags"], concept["notes"])
            hashes = [version["hash"] for version in concept["versions"]]
            if not hashes or len(set(hashes)) != len(hashes):
                raise ValueError
            for version in concept["versions"]:
                if set(version) != {"created", "hash", "preview"}:
                    raise ValueError
                picture = version["preview"]
                used |= {version["hash"], picture} - {None}
                preview = None if picture is None else blobs[picture]
                data = blobs[version["hash"]]
                found.append(IncomingConcept(concept["name"], data, version["created"], preview, tags, notes))
        if not found or used != set(blobs):
            raise ValueError
    except (ValueError, LookupError, TypeError) as error:
        raise BadBlob(
            "This bundle's list of concepts does not fit what is in it: ask for it again."
        ) from error
    return found


def _regular(file: Path) -> BinaryIO:
    """Open a file, which must be one: reading a pipe or a device might never end."""
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "is not a file" if file.exists() else "does not exist"
        raise ConceptError(f"{file} {kind}: name a bundle or a concept.")
    return file.open("rb")


def _is_bundle(file: Path) -> bool:
    """Whether a file that is there is a bundle, which another one may replace."""
    if odd_files.kind(file) or not os.path.lexists(file):
        return False
    with file.open("rb") as handle:
        return bundle.is_bundle(handle)


def _inside(error: Exception) -> str:
    text = str(error).rstrip(".")
    return text[:1].lower() + text[1:]
