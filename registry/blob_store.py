"""All blobs of a registry by the SHA-256 of their bytes: the small ones packed, each other one a file.

A new blob of SMALL bytes or fewer goes into `packed.db`. One that an earlier conceptkit wrote as a file stays
one until `gc` packs it: it is durable in `packed.db` before its file goes. Whoever looks for a blob looks for
its file first, so that it is found at every moment of that.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from conceptkit.registry import blobs, concept_header, odd_files
from conceptkit.registry.errors import BadBlob, ConceptError
from conceptkit.registry.packed import FILE, SMALL, PackedBlobs, is_damage
from conceptkit.registry.sources import Source, digest_of


class BlobStore:
    """The blobs of the registry in `home`. Any number of threads may use one.

    Raises ConceptError where `packed.db` cannot be used, and OSError for files.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "blobs"
        self.packed_file = self.folder / FILE
        self._packed: PackedBlobs | None = None
        self._closed = False
        self._guard = threading.Lock()

    def close(self) -> None:
        """Let go of `packed.db`, in all threads; more than once does no harm."""
        self._closed = True
        if self._packed is not None:
            self._packed.close()

    def __enter__(self) -> "BlobStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, data: bytes | Source) -> str:
        """Store `data` durably and return its sha256 in hex; storing the same bytes again changes nothing."""
        return self.put_many([data])[0]

    def put_many(self, datas: Sequence[bytes | Source]) -> list[str]:
        """Store all of `datas` durably, sharing the waits for the disk; their sha256s in the same order.

        Raises BadBlob when a source has other bytes by now than those it was asked about before.
        """
        sources = list(map(Source.of, datas))
        digests = [source.digest() for source in sources]
        small: dict[str, Source] = {}
        large: list[Source] = []
        for digest, source in zip(digests, sources, strict=True):
            if source.size > SMALL or blobs.size(self.folder, digest) is not None:
                large.append(source)
            else:
                small[digest] = source
        self._pack(small)
        if large:
            blobs.put_many(self.folder, large)
        return digests

    def get(self, digest: str) -> bytes:
        """The bytes stored as `digest`; BadBlob when they are gone or are no longer those bytes."""
        wrong: BadBlob | None = None
        if blobs.size(self.folder, digest) is not None:
            try:
                return blobs.get(self.folder, digest)
            except BadBlob as error:
                wrong = error
        packed = self.packed
        data = packed.get(digest) if packed else None
        if data is not None:
            return data
        if wrong is not None:
            raise wrong
        return blobs.get(self.folder, digest)  # says what is wrong

    def source(self, digest: str) -> Source:
        """The bytes stored as `digest`, verified now and read piece by piece; raises what `get` raises."""
        size = blobs.size(self.folder, digest)
        if size is not None and size > SMALL:
            return blobs.source(self.folder, digest)
        data = self.get(digest)
        return Source(len(data), data=data, digest=digest)

    def header(self, digest: str) -> concept_header.Header:
        """What a stored concept says of itself. Raises BadBlob, also for what is no concept."""
        if blobs.size(self.folder, digest) is not None:
            try:
                return concept_header.read_file(blobs.place(self.folder, digest))
            except FileNotFoundError:  # it has just been packed
                pass
        return concept_header.read(self.get(digest))

    def size(self, digest: str) -> int | None:
        """Bytes stored as `digest`, or None when there are none."""
        size = blobs.size(self.folder, digest)
        if size is None and (packed := self.packed) is not None:
            return packed.sizes([digest]).get(digest)
        return size

    def lacking(self, sizes: Mapping[str, int]) -> set[str]:
        """Those of these (sha256 -> bytes) of which so many bytes are not stored."""
        unseen = [digest for digest, size in sizes.items() if blobs.size(self.folder, digest) != size]
        there = packed.sizes(unseen) if unseen and (packed := self.packed) else {}
        return {digest for digest in unseen if there.get(digest) != sizes[digest]}

    def added(self, digest: str) -> float:
        """When these bytes were stored, in seconds since 1970; 0 when they are not there."""
        try:
            return blobs.place(self.folder, digest).stat().st_mtime
        except FileNotFoundError:
            packed = self.packed
            return (packed.added(digest) if packed else None) or 0.0

    def whole(self, digest: str) -> bool:
        """Whether these bytes can be read and are what they were."""
        if blobs.intact(blobs.place(self.folder, digest), digest):
            return True
        try:
            return (packed := self.packed) is not None and packed.get(digest) is not None
        except BadBlob:
            return False

    def check_writable(self) -> None:
        """Raise ConceptError where packed bytes could not be deleted, before anything is changed; a
        `packed.db` that is damaged is no such case, see `drop`."""
        packed = self.packed
        try:
            if packed is not None:
                with packed.writing():
                    pass
        except ConceptError as error:
            if not is_damage(error):
                raise

    def drop(self, digests: Sequence[str]) -> int:
        """Delete these bytes and count them; what is no plain file is left alone.

        Nothing is deleted from a `packed.db` that is damaged: `gc` does it when that was made anew.
        """
        dropped = {digest for digest in digests if blobs.size(self.folder, digest) is not None}
        for digest in dropped:
            blobs.drop(self.folder, digest)
        packed = self.packed
        try:
            dropped.update(packed.drop(digests) if packed else ())
        except ConceptError as error:
            if not is_damage(error):
                raise
        return len(dropped)

    def sizes(self) -> dict[str, int]:
        """sha256 -> bytes of all blobs; what is no plain file of a blob's name is left out."""
        found = {digest: odd_files.plain_size(file) or 0 for digest, file in blobs.walk(self.folder)}
        if packed := self.packed:
            found.update(packed.listing())
        return found

    def checked(self) -> Iterator[tuple[str, int, bool]]:
        """(sha256, bytes, whether they are what they were) of every blob, each read once."""
        for digest, file in blobs.walk(self.folder):
            size = odd_files.plain_size(file)
            yield digest, size or 0, blobs.intact(file, digest) or (size is None and self.whole(digest))
        packed = self.packed
        if packed is None:
            return
        seen: set[str] = set()
        try:
            for digest, size, whole in packed.rows():
                seen.add(digest)
                yield digest, size, whole
        except ConceptError as error:
            if not is_damage(error):
                raise
            for digest, data, _ in packed.recover():
                if digest not in seen:
                    yield digest, len(data), True

    def count(self) -> int:
        """About how many blobs there are."""
        try:
            packed = self.packed.count() if self.packed else 0
        except ConceptError as error:
            if not is_damage(error):
                raise
            packed = 0
        return packed + sum(1 for _ in blobs.walk(self.folder))

    def place(self, digest: str) -> Path:
        """The file that holds these bytes, or should."""
        file = blobs.place(self.folder, digest)
        return file if odd_files.plain_size(file) is not None or self.packed is None else self.packed_file

    def absence(self, digest: str) -> str:
        """Where these bytes are not, as the end of a sentence."""
        packed = f", and {self.packed_file} does not hold it" if self.packed else ""
        return f"there is no {blobs.place(self.folder, digest)}{packed}"

    def loose(self) -> list[str]:
        """The sha256s of blobs that have a file of their own and are small enough to be packed."""
        sizes = ((digest, odd_files.plain_size(file)) for digest, file in blobs.walk(self.folder))
        return [digest for digest, size in sizes if size is not None and size <= SMALL]

    def pack(self, digests: Sequence[str]) -> int:
        """Move small blobs from files into `packed.db` and count them; those that are damaged stay files.

        To be called by one who holds the write lock of the index: files are deleted.
        """
        whole = {}
        for digest in digests:
            place = blobs.place(self.folder, digest)
            if blobs.intact(place, digest):
                whole[digest] = (place.read_bytes(), place.stat().st_mtime)
        if whole:
            packed = self._writable()
            damaged = [digest for digest in packed.sizes(list(whole)) if not packed.has(digest)]
            packed.put([(digest, data, when) for digest, (data, when) in whole.items()], damaged)
        for digest in whole:
            blobs.drop(self.folder, digest)
        return len(whole)

    def on_disk(self) -> int:
        """Bytes that all blobs take on the disk."""
        files = [file for _, file in blobs.walk(self.folder)]
        files += [self.folder / f"{FILE}{end}" for end in ("", "-wal")]
        states = [file.lstat() for file in files if odd_files.plain_size(file) is not None]
        return sum(getattr(state, "st_blocks", 0) * 512 or state.st_size for state in states)

    @property
    def packed(self) -> PackedBlobs | None:
        """`packed.db`, or None where nothing was packed yet."""
        if self._closed:
            raise ConceptError(f"The registry in {self.home} was closed: open it again with `Registry()`.")
        if self._packed is None or not odd_files.plain_size(self.packed_file):
            found = PackedBlobs(self.home)  # also goes on with what was killed, and hears of a lost log
            if not odd_files.plain_size(self.packed_file):
                return None
            with self._guard:
                self._packed = self._packed or found
        return self._packed

    def _writable(self) -> PackedBlobs:
        packed = self.packed
        if packed is None:
            packed = PackedBlobs(self.home)
            packed.create()
            with self._guard:
                self._packed = self._packed or packed
        return self._packed or packed

    def _pack(self, small: dict[str, Source]) -> None:
        """Those of them that are not packed and whole yet, in one transaction."""
        if not small:
            return
        packed = self._writable()
        there = packed.sizes(list(small))
        damaged = [digest for digest in there if not packed.has(digest)]
        fresh = []
        for digest, source in small.items():
            if digest not in there or digest in damaged:
                data = source.read()
                if not source.in_memory() and digest_of([data]) != digest:
                    raise BadBlob("These bytes have changed while they were read: ask for them again.")
                fresh.append((digest, data, time.time()))
        if fresh:
            packed.put(fresh, damaged)


def holds_any(home: Path) -> bool:
    """Whether there are blobs in this home; a damaged `packed.db` counts."""
    if any(True for _ in blobs.walk(home / "blobs")):
        return True
    with BlobStore(home) as store:
        packed = store.packed
        try:
            return packed is not None and packed.count() > 0
        except ConceptError as error:
            if not is_damage(error):
                raise
            return True
