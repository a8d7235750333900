"""Files named by the sha256 of their bytes, written whole or not at all: `blobs/ab/cdef...`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from conceptkit.registry import atomic_files, odd_files, paths
from conceptkit.registry.errors import BadBlob, ConceptError
from conceptkit.registry.paths import make_private, sync
from conceptkit.registry.sources import CHUNK, Source, digest_of, is_digest

LARGE = 1 << 28
"""Bytes of a file that is looked through before it is taken into memory."""

FEW = 8
"""Up to so many new files are fsynced one by one; beyond, all of them at once."""


def place(folder: Path, digest: str) -> Path:
    """The file of `digest` under `folder`, whether it exists or not; BadBlob unless it is 64 hex digits."""
    if not is_digest(digest):
        raise BadBlob(f"{digest!r:.80} is not the name of a stored file: `conceptkit verify` looks for more.")
    return folder / digest[:2] / digest[2:]


def put(folder: Path, data: bytes | Source) -> str:
    """Store `data` durably and return its sha256 in hex; storing the same bytes again changes nothing."""
    return put_many(folder, [data])[0]


def put_many(folder: Path, datas: Sequence[bytes | Source]) -> list[str]:
    """Store all of `datas` durably, sharing the waits for the disk; their sha256s in the same order.

    Raises BadBlob when a source has other bytes by now than those it was asked about before.

    Files are written and fsynced, then renamed, then their folders fsynced, those that others renamed too.
    """
    sources = list(map(Source.of, datas))
    digests = [source.digest() for source in sources]
    contents = dict(zip(digests, sources, strict=True))
    fresh = [digest for digest in contents if not intact(place(folder, digest), digest)]
    for digest in fresh:
        for path in (place(folder, digest).parent, place(folder, digest)):
            if (what := odd_files.kind(path)) and (path.name != digest[:2] or what != "a folder"):
                raise ConceptError(f"{path} is {what}, which conceptkit did not make: move it elsewhere.")
    incoming = make_private(folder / "incoming")
    _sweep(incoming)
    written: dict[str, Path] = {}
    with paths.barrier(folder) as all_at_once:
        try:
            many = len(fresh) > FEW
            for digest in fresh:
                written[digest] = incoming / f"{os.getpid()}-{os.urandom(8).hex()}"
                _write(written[digest], contents[digest], digest, durable=not many)
            if many and not all_at_once():
                for file in written.values():
                    sync(file)
            for digest, file in written.items():
                os.replace(file, make_private(place(folder, digest).parent) / place(folder, digest).name)
        except BaseException:
            for file in written.values():
                file.unlink(missing_ok=True)
            raise
        touched = {place(folder, digest).parent for digest in contents}
        if len(touched) <= FEW or not all_at_once():
            for parent in sorted(touched):
                sync(parent)
            sync(folder)  # another process may have made `parent` and not have come to this yet
    return digests


def get(folder: Path, digest: str) -> bytes:
    """The bytes stored as `digest`; BadBlob when they are gone or are no longer those bytes."""
    target = place(folder, digest)
    if what := odd_files.kind(target):
        raise BadBlob(f"The stored file {target} is {what}, which conceptkit did not make.")
    if (size(folder, digest) or 0) > LARGE and not intact(target, digest):  # so that none of it is kept
        raise BadBlob(f"The stored file {target} is damaged: its bytes no longer match its name.")
    try:
        data = target.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BadBlob(f"The stored file {target} is missing.") from None
    if digest_of([data]) != digest:
        raise BadBlob(f"The stored file {target} is damaged: its bytes no longer match its name.")
    return data


def source(folder: Path, digest: str) -> Source:
    """The bytes stored as `digest`, verified now and read piece by piece; raises what `get` raises."""
    target = place(folder, digest)
    if what := odd_files.kind(target):
        raise BadBlob(f"The stored file {target} is {what}, which conceptkit did not make.")
    if size(folder, digest) is None:
        raise BadBlob(f"The stored file {target} is missing.")
    if not intact(target, digest):
        raise BadBlob(f"The stored file {target} is damaged: its bytes no longer match its name.")
    return Source.in_file(target, digest)


def drop(folder: Path, digest: str) -> None:
    """Delete the bytes of `digest`, if they are there; what is no plain file is left alone."""
    if size(folder, digest) is not None:
        place(folder, digest).unlink(missing_ok=True)


def size(folder: Path, digest: str) -> int | None:
    """Bytes of the file of `digest`, or None when there is none."""
    return odd_files.plain_size(place(folder, digest))


def intact(target: Path, digest: str) -> bool:
    """Whether `target` is there and its bytes hash to `digest`; read in pieces, whatever its size."""
    if odd_files.plain_size(target) is None:
        return False
    try:
        with target.open("rb", buffering=0) as file:
            return digest_of(iter(lambda: file.read(CHUNK), b"")) == digest
    except FileNotFoundError:
        return False


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(digest, file) of every blob, in no order; what is no plain file of a blob's name is left out."""
    for parent in folder.iterdir() if folder.is_dir() else ():
        if len(parent.name) == 2 and odd_files.own_folder(parent):
            with os.scandir(parent) as entries:
                for entry in entries:
                    digest = parent.name + entry.name
                    if is_digest(digest) and entry.is_file(follow_symlinks=False):
                        yield digest, parent / entry.name


def abandoned(incoming: Path) -> Iterator[Path]:
    """Unfinished files that nobody will finish, going by their age."""
    return odd_files.unfinished_blobs(incoming)


def _write(file: Path, source: Source, digest: str, *, durable: bool) -> None:
    handle = atomic_files.create(file)
    try:
        written = _written(handle, source)
        if not source.in_memory() and digest_of(written) != digest:
            raise BadBlob("These bytes have changed while they were read: ask for them again.")
        for _ in written:
            pass
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)


def _written(handle: int, source: Source) -> Iterator[bytes]:
    """The pieces of a source, each after it was written."""
    for piece in source.pieces():
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(handle, rest[:CHUNK]) :]
        yield piece


def _sweep(incoming: Path) -> None:
    for file in abandoned(incoming):
        file.unlink(missing_ok=True)
