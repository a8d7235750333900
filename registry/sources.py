"""Bytes that need not be in memory: at hand, in a file, or a part of an open one; read piece by piece."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from conceptkit.registry.errors import BadBlob

CHUNK = 1 << 20
"""Bytes read at once; a multiple of every number's width."""
IN_MEMORY = 32 << 20
"""Bytes of a spool that are kept in memory."""


class Source:
    """So many bytes, which are read when they are needed, and as often as they are needed."""

    __slots__ = ("_data", "_digest", "_handle", "_start", "path", "size")

    def __init__(
        self,
        size: int,
        *,
        data: bytes | None = None,
        path: Path | None = None,
        handle: IO[bytes] | None = None,
        start: int = 0,
        digest: str | None = None,
    ) -> None:
        self.size, self.path = size, path
        self._data, self._handle, self._start, self._digest = data, handle, start, digest

    @classmethod
    def of(cls, data: "bytes | Source") -> "Source":
        """Bytes that are at hand; a source stays as it is."""
        return data if isinstance(data, Source) else cls(len(data), data=data)

    @classmethod
    def in_file(cls, path: Path, digest: str | None = None) -> "Source":
        """The bytes of a file; digest: their sha256 where it is known. Raises OSError."""
        return cls(path.stat().st_size, path=path, digest=digest)

    @classmethod
    def part_of(cls, handle: IO[bytes], start: int, size: int, digest: str | None = None) -> "Source":
        """So many bytes of an open file, which must stay open."""
        return cls(size, handle=handle, start=start, digest=digest)

    @contextmanager
    def open(self) -> Iterator["Reader"]:
        """A reader at the first byte. Raises OSError."""
        if self.path is not None:
            with self.path.open("rb") as handle:
                yield Reader(handle, 0, self.size)
        else:
            yield Reader(self._data if self._handle is None else self._handle, self._start, self.size)

    def pieces(self) -> Iterator[bytes]:
        """All bytes, at most CHUNK at once. Raises BadBlob when there are fewer of them by now."""
        if self._data is not None:
            yield self._data
            return
        with self.open() as reader:
            while reader.left:
                yield reader.read(CHUNK)

    def read(self) -> bytes:
        """All bytes at once."""
        return self._data if self._data is not None else b"".join(self.pieces())

    def digest(self) -> str:
        """The sha256 of the bytes, in hex; found out once."""
        if self._digest is None:
            self._digest = digest_of(self.pieces())
        return self._digest

    def in_memory(self) -> bool:
        """Whether the bytes are at hand, and so cannot change."""
        return self._data is not None


class Reader:
    """The bytes of a source one after another; left: how many are still to come."""

    def __init__(self, inside: bytes | IO[bytes] | None, start: int, size: int) -> None:
        self._inside, self._place, self.left = inside, start, size

    def read(self, most: int) -> bytes:
        """The next bytes, at most so many. Raises BadBlob when they end before they should."""
        count = min(most, self.left)
        if isinstance(self._inside, bytes):
            data = self._inside[self._place : self._place + count]
        elif self._inside is None:
            data = b""
        else:
            self._inside.seek(self._place)  # another source may have been read from the same file meanwhile
            data = self._inside.read(count)
        if len(data) != count:
            raise BadBlob("These bytes end before they should: ask for them again.")
        self._place, self.left = self._place + count, self.left - count
        return data


class Spool:
    """Bytes on their way in: a little in memory, the rest in a file that is gone when it is closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=str(folder))  # noqa: SIM115
        self._end = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, pieces: Iterable[bytes]) -> Source:
        """Keep these bytes; their sha256 is found out on the way. Raises OSError."""
        start, state = self._end, hashlib.sha256()
        for piece in pieces:
            self._file.seek(self._end)
            self._file.write(piece)
            self._end += len(piece)
            state.update(piece)
        handle: IO[bytes] = self._file  # type: ignore[assignment]
        return Source.part_of(handle, start, self._end - start, state.hexdigest())


def digest_of(pieces: Iterable[bytes]) -> str:
    """The sha256 of these bytes, in hex."""
    state = hashlib.sha256()
    for piece in pieces:
        state.update(piece)
    return state.hexdigest()


def is_digest(text: object) -> bool:
    """Whether this is a sha256 in lower-case hex, and so can be part of a path and never a way out of it."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")
