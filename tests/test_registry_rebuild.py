"""An index that is damaged, restored or made anew: what was acknowledged stays, whatever is killed when."""

import os
import signal
import sqlite3
import sys
import threading

import pytest

from conceptkit.errors import ConceptError
from conceptkit.registry import backup, blobs, concept_validation, maintenance
from conceptkit.registry.catalogue import labels, search
from conceptkit.registry.store import New, Registry
from tests.blobs import PNG, blob, sentence
from tests.commands import run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")


def put(registry: Registry, name: str, seed: int = 0) -> None:
    data = blob(name, seed)
    registry.add(name, data, concept_validation.check(data).summary, new_version=True)


@pytest.fixture
def stocked(registry):
    for name, seed in (("my_dog", 1), ("my_dog", 2), ("gate", 3)):
        put(registry, name, seed)
    registry.set_preview("my_dog", 2, PNG)
    labels.tag(registry, "my_dog", ["keep"])
    labels.note(registry, "my_dog", "the good one")
    labels.favourite(registry, "my_dog")
    return registry


def changed(registry: Registry, *statements: str) -> None:
    """The index of a registry that is closed, harmed."""
    registry.close()
    with sqlite3.connect(registry.home / "index.db", isolation_level=None) as conn:
        conn.execute("pragma writable_schema = on")
        for statement in statements:
            conn.execute(statement)
    conn.close()


def in_child(home, act) -> None:
    """Do something in a process that is killed right after it."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


HARMS = {
    "an index lacks rows": (
        "update sqlite_master set rootpage = (select rootpage from sqlite_master where name = 'uses_hash')"
        " where name = 'history_name'",
    ),
    "a summary is no JSON": ("update versions set summary = '{' where name = 'my_dog'",),
    "a step is not noted": ("delete from _sqlite_migrations where name = 'm002_catalogue'",),
    "the versions of a name are gone": ("delete from versions where name = 'my_dog'",),
    "a note of no name": ("insert into notes (name_id, text, created) values (77, 'x', 'x')",),
    "a head that is none": ("update names set version = 9",),
    "the schema is no SQL": ("update sqlite_master set sql = 'create tible' where name = 'names'",),
    "the schema is no text": (
        "update sqlite_master set sql = cast(x'435245415445205441424c45202276ff22' as text)"
        " where name = 'versions'",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_rebuild_mends_what_verify_sends_to_it_and_keeps_what_can_be_read(stocked, harm):
    heads = {entry.name: entry.hash for entry in stocked.list()}
    changed(stocked, *HARMS[harm])
    try:
        with Registry(stocked.home) as registry:
            assert any("conceptkit rebuild" in problem for problem in maintenance.verify(registry).problems)
    except ConceptError as error:
        assert "conceptkit rebuild" in str(error)
        sentence(error)
    assert "kept as" in run("rebuild")
    with Registry(stocked.home) as registry:
        assert not maintenance.verify(registry).problems
        assert {entry.name: entry.hash for entry in registry.list()} == heads
        assert labels.tag(registry, "my_dog") == ["keep"]
        assert [note.text for note in labels.notes(registry, "my_dog")] == ["the good one"]
        assert search.labels(registry, registry.list())["my_dog"]["favourite"]
        if "gone" not in harm:
            assert registry.preview("my_dog") == PNG
        assert [entry.name for entry in search.search(registry, "good one")] == ["my_dog"]


def damaged_page(registry: Registry, table: str) -> None:
    registry.close()
    with sqlite3.connect(registry.home / "index.db") as conn:
        conn.execute("pragma wal_checkpoint(truncate)")
        (root,) = conn.execute("select rootpage from sqlite_master where name = ?", [table]).fetchone()
        (size,) = conn.execute("pragma page_size").fetchone()
    conn.close()
    with (registry.home / "index.db").open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(bytes(100))


@pytest.mark.parametrize("table", ["history_name", "tags_tag", "history", "texts"])
def test_a_damaged_page_costs_what_was_on_it_alone(stocked, table):
    damaged_page(stocked, table)
    run("rebuild")
    with Registry(stocked.home) as registry:
        assert not maintenance.verify(registry).problems and labels.tag(registry, "my_dog") == ["keep"]
        assert registry.preview("my_dog") == PNG


@pytest.mark.parametrize("table", ["versions", "history_name"])
def test_gc_keeps_what_a_damaged_index_in_backups_names(stocked, table):
    damaged_page(stocked, table)
    run("rebuild")
    with Registry(stocked.home) as registry:
        preview = blobs.put(registry.blobs, PNG)
        lost = blobs.put(registry.blobs, b"nobody's")
        found = maintenance.gc(registry, delete=True)
        assert found.unreadable and registry.blob_store.size(preview) and registry.blob_store.size(lost)
        (damaged,) = (registry.home / "backups").iterdir()
        damaged.unlink()
        maintenance.gc(registry, delete=True)
        assert registry.blob_store.size(lost) is None


def test_rebuilding_upon_a_backup_loses_nothing_that_came_after_it(stocked, tmp_path):
    file = backup.backup(stocked, tmp_path / "b.db")
    labels.tag(stocked, "gate", ["later"])
    put(stocked, "cup")
    stocked.remove("my_dog@1")
    stocked.close()
    assert "Kept 3 versions" in run("rebuild", "--backup", file)
    with Registry(stocked.home) as registry:
        assert labels.tag(registry, "gate") == ["later"] and labels.tag(registry, "my_dog") == ["keep"]
        assert [entry.name for entry in registry.list()] == ["cup", "gate", "my_dog"]
        assert [entry.version for entry in registry.versions("my_dog")] == [2]


def test_a_backup_gives_back_what_a_damaged_index_has_lost(stocked, tmp_path):
    file = backup.backup(stocked, tmp_path / "b.db")
    put(stocked, "cup")
    damaged_page(stocked, "tags")
    run("rebuild", "--backup", file)
    with Registry(stocked.home) as registry:
        assert labels.tag(registry, "my_dog") == ["keep"] and registry.preview("my_dog") == PNG
        assert len(registry.list()) == 3 and len(registry.versions("my_dog")) == 2


def test_rebuild_does_not_replace_an_index_that_others_use(stocked, tmp_path):
    file = backup.backup(stocked, tmp_path / "b.db")
    with pytest.raises(ConceptError, match="Another program uses") as caught:
        backup.rebuild(stocked.home, file)
    sentence(caught.value)
    put(stocked, "cup")
    assert labels.tag(stocked, "my_dog") == ["keep"]


def test_what_was_acknowledged_by_a_killed_writer_stays(stocked, tmp_path):
    home = stocked.home
    file = backup.backup(stocked, tmp_path / "b.db")
    stocked.close()

    def write() -> None:
        registry = Registry(home)
        labels.tag(registry, "gate", ["acknowledged"])

    in_child(home, write)
    backup.rebuild(home, file)
    with Registry(home) as registry:
        assert labels.tag(registry, "gate") == ["acknowledged"]
        report = backup.restore(home, file)
        assert labels.tag(registry, "gate") == []
        backup.restore(home, tmp_path / str(report.before))
        assert labels.tag(registry, "gate") == ["acknowledged"]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_swap_that_was_killed_is_finished_by_whoever_comes_next(stocked, tmp_path, damaged):
    home, file = stocked.home, backup.backup(stocked, tmp_path / "b.db")
    if damaged:
        damaged_page(stocked, "history")
    stocked.close()
    for step in range(2):
        killing = iter(range(9))

        def replace(source, target, step=step, killing=killing, real=os.replace):
            if os.path.basename(target) in ("index.next.db", "index.db") and next(killing) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        def rebuild(replace=replace) -> None:
            os.replace = replace
            backup.rebuild(home, file)

        in_child(home, rebuild)
        assert (home / "index.next.db").exists() == (step == 1)
        if not damaged or step == 1:
            with Registry(home) as registry:
                assert (
                    labels.tag(registry, "my_dog") == ["keep"] and not maintenance.verify(registry).problems
                )
    assert not (home / "index.next.db").exists()


def test_a_restore_beside_writers_loses_none_of_their_words(stocked, tmp_path):
    file, home = backup.backup(stocked, tmp_path / "b.db"), stocked.home
    written: list[str] = []
    stop = threading.Event()

    def write() -> None:
        with Registry(home) as registry:
            while not stop.is_set():
                number = len(written)
                registry.add_many([New(f"c{number}", b"concept %d" % number, {})])
                written.append(f"c{number}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(written) < 5:
            pass
        kept = [backup.restore(home, file).before for _ in range(3)]
    finally:
        stop.set()
        writer.join()
    found = {row[0] for row in stocked.index.query("select name from names")}
    for index in kept:
        with sqlite3.connect(index) as conn:
            found |= {row[0] for row in conn.execute("select name from names")}
        conn.close()
    assert set(written) <= found and not maintenance.verify(stocked).problems


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_something_else_in_the_place_of_the_index_is_named(stocked, tmp_path, what):
    file = backup.backup(stocked, tmp_path / "b.db")
    stocked.close()
    for left in stocked.home.glob("index.db*"):
        left.unlink()
    index = stocked.home / "index.db"
    index.mkdir() if what == "folder" else os.mkfifo(index)
    for act in (lambda: backup.rebuild(stocked.home), lambda: backup.restore(stocked.home, file)):
        with pytest.raises(ConceptError, match=what) as caught:
            act()
        sentence(caught.value)


def test_a_backup_with_a_damaged_schema_is_one_plain_sentence(stocked, tmp_path):
    file = backup.backup(stocked, tmp_path / "b.db")
    data = file.read_bytes()
    for wrong in (b'"noun\x1b TEX', b'"no\xff\xfe" TEX'):
        file.write_bytes(data.replace(b'"noun" TEXT'[: len(wrong)], wrong))
        with pytest.raises(ConceptError, match="not a backup") as caught:
            backup.restore(stocked.home, file)
        sentence(caught.value)


def test_closing_writes_the_log_back_before_it_locks_anybody_out(stocked):
    labels.tag(stocked, "gate", ["acknowledged"])
    mine = stocked.index._connections.open(stocked.index._connect)
    real, seen = mine.conn, []

    class Closing:
        def __getattr__(self, name):
            return getattr(real, name)

        def close(self):
            (stocked.home / "alone.db").write_bytes((stocked.home / "index.db").read_bytes())
            with sqlite3.connect(stocked.home / "alone.db") as conn:
                seen.extend(tag for (tag,) in conn.execute("select tag from tags where tag = 'acknowledged'"))
            conn.close()
            real.close()

    mine.conn = Closing()
    stocked.close()
    assert seen == ["acknowledged"]


def test_rebuild_keeps_more_labels_than_a_name_may_have_today(stocked):
    with stocked.index.writing() as conn:
        for number in range(labels.MOST + 10):
            values = f"select id, 'note {number}', '2026' from names where name = 'gate'"
            conn.execute(f"insert into notes (name_id, text, created) {values}")
        conn.execute("delete from versions where name = 'gate'")  # its bytes say again what it was
    stocked.close()
    run("rebuild")
    with Registry(stocked.home) as registry:
        assert len(labels.notes(registry, "gate")) == labels.MOST + 10
