"""Small blobs in one file: stored, packed, damaged, made anew, and given back to the disk."""

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from conceptkit.cli.main import main
from conceptkit.errors import BadBlob, ConceptError, UnknownConcept
from conceptkit.registry import backup, blob_store, blobs, index, maintenance, migrations, packed
from conceptkit.registry.entries import New
from conceptkit.registry.sharing import exchange, trash
from conceptkit.registry.store import Registry
from tests.blobs import PNG, blob, sentence
from tests.commands import run

ROOT = Path(__file__).parents[1]
DOG = {"kind": "subject", "noun": "dog", "base_name": "storybook", "method": "custom"}
COUNT = 100


def stock(registry: Registry, count: int = COUNT) -> dict[str, bytes]:
    """So many different concepts, some of them larger than others; their bytes by name."""
    datas = {
        f"c{i}": blob(f"c{i}", i, recipe={"method": "custom", "notes": "x" * (i * 37 % 3000)})
        for i in range(count)
    }
    registry.add_many([New(name, data, DOG) for name, data in datas.items()])
    return datas


def files(registry: Registry) -> list[Path]:
    """The blobs that have a file of their own."""
    return [file for _, file in blobs.walk(registry.blobs)]


def readable(registry: Registry, datas: dict[str, bytes]) -> set[str]:
    """The names whose bytes can be read; whatever is read is what was stored."""
    found = set()
    for name, data in datas.items():
        try:
            assert registry.read(name) == data
            found.add(name)
        except BadBlob as error:
            sentence(error)
    return found


def change(file: Path, start: int, data: bytes) -> None:
    """Other bytes at a place of a file, in a file of its own: locks of an open one stay as they are."""
    whole = bytearray(file.read_bytes())
    whole[start : start + len(data)] = data
    other = file.with_name("other")
    other.write_bytes(whole)
    os.replace(other, file)


# stored


def test_small_blobs_share_a_file_and_large_ones_have_their_own(registry):
    datas = stock(registry)
    large = os.urandom(packed.SMALL + 1)
    registry.add("large", large, DOG, uses={"photo/1.png": b"photo"})
    registry.set_preview("c1", 1, PNG)
    assert files(registry) == [blobs.place(registry.blobs, registry.get("large").hash)]
    assert readable(registry, datas) == set(datas) and registry.read("large") == large
    assert (
        registry.preview("c1") == PNG and registry.read_used(registry.get("large"), "photo/1.png") == b"photo"
    )
    assert registry.source("c1").read() == datas["c1"] and registry.source("large").read() == large
    found = maintenance.verify(registry)
    assert not found.problems and found.blobs == COUNT + 3 and not found.strange and not found.orphans


def test_they_take_little_more_of_the_disk_than_their_bytes(home):
    rng = random.Random(0)
    datas = [rng.randbytes(rng.randrange(800, 5000)) for _ in range(2000)]
    with Registry() as registry:
        registry.add_many([New(f"c{i}", data, DOG) for i, data in enumerate(datas)])
    with Registry() as registry:
        taken = maintenance.stats(registry)["bytes"]["all files on the disk"]
    assert sum(map(len, datas)) < taken < 1.15 * sum(map(len, datas))


def test_equal_bytes_are_packed_once_and_damaged_ones_again(registry):
    registry.add("my_dog", b"dog", DOG)
    registry.add("twin", b"dog", DOG)
    store = registry.blob_store.packed
    assert store.count() == 1
    store.conn.execute("update blobs set data = x'00'")
    store.conn.execute("pragma wal_checkpoint(truncate)").fetchall()
    with pytest.raises(BadBlob, match=r"my_dog@1 cannot be read.*conceptkit rm my_dog@1"):
        registry.read("my_dog")
    registry.add("third", b"dog", DOG)
    assert registry.read("my_dog") == b"dog" and store.count() == 1


def test_packed_bytes_are_durable_before_the_index_names_them(registry):
    registry.add("my_dog", b"dog", DOG)
    said: list[str] = []
    for place, database in (("packed", registry.blob_store.packed), ("index", registry.index)):
        assert database.query("pragma synchronous") == [(2,)]
        database.conn.set_trace_callback(
            lambda sql, place=place: said.append(f"{place} {sql.split()[0].lower()}")
        )
    registry.add("gate", b"gate", DOG)
    writes = [line for line in said if line.split()[1] in ("begin", "insert", "commit")]
    assert writes[:4] == ["packed begin", "packed insert", "packed commit", "index begin"]
    assert writes[-1] == "index commit" and "packed begin" not in writes[1:]


def test_what_is_removed_leaves_no_bytes(registry):
    datas = stock(registry)
    entry = registry.get("c7")
    registry.remove("c7")
    with pytest.raises(UnknownConcept, match="just been removed"):
        registry.read(entry)
    registry.blob_store.packed.conn.execute("pragma wal_checkpoint(truncate)").fetchall()
    assert datas["c7"][-60:] not in (registry.blobs / "packed.db").read_bytes()


def test_a_registry_that_was_closed_says_so(home):
    with Registry() as registry:
        registry.add("my_dog", b"dog", DOG)
        entry = registry.get("my_dog")
    with pytest.raises(ConceptError, match="was closed"):
        registry.read(entry)


# files of an earlier conceptkit


@pytest.fixture
def early(home):
    """A home in which every blob has a file of its own, of long ago, and its index knows of nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blob_store, "SMALL", -1)
        with Registry() as registry:
            datas = stock(registry)
            for number, file in enumerate(sorted(files(registry))):
                os.utime(file, (1e9 + number, 1e9 + number))
            registry.index.conn.execute("delete from _sqlite_migrations where name = 'm004_packed_blobs'")
    return datas


def test_gc_packs_what_an_earlier_conceptkit_wrote(early):
    with Registry() as registry:
        assert readable(registry, early) == set(early) and len(files(registry)) == COUNT
        ages = {digest: registry.blob_store.added(digest) for digest, _ in blobs.walk(registry.blobs)}
        assert f"Would pack {COUNT} small files" in run("gc") and len(files(registry)) == COUNT
        assert f"Packed {COUNT} small files" in run("gc", "--yes") and not files(registry)
        assert readable(registry, early) == set(early)
        assert {digest: registry.blob_store.added(digest) for digest in ages} == pytest.approx(ages)
        assert not maintenance.verify(registry).problems and maintenance.gc(registry).packed == 0


def test_a_damaged_file_is_not_packed(early):
    with Registry() as registry:
        file = blobs.place(registry.blobs, registry.get("c3").hash)
        file.write_bytes(b"x")
        assert maintenance.gc(registry, delete=True).packed == COUNT
        assert files(registry) == [file]
        assert [p.partition(":")[0] for p in maintenance.verify(registry).problems] == ["c3@1 is damaged"]


def test_an_earlier_conceptkit_says_that_it_is_too_old(registry, monkeypatch):
    registry.add("my_dog", b"dog", DOG)
    monkeypatch.setattr(index, "STEPS", index.STEPS[:3])
    with pytest.raises(ConceptError, match="newer conceptkit") as caught:
        Registry()
    sentence(caught.value)
    assert {step.name for step in migrations.migrations.applied(_tables(registry))} == {
        *index.STEPS,
        "m004_packed_blobs",
    }


def _tables(registry: Registry):
    from sqlite_utils import Database

    return Database(registry.index.conn, execute_plugins=False)


def test_an_early_index_that_can_only_be_read_is_read(early, monkeypatch):
    monkeypatch.setattr(index.Index, "_open", lambda self: os.open("/nowhere", os.O_RDONLY))
    with Registry() as registry:
        assert registry.index.read_only and readable(registry, early) == set(early)


def test_an_early_index_is_not_taken_for_a_damaged_one(home, early):
    found = backup.rebuild(home)
    assert found.whole and found.before is None and found.names == COUNT


# damage


@pytest.mark.parametrize("where", ["data", "header", "table", "middle", "cut", "emptied"])
def test_damage_is_named_and_the_rest_stays_readable(home, where):
    with Registry() as registry:
        datas = stock(registry)
    file = home / "blobs" / "packed.db"
    whole = file.read_bytes()
    if where == "data":
        change(file, whole.index(datas["c5"]) + len(datas["c5"]) - 1, b"?")
    elif where == "header":
        change(file, 0, bytes(100))
    elif where == "table":  # the page that says where the others are
        change(file, 2 * packed.PAGE, bytes(12))
    elif where == "middle":
        change(file, len(whole) // 2, bytes(2000))
    else:
        change(file, 0, b"")
        os.truncate(file, len(whole) * 3 // 4 if where == "cut" else 0)
    with Registry() as registry:
        left = readable(registry, datas)
        expected = {"data": COUNT - 1, "header": COUNT, "table": COUNT, "emptied": 0}
        assert len(left) == expected.get(where, len(left)) and (len(left) >= COUNT // 4 or where == "emptied")
        problems = maintenance.verify(registry).problems
        for name in datas.keys() - left:
            (said,) = [problem for problem in problems if problem.startswith(f"{name}@1 is ")]
            assert f"conceptkit rm --now {name}@1" in said
        structural = [problem for problem in problems if "conceptkit rebuild" in problem]
        assert structural or where in ("data", "middle", "emptied")
        if where in ("header", "table", "cut"):
            with pytest.raises(ConceptError, match="conceptkit rebuild"):
                registry.add("new", b"new", DOG)
        assert CliRunner().invoke(main, ["verify"]).exit_code == 1


def test_a_flipped_bit_takes_one_concept_at_most_and_its_name_is_said(home):
    with Registry() as registry:
        datas = stock(registry, 30)
    file, rng = home / "blobs" / "packed.db", random.Random(0)
    whole = file.read_bytes()
    pages = range(0, len(whole), packed.PAGE)
    places = [20, 60, *(page + 3 for page in pages), *(rng.randrange(len(whole)) for _ in range(20))]
    for place in places:
        change(file, 0, whole)
        change(file, place, bytes([whole[place] ^ 1 << rng.randrange(8)]))
        with Registry() as registry:
            lost = datas.keys() - readable(registry, datas)
            problems = maintenance.verify(registry).problems
        assert len(lost) <= 1 and all(any(p.startswith(f"{name}@1 is ") for p in problems) for name in lost)


@pytest.mark.parametrize("where", ["header", "cut"])
def test_rebuild_makes_a_damaged_file_anew(home, where):
    with Registry() as registry:
        datas = stock(registry)
        ages = {entry.hash: registry.blob_store.added(entry.hash) for entry in registry.list()}
    file = home / "blobs" / "packed.db"
    whole = file.read_bytes()
    change(file, 0, bytes(100)) if where == "header" else os.truncate(file, len(whole) * 3 // 4)
    harmed = file.read_bytes()
    with Registry() as registry:
        left = readable(registry, datas)
    said = run("rebuild")
    assert f"anew with {len(left)} that are whole" in said and "its search was made anew" in said
    kept = home / "backups" / "packed-damaged-1"
    assert kept.read_bytes() == harmed
    with Registry() as registry:
        assert readable(registry, datas) == left
        problems = maintenance.verify(registry).problems
        assert {problem.split("@")[0] for problem in problems} == datas.keys() - left
        found = {digest: registry.blob_store.added(digest) for digest in registry.blob_store.sizes()}
        assert found == pytest.approx({digest: ages[digest] for digest in found})
        for name in datas.keys() - left:
            trash.discard(registry, name)
            registry.add(name, datas[name], DOG)
        assert readable(registry, datas) == set(datas) and not maintenance.verify(registry).problems
    assert backup.rebuild(home).packed is None


def test_rebuild_goes_on_where_it_was_killed(home, monkeypatch):
    with Registry() as registry:
        datas = stock(registry)
    file = home / "blobs" / "packed.db"
    change(file, 0, bytes(100))
    replace, done = os.replace, []

    def killed(source, target):
        if Path(target) == file:
            done.append(source)
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            backup.rebuild(home)
    assert done
    with Registry() as registry:
        assert readable(registry, datas) == set(datas) and not maintenance.verify(registry).problems


def test_another_program_that_writes_stops_a_rebuild(home):
    with Registry() as registry:
        stock(registry)
    change(home / "blobs" / "packed.db", 2 * packed.PAGE, bytes(12))
    with Registry() as registry, registry.blob_store.packed.writing():  # noqa: SIM117
        with pytest.raises(ConceptError, match="Another program") as caught:
            backup.rebuild(home)
    sentence(caught.value)


def test_a_lost_index_comes_back_from_packed_concepts(home):
    with Registry() as registry:
        datas = stock(registry)
        for i in range(3):
            registry.add("c1", blob("c1", 100 + i), DOG, new_version=True)
    for left in home.glob("index.db*"):
        left.unlink()
    with pytest.raises(ConceptError, match="conceptkit rebuild"):
        Registry()
    assert (backup.rebuild(home).names, len(datas)) == (COUNT, COUNT)
    with Registry() as registry:
        assert [registry.read(entry) for entry in registry.versions("c1")] == [
            datas["c1"],
            *(blob("c1", 100 + i) for i in range(3)),
        ]


def test_what_was_removed_does_not_come_back_from_a_damaged_file(home):
    with Registry() as registry:
        datas = stock(registry)
        for name in ("c3", "c7", "c8"):
            registry.remove(name)
            del datas[name]
    change(home / "blobs" / "packed.db", 0, bytes(100))
    for left in home.glob("index.db*"):
        left.unlink()
    found = backup.rebuild(home)
    assert found.packed and found.packed.blobs == found.names == len(datas)
    with Registry() as registry:
        assert {entry.name for entry in registry.list()} == readable(registry, datas) == set(datas)
        assert not maintenance.verify(registry).problems


def test_a_log_without_its_file_is_not_lost(home):
    with Registry() as registry:
        stock(registry)
        left = [registry.blobs / f"packed.db{end}" for end in ("", "-wal")]
        for file in left:
            shutil.copy(file, home / file.name)
    left[0].unlink()
    shutil.copy(home / "packed.db-wal", left[1])
    with Registry() as registry:
        for act in (lambda: registry.read("c1"), lambda: registry.add("new", b"new", DOG)):
            with pytest.raises(ConceptError, match="its log is still there") as caught:
                act()
            sentence(caught.value)
        shutil.copy(home / "packed.db", left[0])
        assert registry.read("c1")


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
@pytest.mark.parametrize(
    "make", [lambda p: p.mkdir(), lambda p: os.mkfifo(p), lambda p: p.symlink_to("/dev/null")]
)
def test_what_stands_in_its_place_is_named_and_left_alone(registry, make):
    make(registry.blobs / "packed.db")
    before = (registry.blobs / "packed.db").lstat()
    with pytest.raises(ConceptError, match="move it elsewhere") as caught:
        registry.add("my_dog", b"dog", DOG)
    sentence(caught.value)
    assert (registry.blobs / "packed.db").lstat() == before


# a disk that is full, and room that is given back


def test_a_full_disk_while_packing_loses_nothing(early):
    with Registry() as registry:
        registry.add("new", b"new", DOG)
        conn = registry.blob_store.packed.conn
        pages = conn.execute("pragma page_count").fetchone()[0]
        conn.execute(f"pragma max_page_count = {pages}")
        with pytest.raises(ConceptError, match="is full") as caught:
            maintenance.gc(registry, delete=True)
        sentence(caught.value)
        assert readable(registry, early) == set(early) and not maintenance.verify(registry).problems
        with pytest.raises(ConceptError, match="is full"):
            registry.add_many([New(f"n{i}", os.urandom(8000), DOG) for i in range(30)])
        assert len(registry.list()) == COUNT + 1
        conn.execute("pragma max_page_count = 1000000")
        maintenance.gc(registry, delete=True)
        assert not files(registry) and readable(registry, early) == set(early)


def test_gc_gives_back_what_removed_blobs_took(registry, monkeypatch):
    monkeypatch.setattr(packed, "SPARE", 1 << 16)
    monkeypatch.setattr(packed, "SLICE", 7)
    datas = stock(registry, 200)
    before = registry.blob_store.packed._pages() * packed.PAGE
    assert maintenance.gc(registry, delete=True).freed == 0
    for i in range(200):
        if i % 5:
            registry.remove(f"c{i}")
            del datas[f"c{i}"]
    assert maintenance.gc(registry, delete=True).freed > before // 3
    assert registry.blob_store.on_disk() < before // 2 and maintenance.gc(registry, delete=True).freed == 0
    assert readable(registry, datas) == set(datas) and not maintenance.verify(registry).problems


# several at once, and on the way elsewhere

PACKER = """
    import sys
    from conceptkit.registry import blob_store, blobs, maintenance
    from conceptkit.registry.store import Registry
    with Registry() as registry:
        for i in range(6):
            blobs.put_many(registry.blobs, [f"{sys.argv[1]} {i} {j}".encode() for j in range(20)])
            registry.add(f"{sys.argv[1]}{i}", f"{sys.argv[1]} {i} 0".encode(), {})
            registry.add("shared", f"{sys.argv[1]} {i} 1".encode(), {}, new_version=True)
            maintenance.gc(registry, delete=True)
"""


def test_processes_that_pack_at_once_lose_nothing(early):
    command = [sys.executable, "-c", textwrap.dedent(PACKER)]
    started = [
        subprocess.Popen([*command, name], cwd=ROOT, stderr=subprocess.PIPE, text=True) for name in "ab"
    ]
    for process in started:
        assert process.communicate(timeout=300)[1] == "" and process.returncode == 0
    with Registry() as registry:
        assert readable(registry, early) == set(early) and not files(registry)
        assert {registry.read(f"{name}{i}") for name in "ab" for i in range(6)} == {
            f"{name} {i} 0".encode() for name in "ab" for i in range(6)
        }
        assert len({registry.read(entry) for entry in registry.versions("shared")}) == 12
        found = maintenance.verify(registry)
        assert not found.problems and not found.orphans


def test_a_blob_is_found_at_every_moment_of_packing(early, monkeypatch):
    with Registry() as registry, Registry() as reader:
        drop = blobs.drop

        def watched(folder, digest):
            assert readable(reader, early) == set(early)
            drop(folder, digest)
            assert readable(reader, early) == set(early)

        monkeypatch.setattr(blobs, "drop", watched)
        assert registry.pack(*(registry.get(f"c{i}").hash for i in range(5))) == 5


def test_bundles_the_trash_and_copies_hold_packed_concepts(registry, yours, home, tmp_path):
    datas = stock(registry)
    registry.set_preview("c2", 1, PNG)
    exchange.export(registry, exchange.chosen(registry, list(datas)), tmp_path / "all.bundle")
    exchange.import_file(yours, tmp_path / "all.bundle")
    assert readable(yours, datas) == set(datas) and yours.preview("c2") == PNG
    trash.discard(registry, "c2")
    trash.take_back(registry, "c2")
    assert registry.read("c2") == datas["c2"] and registry.preview("c2") == PNG
    registry.close()
    shutil.copytree(home, tmp_path / "copy")
    with Registry(tmp_path / "copy") as copy:
        assert readable(copy, datas) == set(datas) and not maintenance.verify(copy).problems
    assert json.loads(run("stats", "--json"))["files"] == COUNT + 1


def test_what_cannot_be_opened_at_the_moment_stops_a_removal_before_it_begins(home):
    with Registry() as registry:
        registry.add("my_dog", blob("my_dog", 1), DOG)
        file = registry.blobs / "packed.db"
    aside = file.rename(file.with_name("aside"))
    file.mkdir()
    for command in (["rm", "my_dog"], ["rm", "--now", "my_dog"]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code and "move it elsewhere" in done.output
    file.rmdir()
    aside.rename(file)
    assert "All is whole" in run("verify") and "my_dog" in run("list")


def test_a_damaged_version_does_not_take_the_whole_ones_of_its_name_along(home):
    large = blob("my_dog", 1, recipe={"method": "custom", "notes": os.urandom(6000).hex()})
    with Registry() as registry:
        registry.add("my_dog", large, DOG)
        registry.add("my_dog", blob("my_dog", 2), DOG, new_version=True)
        file = registry.blobs / "packed.db"
    file.write_text("no database")
    done = CliRunner().invoke(main, ["rm", "my_dog"])
    assert done.exit_code == 0 and "my_dog@2 is not in the trash" in done.stderr
    run("rm", "--undo", "my_dog")
    with Registry() as registry:
        assert registry.read("my_dog@1") == large


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_what_is_no_database_takes_the_place_of_none(home, content):
    with Registry() as registry:
        registry.add("my_dog", blob("my_dog", 1), DOG)
        stray = registry.blobs / "packed.next.db"
    stray.write_bytes(content)
    done = CliRunner().invoke(main, ["verify"])
    assert done.exit_code and "packed.next.db is no database" in done.output
    stray.unlink()
    assert "All is whole" in run("verify")


def test_a_rebuild_says_that_packed_concepts_are_missing(home):
    with Registry() as registry:
        registry.add("my_dog", blob("my_dog", 1), DOG)
        file = registry.blobs / "packed.db"
    file.unlink()
    done = CliRunner().invoke(main, ["rebuild"])
    assert "1 files it names are not there: `conceptkit verify` says which" in done.stderr
