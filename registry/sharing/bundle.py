"""A bundle: one file with concepts in it, that is either exactly what its first part announces or refused.

The container is a plain tar that any tar program unpacks: `manifest.json`, perhaps `signature.json`, then
`blobs/ab/cdef...` in the order of their hashes. Nothing in it is compressed or dated, so the same concepts
are the same bytes. It is not read as a tar: the manifest lists every blob with hash and size, from which each
header of 512 bytes follows, and a file that differs from it anywhere is refused. So links, paths, twins,
bombs and missing ends need no checks of their own: there is no way to write them down.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from conceptkit.registry import concept_validation
from conceptkit.registry.atomic_files import write_whole
from conceptkit.registry.errors import BadBlob, ConceptError
from conceptkit.registry.sources import CHUNK, Source, digest_of, is_digest

FORMAT = 1
BLOCK = 512
LONGEST_MANIFEST = 16 << 20
LONGEST_SIGNATURE = 4096
LARGEST = 8 << 30
"""Bytes of a whole bundle."""

MANIFEST, SIGNATURE = "manifest.json", "signature.json"
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Bundle:
    """What a bundle announces: JSON about its concepts, the size of every blob by hash, who signed it."""

    concepts: list[Any]
    sizes: Mapping[str, int]
    manifest: bytes
    signature: bytes | None
    start: int  # of its blobs in the file


def write(
    file: Path,
    concepts: list[Any],
    sizes: Mapping[str, int],
    read: Callable[[str], Source],
    sign: Callable[[bytes], bytes] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a bundle whole or not at all; its size. `read` gives the blob of a hash, one at a time.

    Raises ConceptError when the file cannot be written or the bundle would be too large.
    """
    manifest = dumps(
        {"blobs": sorted(sizes.items()), "concepts": concepts, "conceptkit": "bundle", "format": FORMAT}
    )
    parts = [(MANIFEST, manifest)] + ([(SIGNATURE, sign(manifest))] if sign else [])
    total = sum(BLOCK + _padded(len(data)) for _, data in parts) + _blobs_length(sizes)
    if len(manifest) > LONGEST_MANIFEST or total > LARGEST:
        raise ConceptError(f"A bundle of {total:,} bytes would be too large: export fewer concepts at once.")

    def fill(out: BinaryIO) -> None:
        for name, data in parts:
            _put(out, name, data)
        for number, digest in enumerate(sorted(sizes), 1):
            source = read(digest)
            if source.size != sizes[digest] or _put(out, _path(digest), source) != digest:
                raise BadBlob(
                    f"The stored bytes {digest} have changed: find out more with `conceptkit verify`."
                )
            if progress:
                progress(number, len(sizes))
        out.write(bytes(2 * BLOCK))

    write_whole(file, fill)
    return total


def is_bundle(file: BinaryIO) -> bool:
    """Whether a file begins like a bundle; a concept begins with the length of its header."""
    file.seek(0)
    return file.read(len(MANIFEST) + 1) == MANIFEST.encode() + b"\0"


def read(file: BinaryIO) -> Bundle:
    """What the bundle announces, its size and all its headers checked. Raises BadBlob.

    The blobs themselves are read piece by piece, by `check`.
    """
    there = file.seek(0, os.SEEK_END)
    file.seek(0)
    manifest = _take(file, MANIFEST, LONGEST_MANIFEST)
    try:
        value = concept_validation.strict_json(manifest.decode("utf-8"))
        signature = _take(file, SIGNATURE, LONGEST_SIGNATURE) if _next_is(file, SIGNATURE) else None
        if not isinstance(value, dict) or value.get("conceptkit") != "bundle":
            raise ValueError("its first part is not a manifest")
        if value.get("format") != FORMAT:
            raise BadBlob(
                f"This bundle has the format {value.get('format')!r:.40}: update conceptkit to read it."
            )
        sizes = _sizes(value["blobs"])
        concepts = value["concepts"]
        if set(value) != {"blobs", "concepts", "conceptkit", "format"} or not isinstance(concepts, list):
            raise ValueError("its manifest is odd")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadBlob(f"This is not a bundle ({_short(error)}): ask for the file again.") from error
    total = file.tell() + _blobs_length(sizes)
    if total > LARGEST:
        raise BadBlob(f"This bundle announces {total:,} bytes: ask for several of up to {LARGEST:,}.")
    if there != total:
        how = (
            f"only {there:,} of its {total:,} bytes are there"
            if there < total
            else "something follows its end"
        )
        raise BadBlob(f"This bundle was not copied whole ({how}): copy it again.")
    return Bundle(concepts, sizes, manifest, signature, file.tell())


def parts(file: BinaryIO, bundle: Bundle) -> dict[str, Source]:
    """Every blob by hash, to be read from the file that `read` has read; `check` looks at all of them."""
    found: dict[str, Source] = {}
    place = bundle.start
    for digest in sorted(bundle.sizes):
        size = bundle.sizes[digest]
        found[digest] = Source.part_of(file, place + BLOCK, size, digest)
        place += BLOCK + _padded(size)
    return found


def check(file: BinaryIO, bundle: Bundle, progress: Progress | None = None) -> None:
    """Read the bundle piece by piece to its end. Raises BadBlob when a blob is not its hash."""
    file.seek(bundle.start)
    for number, digest in enumerate(sorted(bundle.sizes), 1):
        size = bundle.sizes[digest]
        same = file.read(BLOCK) == _header(_path(digest), size)
        if not same or digest_of(_pieces(file, size)) != digest or any(file.read(_padded(size) - size)):
            raise BadBlob(f"This bundle is damaged near its part {digest[:16]}: copy it again.")
        if progress:
            progress(number, len(bundle.sizes))
    if any(file.read(2 * BLOCK)):
        raise BadBlob("This bundle is damaged at its end: copy it again.")


def dumps(value: Any) -> bytes:
    """JSON, the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _sizes(listed: Iterable[Any]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for digest, size in listed:
        if (
            not is_digest(digest)
            or type(size) is not int
            or not 0 <= size <= concept_validation.LARGEST
            or digest in sizes
        ):
            raise ValueError("its list of parts is odd")
        sizes[digest] = size
    return sizes


def _blobs_length(sizes: Mapping[str, int]) -> int:
    return sum(BLOCK + _padded(size) for size in sizes.values()) + 2 * BLOCK


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _path(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest[2:]}"


def _header(name: str, size: int) -> bytes:
    """The one header of a file of that name and size (POSIX ustar; mode 600, owner 0, date 0)."""
    fields = [
        name.encode("ascii").ljust(100, b"\0"),
        b"0000600\0" + b"0000000\0" * 2,
        b"%011o\0" % size + b"00000000000\0",
        b" " * 8,
        b"0".ljust(101, b"\0"),
        b"ustar\x0000".ljust(247, b"\0"),
    ]
    plain = b"".join(fields).ljust(BLOCK, b"\0")
    return plain[:148] + b"%06o\0 " % sum(plain) + plain[156:]


def _put(out: BinaryIO, name: str, data: bytes | Source) -> str:
    """Write one part; the sha256 of what was written."""
    source = Source.of(data)
    out.write(_header(name, source.size))
    state = hashlib.sha256()
    for piece in source.pieces():
        out.write(piece)
        state.update(piece)
    out.write(bytes(_padded(source.size) - source.size))
    return state.hexdigest()


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (piece := file.read(min(size, CHUNK))):
        yield piece
        size -= len(piece)


def _next_is(file: BinaryIO, name: str) -> bool:
    place = file.tell()
    start = file.read(len(name) + 1)
    file.seek(place)
    return start == name.encode() + b"\0"


def _take(file: BinaryIO, name: str, longest: int) -> bytes:
    """The part `name` of a bundle that is read from its start. Raises BadBlob."""
    header = file.read(BLOCK)
    text = header[124:135]
    size = int(text, 8) if text.isdigit() and not set(text) & set(b"89") else longest + 1
    if size > longest or header != _header(name, size):
        raise BadBlob("This is not a bundle, or its beginning is damaged: ask for the file again.")
    data = file.read(_padded(size))
    if len(data) != _padded(size) or any(data[size:]):
        raise BadBlob("This bundle was not copied whole (its first part is cut off): copy it again.")
    return data[:size]


def _short(error: Exception) -> str:
    return str(error)[:80] if type(error) is ValueError else f"{type(error).__name__} in its manifest"
