"""Disks that are full, failing, read-only or without locks, an index that is too new: one sentence each."""

import errno
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conceptkit.errors import ConceptError
from conceptkit.registry import blobs, database, maintenance, paths
from conceptkit.registry.catalogue import labels, search
from conceptkit.registry.entries import New
from conceptkit.registry.store import Registry

ROOT = Path(__file__).parents[1]
DOG = {"kind": "subject", "noun": "dog", "base_name": "storybook", "method": "custom"}
WRITES = ("open", "write", "fsync", "replace", "mkdir")
MANY = [New(f"c{i}", b"data %d" % i, DOG) for i in range(12)]

ACTIONS: dict[str, Callable[[Registry], object]] = {
    "add": lambda registry: registry.add("new", b"new" * 100, DOG),
    "add_many": lambda registry: registry.add_many(MANY),
    "set_preview": lambda registry: registry.set_preview("my_dog", 1, b"png"),
    "put_asset": lambda registry: registry.put_asset("gram", b"gram"),
}


def state(registry: Registry) -> list[object]:
    rows = [
        registry.index.query(f"select * from {table}") for table in ("versions", "names", "assets", "history")
    ]
    return [rows, [registry.read(entry) for entry in registry.list()]]


def assert_sentence(error: BaseException, said: str) -> None:
    assert re.fullmatch(r"[^\n]+[.?]", str(error)) and said in str(error), str(error)


def failing(monkeypatch, name: str, number: int, error: int) -> list[int]:
    """The call number `number` of os.`name` (or of syncfs) fails; returns a list that counts the calls."""
    count: list[int] = []
    room, call = (paths, paths.syncfs) if name == "syncfs" else (os, getattr(os, name))

    def wrapped(*arguments, **options):
        count.append(1)
        if len(count) == number:
            raise OSError(error, os.strerror(error))
        return call(*arguments, **options)

    monkeypatch.setattr(room, name, wrapped)
    return count


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        registry.add("my_dog", b"dog", DOG)
        yield registry


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("error", "said"),
    [(errno.ENOSPC, "is full"), (errno.EIO, "cannot be used"), (errno.EROFS, "only be read")],
)
def test_a_disk_that_fails_at_any_step_loses_nothing(loose, registry, action, error, said, monkeypatch):
    before = state(registry)
    failed = 0
    for name in (*WRITES, "syncfs"):
        for number in range(1, 200):
            with monkeypatch.context() as patch:
                count = failing(patch, name, number, error)
                try:
                    ACTIONS[action](registry)
                except ConceptError as caught:
                    assert_sentence(caught, said)
                else:
                    assert len(count) < number, "a failure was swallowed"
            if len(count) < number:
                break
            failed += 1
            assert state(registry) == before
            assert not maintenance.verify(registry).problems
            assert maintenance.verify(registry).unfinished == 0, "nothing half-written stays"
        for entry in registry.list():
            if entry.name != "my_dog":
                registry.remove(entry.name)
        registry.index.conn.execute("update versions set preview = null")
        registry.index.conn.execute("delete from assets")
        registry.index.conn.execute("delete from history where name <> 'my_dog' or event = 'remove'")
        maintenance.gc(registry, delete=True)
        before = state(registry)
    assert failed > 4
    ACTIONS[action](registry)
    assert not maintenance.verify(registry).problems


def test_an_index_that_cannot_grow_is_one_sentence(registry):
    pages = registry.index.query("pragma page_count")[0][0]
    registry.index.query(f"pragma max_page_count = {pages}")
    before = state(registry)
    with pytest.raises(ConceptError) as caught:
        for i in range(1000):
            registry.add_many(
                [New(f"n{i}-{k}", b"x", DOG | {"captions": ["word " * 500]}) for k in range(20)]
            )
            before = state(registry)
    assert_sentence(caught.value, "is full")
    assert state(registry) == before
    registry.index.query("pragma max_page_count = 1000000")
    assert not maintenance.verify(registry).problems


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    (small_disk / "filler").write_bytes(bytes(600_000))
    with Registry(small_disk / "home") as registry:
        added = []
        with pytest.raises(ConceptError) as caught:
            for i in range(1000):
                added.append(registry.add(f"c{i}", os.urandom(20_000), DOG))
        assert_sentence(caught.value, "is full")
        assert len(added) > 5 and registry.list() == sorted(added, key=lambda entry: entry.name)
        assert [len(registry.read(entry)) for entry in added] == [20_000] * len(added)
        found = maintenance.verify(registry)
        assert not found.problems and not found.unfinished
    (small_disk / "filler").unlink()
    with Registry(small_disk / "home") as registry:
        assert len(registry.list()) == len(added)
        registry.remove("c0")
        registry.add("again", b"small", DOG)


READER = """
    import os, sys
    from conceptkit.errors import ConceptError
    from conceptkit.registry import maintenance
    from conceptkit.registry.catalogue import search, labels
    from conceptkit.registry.store import Registry
    home = sys.argv[1]
    if os.getuid() == 0:  # to whom no file is read-only
        os.setuid(65534)
    with Registry(home) as registry:
        assert registry.read("my_dog") == b"dog" and search.search(registry, "dog") and registry.list()
        assert not maintenance.verify(registry).problems
        for act in (lambda: registry.add("new", b"new", {}), lambda: labels.tag(registry, "my_dog", ["x"]),
                    lambda: registry.remove("my_dog"), lambda: maintenance.gc(registry, delete=True)):
            try:
                act()
            except ConceptError as error:
                print(error)
    try:
        Registry(home + "/deeper")
    except ConceptError as error:
        print(error)
"""


def test_a_read_only_home_can_be_read():
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        with Registry(folder) as registry:
            registry.add("my_dog", b"dog", DOG)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        command = [sys.executable, "-B", "-c", textwrap.dedent(READER), str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert len(lines) == 5
        assert all(re.fullmatch(r".*can only be read.*CONCEPTKIT_HOME.*\.", line) for line in lines), lines
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_a_file_system_without_locks_is_refused_at_once(home, monkeypatch):
    def lockless(path):
        return sqlite3.connect(
            f"{Path(path).as_uri()}?vfs=unix-none", uri=True, timeout=0, isolation_level=None
        )

    monkeypatch.setattr(database, "_connect", lockless)
    start = time.monotonic()
    with pytest.raises(ConceptError) as caught:
        Registry()
    assert_sentence(caught.value, "no locks")
    assert time.monotonic() - start < database.PATIENCE / 2


def test_an_index_of_a_newer_conceptkit_is_left_alone(home):
    with Registry() as registry:
        registry.add("my_dog", b"dog", DOG)
        registry.index.conn.execute(
            "insert into _sqlite_migrations (migration_set, name) values ('conceptkit', 'm999_future')"
        )
    before = (home / "index.db").read_bytes()
    with pytest.raises(ConceptError) as caught:
        Registry()
    assert_sentence(caught.value, "update conceptkit")
    assert (home / "index.db").read_bytes() == before


def test_a_writer_that_never_ends_is_one_sentence_and_readers_do_not_care(registry, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE", 0.2)
    with Registry() as other, registry.index.writing():
        assert other.read("my_dog") == b"dog" and search.page(other) and search.search(other, "dog")
        assert other.index.reader_waits == 0
        with pytest.raises(ConceptError) as caught:
            labels.tag(other, "my_dog", ["x"])
        assert other.index.writer_waits > 0
    assert_sentence(caught.value, "locked")


def test_a_file_from_the_future_is_left_alone(registry):
    incoming = paths.make_private(registry.blobs / "incoming")
    (incoming / "tomorrow").write_bytes(b"half")
    os.utime(incoming / "tomorrow", (time.time() + 9e5, time.time() + 9e5))
    registry.add("new", b"new", DOG)
    assert (incoming / "tomorrow").exists()


# the order in which things reach the disk, which killing a process cannot show


def recorded(monkeypatch, registry: Registry, act: Callable[[], object]) -> list[tuple[str, str]]:
    """(call, file or statement) of all that reaches the disk, in order."""
    told: list[tuple[str, str]] = []
    opened: dict[int, str] = {}
    calls = {name: getattr(os, name) for name in WRITES}

    def opens(path, *arguments, **options):
        handle = calls["open"](path, *arguments, **options)
        opened[handle] = str(path)
        return handle

    def on_handle(name):
        def wrapped(handle, *arguments):
            result = calls[name](handle, *arguments)
            told.append((name, opened[handle]))
            return result

        return wrapped

    def on_path(name):
        def wrapped(*arguments, **options):
            result = calls[name](*arguments, **options)
            told.append((name, str(arguments[-1] if name == "replace" else arguments[0])))
            return result

        return wrapped

    syncfs = paths.syncfs
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opens)
        for name in ("write", "fsync"):
            patch.setattr(os, name, on_handle(name))
        for name in ("replace", "mkdir"):
            patch.setattr(os, name, on_path(name))
        patch.setattr(paths, "syncfs", lambda handle: told.append(("syncfs", "")) or syncfs(handle))
        registry.index.conn.set_trace_callback(lambda sql: told.append(("sql", sql.split()[0].lower())))
        act()
        registry.index.conn.set_trace_callback(None)
    return [line for line in told if line[0] != "sql" or line[1] in ("begin", "insert", "commit")]


def test_one_file_is_durable_before_it_has_its_name_and_its_name_before_the_index(
    loose, registry, monkeypatch
):
    told = recorded(monkeypatch, registry, lambda: registry.add("new", b"new", DOG))
    target = blobs.place(registry.blobs, registry.get("new").hash)
    written = told[[name for name, _ in told].index("write")][1]
    order = [
        ("write", written),
        ("fsync", written),
        ("mkdir", str(target.parent)),
        ("fsync", str(registry.blobs)),
        ("replace", str(target)),
        ("fsync", str(target.parent)),
        ("sql", "begin"),
        ("sql", "insert"),
        ("sql", "commit"),
    ]
    places = [told.index(line) for line in order]
    assert places == sorted(places)
    assert told[-1] == ("sql", "commit") and registry.index.query("pragma synchronous") == [(2,)]


@pytest.mark.parametrize("together", [True, False])
def test_many_files_are_durable_before_any_has_its_name(loose, registry, monkeypatch, together):
    if not together:
        monkeypatch.setattr(paths, "_syncfs", lambda: None)
    elif paths._syncfs() is None:
        pytest.skip("no syncfs that reports errors here")
    told = recorded(monkeypatch, registry, lambda: registry.add_many(MANY))
    kinds = [name for name, _ in told]
    last_write, first_rename = len(kinds) - 1 - kinds[::-1].index("write"), kinds.index("replace")
    last_rename, begin = len(kinds) - 1 - kinds[::-1].index("replace"), told.index(("sql", "begin"))
    assert last_write < first_rename < last_rename < begin and kinds.count("replace") == len(MANY)
    if together:
        assert "syncfs" in kinds[last_write:first_rename] and "syncfs" in kinds[last_rename:begin]
        assert "fsync" not in kinds[last_rename:], "one wait for all of them"
    else:
        synced = {path for name, path in told[:first_rename] if name == "fsync"}
        assert {path for name, path in told if name == "write"} <= synced
        folders = {str(Path(path).parent) for name, path in told if name == "replace"}
        assert folders <= {path for name, path in told[last_rename:begin] if name == "fsync"}


def test_bytes_that_are_there_already_are_made_durable_too(loose, registry, monkeypatch):
    """Another process may have renamed them and not have come to the fsync."""
    told = recorded(monkeypatch, registry, lambda: registry.add("twin", b"dog", DOG))
    parent = str(blobs.place(registry.blobs, registry.get("twin").hash).parent)
    assert told.index(("fsync", parent)) < told.index(("sql", "begin"))
    assert "write" not in [name for name, _ in told]
