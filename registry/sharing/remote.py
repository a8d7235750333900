"""A remote: reading and writing the files at a place through fsspec.

Everything there is named by the sha256 of its bytes, so nothing is ever changed, two who push at once cannot
lose each other's, and nothing has to be believed:

    conceptkit.json                       marks the place
    blobs/ab/cdef...                      concepts and previews
    concepts/my_dog/<sha256>.json         a record: this version of this name exists
    incoming/                             files that are not finished, where a file system can rename
"""

import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from conceptkit.registry.errors import BadRemote, ConceptError
from conceptkit.registry.names import check_name
from conceptkit.registry.sharing.locations import PATIENCE, Place
from conceptkit.registry.sources import Source, is_digest

MARKER = "conceptkit.json"
MARK = b'{"conceptkit":"remote","format":1}'
CHUNK = 8 << 20
"""Bytes asked for at once, and sent at once where a file is written piece by piece."""
LONGEST_RECORD = 1 << 20
MOST_RECORDS = 1_000_000
"""Of a whole remote that lists all its files at once."""
MOST_NAMES = 1_000_000
"""Of a whole remote whose folders are listed one by one."""
MOST_RECORDS_OF_A_NAME = 50_000
LONGEST_RECORDS = 256 << 20
"""Bytes of all records of a name."""
AT_ONCE = 8 << 20
"""Bytes of small files that are asked for together."""
MOST_AT_ONCE = 1_000
ABANDONED_AFTER = timedelta(days=1)


_UNFINISHED = re.compile(r"[0-9a-f]{24}")


def fold(name: str) -> tuple[str, str]:
    """A key that puts names which differ by case alone side by side."""
    return name.lower(), name


@dataclass(frozen=True)
class File:
    """A file at a remote, below its root."""

    path: str
    size: int


class Remote:
    """One remote, connected on first use. Every method raises BadRemote when it does not answer."""

    def __init__(self, name: str, place: Place) -> None:
        self.name, self.place = name, place
        self._made: set[str] = set()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        if client := getattr(self.__dict__.get("fs"), "client", None):
            client.close()

    def prepare(self) -> None:
        """Mark the place as a remote; a folder is made where its parent is."""
        if self.place.kind.protocol == "file" and not os.path.isdir(posixpath.dirname(self.place.root)):
            raise BadRemote(f"{self.place.url} cannot be made: there is no folder to make it in.")
        if self.size(MARKER) is None:
            self.write(MARKER, MARK)
        self.check()

    def check(self) -> None:
        """Raise BadRemote unless this place is marked, and in this format."""
        size = self.size(MARKER)
        if size is None:
            raise BadRemote(
                f"The remote {self.name!r} is not at {self.place.url}: connect what it is on, "
                "or prepare it with `conceptkit remote add`."
            )
        if size != len(MARK) or self.read(MARKER, size) != MARK:
            raise BadRemote(f"The remote {self.name!r} was made by a newer conceptkit: update conceptkit.")

    def records(self, name: str) -> list[File]:
        """The records of a name; none when it is not there. Raises ConceptError for too many of them."""
        return self.bounded(name, self._files(f"concepts/{check_name(name)}", flat=False))

    def has(self, name: str) -> bool:
        """Whether there is any record of a name."""
        return bool(self._files(f"concepts/{check_name(name)}", flat=False))

    def all_records(self) -> dict[str, list[File]]:
        """The records of every name, where a remote lists all files at once; what is none is passed over."""
        found: dict[str, list[File]] = {}
        for file in self._files("concepts", flat=True):
            found.setdefault(file.path.split("/")[1], []).append(file)
        return found

    def names(self) -> list[str]:
        """Every name that there may be records of, twins of case side by side. BadRemote for too many."""
        found: list[str] = []
        for entry in self._entries("concepts"):
            if entry.folder and _is_name(entry.name):
                found.append(entry.name)
            if len(found) > MOST_NAMES:
                raise BadRemote(
                    f"The remote {self.name!r} holds over {MOST_NAMES:,} names: pull names one by one."
                )
        return sorted(found, key=fold)

    def bounded(self, name: str, files: list[File]) -> list[File]:
        """The records of a name; ConceptError when they are more than one can bear."""
        size = sum(file.size for file in files)
        if len(files) > MOST_RECORDS_OF_A_NAME or size > LONGEST_RECORDS:
            raise ConceptError(
                f"the remote {self.name!r} holds {len(files):,} records of it with {size:,} bytes; "
                f"delete its concepts/{name} there, and push it again by its name."
            )
        return files

    def size(self, path: str) -> int | None:
        """Bytes of a file, or None when there is no plain file of that name."""
        with self._talking():
            try:
                info = self.fs.info(self._at(path))
            except FileNotFoundError:
                return None
        plain = info["type"] == "file" and not info.get("islink")
        return int(info["size"]) if plain else None

    def read(self, path: str, size: int, start: int = 0) -> bytes:
        """The bytes of a file from `start` to `size`. Fewer of them are an error, like silence."""
        with self._talking():
            data = bytes(self.fs.cat_file(self._at(path), start=start, end=size))
        if len(data) != size - start:
            raise BadRemote(f"The remote {self.name!r} stopped in the middle of a file: try again.")
        return data

    def read_many(self, files: Sequence[File]) -> Iterator[bytes]:
        """The bytes of small files, several together where the remote can do that, AT_ONCE at most."""
        some: list[File] = []
        size = 0
        for file in files:
            if some and (size + file.size > AT_ONCE or len(some) == MOST_AT_ONCE):
                yield from self._read_together(some)
                some, size = [], 0
            some.append(file)
            size += file.size
        if some:
            yield from self._read_together(some)

    def _read_together(self, files: Sequence[File]) -> list[bytes]:
        with self._talking():
            paths = [self._at(file.path) for file in files]
            sizes = [file.size for file in files]
            return list(map(bytes, self.fs.cat_ranges(paths, [0] * len(files), sizes, on_error="raise")))

    def write(self, path: str, data: bytes | Source) -> None:
        """Write a file whole or not at all, piece by piece when it is long."""
        source = Source.of(data)
        with self._talking():
            target = self._at(path)
            if not self.place.kind.renames:
                if source.path is not None and source.size > 8 * CHUNK:
                    self.fs.put_file(str(source.path), target)
                else:
                    self.fs.pipe_file(target, source.read())
                return
            unfinished = self._at(f"incoming/{os.urandom(12).hex()}")
            self._make(posixpath.dirname(unfinished))
            self._make(posixpath.dirname(target))
            try:
                with self.fs.open(unfinished, "wb") as out:
                    for piece in source.pieces():
                        for start in range(0, len(piece), CHUNK):
                            out.write(piece[start : start + CHUNK])
                    out.flush()
                    if self.place.kind.protocol == "file":
                        os.fsync(out.fileno())
                self.fs.mv(unfinished, target)
            except BaseException:
                with suppress(Exception):
                    self.fs.rm_file(unfinished)
                raise

    def sweep(self) -> None:
        """Delete what pushes that were killed over a day ago have left behind."""
        if not self.place.kind.renames or not self._own_folder("incoming"):
            return
        for entry in self._entries("incoming"):
            if not entry.plain or not _UNFINISHED.fullmatch(entry.name):
                continue
            with self._talking(), suppress(FileNotFoundError, PermissionError):
                path = self._at(f"incoming/{entry.name}")
                if self.fs.modified(path) < datetime.now(UTC) - ABANDONED_AFTER:
                    self.fs.rm_file(path)

    def _own_folder(self, folder: str) -> bool:
        """Whether a folder of the remote is one itself, not a link that leads to somebody's files."""
        return any(entry.name == folder and entry.folder for entry in self._entries(""))

    @cached_property
    def fs(self) -> Any:
        """The file system of fsspec, opened on first use."""
        import fsspec

        connect = dict(self.place.connect)
        if self.place.kind.protocol == "sftp":
            from conceptkit.registry.sharing.known_hosts import only_known_hosts

            connect["host_key_policy"] = only_known_hosts(connect.pop("known_hosts"))
        made = fsspec.filesystem(self.place.kind.protocol, skip_instance_cache=True, **connect)
        if self.place.kind.protocol == "sftp":
            made.ftp.get_channel().settimeout(PATIENCE)
        return made

    def _at(self, path: str) -> str:
        return f"{self.place.root}/{path}".rstrip("/")

    def _entries(self, path: str) -> Iterator["_Entry"]:
        """What lies in a folder, one after the other where its kind lists so; nothing where there is none."""
        with self._talking(), suppress(FileNotFoundError):
            if self.place.kind.protocol == "file":
                with os.scandir(self._at(path)) as found:
                    for one in found:
                        with suppress(FileNotFoundError):  # swept, or finished, meanwhile
                            yield _Entry.of(one.name, one.stat(follow_symlinks=False))
            elif self.place.kind.protocol == "sftp":
                for one in self.fs.ftp.listdir_iter(self._at(path)):
                    yield _Entry.of(one.filename, one)
            else:
                for told in self.fs.ls(self._at(path), detail=True):
                    name = str(told["name"]).rstrip("/").rpartition("/")[2]
                    size, plain = int(told["size"] or 0), told["type"] == "file" and not told.get("islink")
                    yield _Entry(name, size, told["type"] == "directory", plain)

    def _files(self, folder: str, *, flat: bool) -> list[File]:
        """The records in a folder, or in all folders below it (flat)."""
        found = []
        if flat:
            with self._talking():
                told = list(self.fs.find(self._at(folder), detail=True).values())
            if len(told) > MOST_RECORDS:
                raise BadRemote(
                    f"The remote {self.name!r} holds {len(told):,} records: pull names one by one."
                )
            for entry in told:
                *_, name, file = ("", *str(entry["name"]).split("/"))
                plain = entry["type"] == "file" and not entry.get("islink")
                found += _record_file(name, file, int(entry["size"] or 0)) if plain else []
        else:
            name = folder.rpartition("/")[2]
            for one in self._entries(folder):
                if one.plain:
                    found += _record_file(name, one.name, one.size)
                if len(found) > MOST_RECORDS_OF_A_NAME:
                    break  # enough to be refused
        return sorted(found, key=lambda file: file.path)

    def _make(self, folder: str) -> None:
        if folder in self._made:
            return
        try:
            self.fs.makedirs(folder, exist_ok=True)
        except OSError:  # another who pushes may have made it meanwhile
            if not self.fs.isdir(folder):
                raise
        if self.place.kind.protocol == "file":
            inside = os.path.realpath(self.place.root)
            if os.path.commonpath([inside, os.path.realpath(folder)]) != inside:
                raise BadRemote(f"{folder} leads out of the remote {self.name!r}: remove that link.")
        self._made.add(folder)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Whatever goes wrong inside leaves as BadRemote: each library has errors of its own."""
        try:
            yield
        except ConceptError:
            raise
        except ImportError as error:
            kind = self.place.kind
            raise BadRemote(f"{kind.title} needs a library that is missing: {kind.install}.") from error
        except Exception as error:
            text = re.sub(r"\W*\s+", " ", str(error)).strip()[:120]
            why = f"{type(error).__name__}: {text}" if text else type(error).__name__
            raise BadRemote(
                f"The remote {self.name!r} at {self.place.url} does not do what was asked ({why}): "
                "nothing half-written was kept, try again when it answers."
            ) from error


@dataclass(frozen=True)
class _Entry:
    """One thing in a folder of a remote. folder, plain: whether it is one itself, and no link to one."""

    name: str
    size: int
    folder: bool
    plain: bool

    @classmethod
    def of(cls, name: str, state: Any) -> "_Entry":
        """state: what lstat says of it."""
        return cls(name, state.st_size, stat.S_ISDIR(state.st_mode), stat.S_ISREG(state.st_mode))


def _record_file(name: str, file: str, size: int) -> list[File]:
    """The file as a record of a name, or nothing where it cannot be one."""
    stem, suffix = posixpath.splitext(file)
    right = _is_name(name) and is_digest(stem) and suffix == ".json" and size <= LONGEST_RECORD
    return [File(f"concepts/{name}/{file}", size)] if right else []


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except ConceptError:
        return False
    return True
