"""Looking after the registry: verify, gc, stats, backup, restore, rebuild, and many concepts at once."""

import hashlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from conceptkit.cli.main import main
from conceptkit.errors import BadBlob, ConceptError, NameTaken
from conceptkit.registry import backup, blobs, concept_header, maintenance
from conceptkit.registry.catalogue import history, labels, lineage, search
from conceptkit.registry.entries import New
from conceptkit.registry.store import Registry
from tests.blobs import PNG, blob
from tests.commands import run

DOG = {"kind": "subject", "noun": "dog", "base_name": "storybook", "method": "custom"}


def concept(name: str, *parents: tuple[str, bytes], fill: int = 0) -> bytes:
    """Bytes as `Concept.to_bytes` lays them out, without torch."""
    inner = {
        "format": 1,
        "name": name,
        "kind": "merge" if parents else "subject",
        "base_name": "storybook",
        "noun": None if parents else "dog",
        "base": {"architecture": "a" * 16, "exact": "b" * 16},
        "tokens": [f"<{name}>"],
        "words": {name: f"<{name}> dog"},
        "delta": {"k": 0},
        "recipe": {"method": "constrained" if parents else "custom"},
        "provenance": {
            "parents": [ref for ref, _ in parents],
            "parent_sha256": [hashlib.sha256(data).hexdigest() for _, data in parents],
        },
    }
    tensors = {
        "up.k": {"dtype": "F16", "shape": [4, 2], "data_offsets": [0, 16]},
        "down.0": {"dtype": "F16", "shape": [2, 3], "data_offsets": [16, 28]},
    }
    text = json.dumps({"__metadata__": {"conceptkit": json.dumps(inner)}} | tensors).encode()
    return len(text).to_bytes(8, "little") + text + bytes([fill]) * 28


@pytest.fixture
def stocked(registry):
    """A dog in two versions, a gate, their merge, a preview, an asset and a photo."""
    for name, fill in (("my_dog", 0), ("my_dog", 1), ("moongate", 2)):
        data = concept(name, fill=fill)
        registry.add(name, data, concept_header.read(data).summary, new_version=True)
    merged = concept("both", *((ref, registry.read(ref)) for ref in ("my_dog@2", "moongate@1")))
    registry.add("both", merged, concept_header.read(merged).summary, uses={"photo/1.jpg": b"photo"})
    registry.set_preview("both", 1, b"png")
    registry.put_asset("gram/1", b"gram")
    labels.tag(registry, "my_dog", ["pets"])
    return registry


def contents(registry: Registry) -> list[object]:
    """All that can be asked of a registry, as values."""
    entries = [entry for head in registry.list() for entry in registry.versions(head.name)]
    return [
        registry.list(),
        [(entry, registry.read(entry), registry.used(entry)) for entry in entries],
        search.labels(registry, entries),
        [history.history(registry, head.name) for head in registry.list()],
        [lineage.tree(registry, head.name) for head in registry.list()],
    ]


# many at once, and what belongs to a version


def test_many_are_added_as_one_by_one(tmp_path):
    news = [New(f"c{i}", concept(f"c{i}", fill=i % 3), DOG) for i in range(40)] + [
        New("twin", b"same", DOG)
    ] * 1
    with Registry(tmp_path / "many") as many, Registry(tmp_path / "single") as single:
        added = many.add_many(news)
        for new in news:
            single.add(new.name, new.data, new.summary)
        assert [entry.hash for entry in many.list()] == [entry.hash for entry in single.list()]
        assert [entry.ref for entry in added] == [f"{new.name}@1" for new in news]
        assert {new.name: many.read(new.name) for new in news} == {new.name: new.data for new in news}
        assert not maintenance.verify(many).problems


def test_many_are_added_all_or_not_at_all(registry):
    registry.add("taken", b"old", DOG)
    with pytest.raises(NameTaken):
        registry.add_many([New(f"c{i}", b"%d" % i, DOG) for i in range(20)] + [New("taken", b"new", DOG)])
    with pytest.raises(NameTaken):
        registry.add_many([New("new", b"1", DOG), New("new", b"2", DOG)])
    assert [entry.name for entry in registry.list()] == ["taken"]
    assert [
        e.version
        for e in registry.add_many([New("taken", b"%d" % i, DOG) for i in range(3)], new_version=True)
    ] == [
        2,
        3,
        4,
    ]


def test_photos_and_prior_sets_stay_as_long_as_a_version_needs_them(stocked):
    asset = stocked.put_asset("prior/dog", b"prior set")
    entry = stocked.get("my_dog")
    stocked.use(entry, {"prior": asset, "photo/1.jpg": b"photo"})
    stocked.put_asset("prior/dog", b"another prior set")
    assert stocked.read_used(entry, "prior") == b"prior set"
    assert stocked.used(entry).keys() == {"photo/1.jpg", "prior"}
    assert stocked.read_used(entry, "nothing") is None
    with pytest.raises(ConceptError, match="not stored"):
        stocked.use(entry, {"prior": "0" * 64})
    stocked.remove("my_dog")
    assert stocked.blob_store.size(asset) is None
    assert stocked.read_used(stocked.get("both"), "photo/1.jpg") == b"photo", "both still needs it"
    assert not maintenance.verify(stocked).problems


# verify, gc, stats


def test_verify_says_what_is_damaged_missing_or_nobodys(loose, stocked):
    assert maintenance.verify(stocked) == maintenance.Check(blobs=7, bytes=maintenance.verify(stocked).bytes)
    blobs.place(stocked.blobs, stocked.get("my_dog@1").hash).write_bytes(b"x")
    blobs.place(stocked.blobs, stocked.get("both").preview or "").unlink()
    blobs.put(stocked.blobs, b"nobody's")
    (stocked.blobs / "incoming" / "4242-0123456789abcdef").write_bytes(b"h")
    found = maintenance.verify(stocked)
    assert [problem.partition(":")[0] for problem in sorted(found.problems)] == [
        "my_dog@1 is damaged",
        "the preview of both@1 is missing",
    ]
    assert (found.orphans, found.unfinished) == (1, 1)
    result = CliRunner().invoke(main, ["verify"])
    assert (
        result.exit_code == 1
        and "2 problems" in result.stdout
        and "1 files belong to nothing" in result.stdout
    )


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("update names set version = 9 where name = 'my_dog'", "'my_dog' points at a missing version"),
        ("delete from names where name = 'both'", "'both@1' has no name"),
        ("update names set newest = 1", "'my_dog' counts wrongly"),
        ("delete from texts", "cannot be searched"),
        ("insert into tags values (99, 'lost')", "'lost' is a tag of no name"),
        ("delete from texts_fts_data where id > 10", "out of step"),
    ],
)
def test_verify_follows_every_reference_in_the_index(stocked, harm, said):
    stocked.index.conn.execute(harm)
    assert any(said in problem for problem in maintenance.verify(stocked).problems)


def test_gc_shows_first_and_deletes_only_what_nothing_names(stocked):
    before = contents(stocked)
    orphan = blobs.put(stocked.blobs, concept("lost"))
    blobs.put(stocked.blobs, b"picture")
    old = stocked.blobs / "incoming" / "4242-0123456789abcdef"
    old.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert maintenance.gc(stocked) == maintenance.Garbage(2, len(concept("lost")) + 7, 1, 1, False, 1, 4)
    assert stocked.blob_store.size(orphan) and old.exists()
    assert "1 of them are concepts" in run("gc") and "--yes" in run("gc")
    assert run("gc", "--yes").startswith("Deleted 2 files")
    assert not old.exists() and maintenance.gc(stocked).blobs == 0
    assert contents(stocked) == before and not maintenance.verify(stocked).problems


def test_gc_frees_what_removed_concepts_brought_into_merges(stocked):
    mine = stocked.put_asset(f"prepared/{stocked.get('my_dog').hash[:32]}/here", b"of a concept that is here")
    gone = stocked.put_asset(f"prepared/{'a' * 32}/here", b"of one that is not")
    shared = stocked.put_asset("prior/teapot", b"for whoever learns a teapot")
    assert maintenance.gc(stocked).blobs == 1 and stocked.get_asset(f"prepared/{'a' * 32}/here")
    assert maintenance.gc(stocked, delete=True).blobs == 1
    assert stocked.blob_store.size(gone) is None and stocked.get_asset(f"prepared/{'a' * 32}/here") is None
    assert stocked.blob_store.size(mine) and stocked.blob_store.size(shared)
    assert not maintenance.verify(stocked).problems


def test_gc_keeps_what_an_index_put_aside_names(stocked):
    backup.backup(stocked)
    digest = stocked.get("my_dog@1").hash
    stocked.index.conn.execute("delete from versions where hash = ?", [digest])
    assert maintenance.gc(stocked, delete=True).blobs == 0 and stocked.blob_store.size(digest)


def test_stats(stocked):
    found = json.loads(run("stats", "--json"))
    assert (found["concepts"], found["versions"], found["assets"], found["files"]) == (3, 4, 1, 7)
    assert found["noun"] == {"dog": 2, "-": 1}
    stocked.add("twin", stocked.read("both"), DOG)
    assert (
        maintenance.stats(stocked)["bytes"]["saved by storing equal ones once"] == stocked.get("both").bytes
    )
    assert "by class" in run("stats")


def test_stats_say_where_the_bytes_are(tmp_path):
    with Registry(tmp_path) as registry:
        entry = registry.add("my_dog", blob("my_dog"), {"rounded": True})
        registry.add("gate", blob("gate"), {})
        registry.set_preview("my_dog", 1, PNG)
        told = maintenance.stats(registry)["bytes"]
    assert told["concepts made smaller"] == entry.bytes and told["previews"] == len(PNG)
    assert told["all files"] == told["concepts"] + len(PNG) and told["concepts"] > entry.bytes
    assert told["all files on the disk"] > 0


# backup, restore, rebuild


def test_a_backup_brings_back_what_it_saw_and_loses_nothing(stocked, tmp_path):
    before = contents(stocked)
    file = tmp_path / "copies" / "index.db"
    assert backup.backup(stocked, file) == file
    assert sorted(path.name for path in file.parent.iterdir()) == ["index.db"], "one file"
    with pytest.raises(ConceptError, match="not overwritten"):
        backup.backup(stocked, file)
    stocked.remove("my_dog@1")
    stocked.add("later", concept("later"), DOG)
    later = contents(stocked)
    report = backup.restore(stocked.home, file)
    assert (report.concepts, report.missing) == (3, 1)
    assert stocked.list() == before[0], "a registry that is open sees it too"
    assert any("is missing" in problem for problem in maintenance.verify(stocked).problems)
    assert maintenance.gc(stocked, delete=True).blobs == 0
    assert report.before
    backup.restore(stocked.home, Path(report.before))
    assert contents(stocked) == later


def test_only_whole_backups_are_restored(stocked, tmp_path):
    before = contents(stocked)
    good = backup.backup(stocked, tmp_path / "good.db")
    cut = tmp_path / "cut.db"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    text = tmp_path / "text.db"
    text.write_text("no database" * 1000)
    newer = tmp_path / "newer.db"
    shutil.copy(good, newer)
    conn = sqlite3.connect(newer)
    conn.execute("insert into _sqlite_migrations (migration_set, name) values ('conceptkit', 'm999_future')")
    conn.commit()
    conn.close()
    for file, said in (
        (cut, "backup"),
        (text, "backup"),
        (newer, "newer"),
        (tmp_path / "no.db", "no backup"),
    ):
        for action in (backup.restore, backup.rebuild):
            with pytest.raises(ConceptError, match=said):
                action(stocked.home, file)
    assert contents(stocked) == before and not (stocked.home / "backups").exists()


def test_a_backup_takes_the_place_of_a_damaged_index(home, stocked, tmp_path):
    before = contents(stocked)
    file = backup.backup(stocked, tmp_path / "index.db")
    stocked.close()
    for left in home.glob("index.db*"):
        left.unlink()
    (home / "index.db").write_bytes(b"garbage" * 9999)
    assert "kept as" in run("restore", file)
    assert (home / "backups" / "before-restore.db").read_bytes() == b"garbage" * 9999
    with Registry(home) as registry:
        assert contents(registry) == before and not maintenance.verify(registry).problems


@pytest.mark.parametrize("loss", ["gone", "garbage", "empty"])
def test_a_lost_index_is_rebuilt_from_the_headers(loose, home, stocked, loss):
    heads = {entry.name: entry.hash for entry in stocked.list()}
    os.utime(blobs.place(stocked.blobs, stocked.get("my_dog@1").hash), (1e9, 1e9))
    tree = lineage.tree(stocked, "both")
    stocked.close()
    for file in home.glob("index.db*"):
        file.unlink()
    if loss != "gone":
        (home / "index.db").write_bytes(b"garbage" * 9999 if loss == "garbage" else b"")
    with pytest.raises(ConceptError, match="conceptkit rebuild"):
        Registry(home)
    text = run("rebuild")
    assert text.startswith("Brought back 4 versions of 3 concepts") and "tags, notes" in text
    assert "3 files are no concepts" in text
    with Registry(home) as registry:
        assert {entry.name: entry.hash for entry in registry.list()} == heads
        assert [entry.version for entry in registry.versions("my_dog")] == [1, 2]
        assert registry.get("my_dog@1").created.startswith("2001-09-09")
        assert lineage.tree(registry, "both") == tree
        assert registry.get("my_dog").summary["noun"] == "dog"
        assert not maintenance.verify(registry).problems
    if loss == "garbage":
        (kept,) = (home / "backups").iterdir()
        assert kept.read_bytes() == b"garbage" * 9999


def test_rebuilding_upon_a_backup_keeps_its_names_and_tags(home, stocked, tmp_path):
    file = backup.backup(stocked, tmp_path / "index.db")
    data = concept("later")
    stocked.add("later", data, DOG)
    stocked.close()
    for left in home.glob("index.db*"):
        left.unlink()
    assert "Brought back 1 versions of 1 concepts" in run("rebuild", "--backup", file)
    with Registry(home) as registry:
        assert labels.tag(registry, "my_dog") == ["pets"] and registry.preview("both") == b"png"
        assert registry.read("later") == data and registry.get_asset("gram/1") == b"gram"


def test_a_readable_index_keeps_its_rows_and_gets_its_search_back(stocked):
    before = contents(stocked)
    stocked.index.conn.execute("delete from texts")
    stocked.index.conn.execute("delete from names_fts_data where id > 10")
    assert run("rebuild").startswith("The index is readable")
    assert contents(stocked) == before and not maintenance.verify(stocked).problems
    assert [entry.name for entry in search.search(stocked, "pets")] == ["my_dog"]


def test_an_index_from_elsewhere_names_no_file_outside(stocked, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    path = "../" * 20 + str(victim)[1:]
    stocked.index.conn.execute("update versions set hash = ?, preview = ? where name = 'both'", [path, path])
    with pytest.raises(BadBlob):
        stocked.read("both")
    assert any("no stored file" in problem for problem in maintenance.verify(stocked).problems)
    maintenance.gc(stocked, delete=True)
    stocked.remove("both")
    assert victim.read_text() == "keep me"


def test_a_damaged_row_is_one_sentence(stocked):
    for harm in ("summary = '{'", "summary = '[]'", "version = 'x'", "name = x'ff'", "created = x'ff'"):
        stocked.index.conn.execute("savepoint s")
        stocked.index.conn.execute(f"update versions set {harm} where name = 'both'")
        with pytest.raises(ConceptError):
            stocked.list()
            stocked.get("both")
        stocked.index.conn.execute("rollback to s")


# headers


def test_headers_are_read_without_tensors_and_within_bounds(tmp_path):
    parent = concept("my_dog")
    data = concept("both", ("my_dog@1", parent))
    header = concept_header.read(data)
    assert (header.name, header.summary["kind"], header.summary["rank"]) == ("both", "merge", 2)
    assert header.parents == (("my_dog@1", hashlib.sha256(parent).hexdigest()),)
    (tmp_path / "blob").write_bytes(data)
    assert concept_header.read_file(tmp_path / "blob") == header
    for wrong in (
        b"",
        b"1234567",
        data[:100],
        (1 << 62).to_bytes(8, "little") + b"{}",
        data[:8] + b"[" * 9999,
    ):
        (tmp_path / "blob").write_bytes(wrong)
        for read in (lambda: concept_header.read(wrong), lambda: concept_header.read_file(tmp_path / "blob")):  # noqa: B023
            with pytest.raises(BadBlob):
                read()


def test_headers_say_what_concepts_say():
    """The same summary, torch or not."""
    torch = pytest.importorskip("torch")
    from conceptkit.base.fingerprint import Fingerprint
    from conceptkit.concepts.concept import Concept

    made = Concept(
        name="my_dog",
        kind="subject",
        noun="dog",
        base=Fingerprint("a" * 16, "b" * 16, (0.0,) * 64),
        base_name="storybook",
        tokens={"<my_dog>": (torch.ones(1, 3),)},
        words={"my_dog": "<my_dog> dog"},
        delta={"k": (torch.ones(4, 2), torch.ones(2, 3)), "v": (torch.ones(5, 3),)},
        recipe={"method": "custom"},
        provenance={"seed": 0},
    )
    assert concept_header.read(made.to_bytes()).summary == made.summary()
