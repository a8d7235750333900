"""One program with threads, several registries or children on one home; and what a lost index leaves."""

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from conceptkit.errors import ConceptError
from conceptkit.registry import atomic_files, backup, blobs, index, maintenance
from conceptkit.registry.catalogue import labels
from conceptkit.registry.opening import opened
from conceptkit.registry.store import Registry
from tests.blobs import sentence

DOG = {"kind": "subject", "noun": "dog"}
TAG = """
import sys
from conceptkit.registry.catalogue import labels
from conceptkit.registry.store import Registry
with Registry(sys.argv[1]) as registry:
    labels.tag(registry, "my_dog", [sys.argv[2]])
"""
BEGIN = """
import sqlite3, sys
try:
    sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute("begin immediate")
except sqlite3.OperationalError as error:
    print(error)
"""
LOCKED = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)  # where SQLite's readers hold theirs
except OSError:
    print("locked")
"""


def run(code: str, *arguments: object) -> str:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_a_second_registry_leaves_the_locks_of_the_first(tmp_path):
    with Registry(tmp_path) as first:
        first.add("my_dog", b"dog", DOG)
        for _ in range(2):
            Registry(tmp_path).close()
            maintenance.verify(first)
            maintenance.stats(first)
            assert run(LOCKED, tmp_path / "index.db") == "locked"


def test_what_another_program_was_told_stays_beside_two_registries(tmp_path):
    with Registry(tmp_path) as first:
        first.add("my_dog", b"dog", DOG)
        Registry(tmp_path).close()
        for number in range(2):
            run(TAG, tmp_path, f"tag{number}")
            first.add(f"cat{number}", b"cat", DOG)
    with Registry(tmp_path) as after:
        assert [entry.name for entry in after.list()] == ["cat0", "cat1", "my_dog"]
        assert labels.tag(after, "my_dog") == ["tag0", "tag1"]
        assert not maintenance.verify(after).problems


def test_a_registry_works_from_any_thread(registry):
    def work(number: int) -> int:
        registry.add(f"dog{number}", f"{number % 5}".encode(), DOG)
        labels.tag(registry, f"dog{number}", ["mine"])
        registry.put_asset(f"key{number}", b"asset")
        assert registry.read(f"dog{number}") == f"{number % 5}".encode()
        return len(registry.list())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(work, range(40))) == 40
    assert registry.index.reader_waits == 0
    assert not maintenance.verify(registry).problems


def test_threads_that_ended_leave_no_connections(registry):
    for _ in range(30):
        thread = threading.Thread(target=registry.list)
        thread.start()
        thread.join()
    assert len(registry.index._connections._all) == 1


def test_a_forgotten_registry_lets_go_of_its_files(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(20):
        Registry(tmp_path).list()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_closing_waits_for_what_another_thread_writes(tmp_path):
    registry = Registry(tmp_path)
    begun, go_on = threading.Event(), threading.Event()
    seen = []

    def write() -> None:
        with registry.index.writing() as conn:
            begun.set()
            go_on.wait(10)
            conn.execute("insert into names (name, version, newest) values ('slow', 1, 1)")
            seen.append("written")

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait(10)
    closer = threading.Thread(target=lambda: (registry.close(), seen.append("closed")))
    closer.start()
    while not registry.index._connections._closed:
        time.sleep(0.001)
    go_on.set()
    writer.join()
    closer.join()
    assert seen == ["written", "closed"]
    registry.close()
    for use in (registry.list, lambda: registry.add("my_dog", b"dog", DOG)):
        with pytest.raises(ConceptError, match=r"was closed: open it again with `Registry\(\)`") as caught:
            use()
        sentence(caught.value)
    with Registry(tmp_path) as again:
        assert again.index.query("select name from names") == [("slow",)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_process_has_connections_of_its_own(tmp_path):
    with Registry(tmp_path) as registry:
        registry.add("my_dog", b"dog", DOG)
        code = f"""
import os, sys
from conceptkit.registry.catalogue import labels
from conceptkit.registry.store import Registry
registry = Registry({str(tmp_path)!r})
mine = registry.index.conn
pids = []
for number in range(3):
    if not (pid := os.fork()):
        labels.tag(registry, "my_dog", [f"child{{number}}"])
        assert registry.index.conn is not mine
        sys.exit(0)
    pids.append(pid)
labels.tag(registry, "my_dog", ["parent"])
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
labels.tag(registry, "my_dog", ["after"])
"""
        run(code)
        assert labels.tag(registry, "my_dog") == ["after", "child0", "child1", "child2", "parent"]
        assert not maintenance.verify(registry).problems


def test_an_open_registry_follows_an_index_made_anew(tmp_path):
    from tests.blobs import blob

    with Registry(tmp_path) as registry:
        registry.add("my_dog", blob("my_dog"), DOG)
        saved = backup.backup(registry)
        registry.add("my_cat", blob("my_cat"), DOG)
        registry.index.conn.execute("delete from _sqlite_migrations")  # others would be asked to close it
        backup.rebuild(tmp_path, saved)
        labels.tag(registry, "my_dog", ["kept"])
        with Registry(tmp_path) as other:
            assert labels.tag(other, "my_dog") == ["kept"]
        os.unlink(tmp_path / "index.db")
        with pytest.raises(ConceptError, match="is gone"):
            registry.list()
        assert not (tmp_path / "index.db").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_nobody_writes_to_an_index_that_is_being_made_anew(tmp_path):
    from tests.blobs import blob

    with Registry(tmp_path) as registry:
        registry.add("my_dog", blob("my_dog"), DOG)
        saved = backup.backup(registry)
    blobs.put(tmp_path / "blobs", blob("my_cat"))
    seen = []
    backup.rebuild(tmp_path, saved, lambda done, total: seen.append(run(BEGIN, tmp_path / "index.db")))
    assert seen == ["database is locked"]
    with Registry(tmp_path) as registry:
        assert [entry.name for entry in registry.list()] == ["my_cat", "my_dog"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_one_index_is_made_anew_at_a_time(tmp_path, monkeypatch):
    with Registry(tmp_path) as registry:
        registry.add("my_dog", b"dog", DOG)
        saved = backup.backup(registry)
    monkeypatch.setattr(atomic_files, "PATIENCE", 0.01)
    with atomic_files.turn(tmp_path, backup.LOCK):
        for begin in (backup.rebuild, backup.restore):
            with pytest.raises(ConceptError, match="keeps rebuild.lock") as caught:
                begin(tmp_path, saved)
            sentence(caught.value)
    assert backup.restore(tmp_path, saved).concepts == 1


@pytest.mark.parametrize("copy", ["index.db.bak", "index.db-old", "index.db.zip"])
def test_a_copy_beside_it_is_no_index(tmp_path, copy):
    with Registry(tmp_path) as registry:
        registry.add("my_dog", b"dog", DOG)
    shutil.move(tmp_path / "index.db", tmp_path / copy)
    with pytest.raises(ConceptError, match="is gone"):
        Registry(tmp_path)
    backup.rebuild(tmp_path)
    assert (tmp_path / copy).exists(), "what is not the index is nobody's to move"


def lost(tmp_path):
    """A home whose index is gone, with the log of a killed process; and a backup from before that log."""
    from tests.blobs import blob

    home = tmp_path / "home"
    with Registry(home) as registry:
        registry.add_many([index_new(f"dog{number}", blob(f"dog{number}")) for number in range(5)])
        saved = backup.backup(registry, tmp_path / "saved.db")
    with Registry(home) as registry:
        for number in range(5):
            labels.tag(registry, f"dog{number}", ["logged"])
        log = (home / "index.db-wal").read_bytes()
    assert log
    (home / "index.db").unlink()
    (home / "index.db-wal").write_bytes(log)
    return home, saved


def index_new(name, data):
    from conceptkit.registry import concept_validation
    from conceptkit.registry.entries import New

    return New(name, data, concept_validation.check(data).summary)


@pytest.mark.parametrize("how", ["rebuild", "restore", "both"])
def test_a_log_without_its_index_meets_no_other(tmp_path, how):
    home, saved = lost(tmp_path)
    log = (home / "index.db-wal").read_bytes()
    with pytest.raises(ConceptError, match="is gone"):
        Registry(home)
    if how == "restore":
        backup.restore(home, saved)
    else:
        backup.rebuild(home, saved if how == "both" else None)
    with Registry(home) as registry:
        assert len(registry.list()) == 5
        assert not maintenance.verify(registry).problems
    kept = [file.read_bytes() for file in (home / "backups").iterdir() if file.name.endswith("-wal")]
    assert kept == [log], "the log is kept aside"


def test_an_index_whose_log_is_lost_does_not_begin_anew(tmp_path):
    with Registry(tmp_path) as registry:
        registry.add("my_dog", b"dog", DOG)
        beginning = (tmp_path / "index.db").read_bytes()[:0]
    for start in (beginning, None):
        if start is None:  # what SQLite has written of an index before its first log is carried over
            import sqlite3

            (tmp_path / "index.db").unlink()
            conn = sqlite3.connect(tmp_path / "index.db")
            conn.execute("pragma journal_mode = wal")
            conn.close()
        else:
            (tmp_path / "index.db").write_bytes(start)
        with pytest.raises(ConceptError, match="is gone"):
            Registry(tmp_path)


def test_only_the_files_of_the_index_count(tmp_path):
    for name in ("index.db", "index.db-wal", "index.db.bak", "index.db-shm2"):
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in index.index_files(tmp_path)] == ["index.db", "index.db-wal"]


def test_every_reading_says_what_a_disk_says(loose, registry, monkeypatch):
    entry = registry.add("my_dog", b"dog", DOG, uses={"photo/1.png": b"photo"})
    registry.set_preview("my_dog", 1, b"picture")
    registry.put_asset("key", b"asset")

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.read_bytes", broken)
    for read in (
        lambda: registry.read("my_dog"),
        lambda: registry.preview("my_dog"),
        lambda: registry.get_asset("key"),
        lambda: registry.read_used(entry, "photo/1.png"),
    ):
        with pytest.raises(ConceptError, match="cannot be used .*Input/output error.* check that disk"):
            read()


def test_a_registry_that_was_opened_by_default_is_closed(registry):
    with opened() as own:
        own.list()
    with pytest.raises(ConceptError, match="was closed"):
        own.list()
    with opened(registry) as given:
        assert given is registry
    assert registry.list() == []
