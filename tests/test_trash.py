"""What is removed can be taken back, until the trash is emptied."""

import json
import re

import pytest
from click.testing import CliRunner

from conceptkit.cli.main import main
from conceptkit.registry import blobs, maintenance
from conceptkit.registry.catalogue import history, labels, search
from conceptkit.registry.entries import New, belongs
from conceptkit.registry.errors import UnknownConcept
from conceptkit.registry.sharing import exchange, trash
from conceptkit.registry.store import Registry
from tests.blobs import PNG, blob
from tests.commands import run


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPTKIT_HOME", str(tmp_path / "home"))
    with Registry() as registry:
        for number in range(2):
            data = blob("my_dog", number)
            registry.add("my_dog", data, {"kind": "subject"}, new_version=True)
        registry.set_preview("my_dog", 2, PNG)
        labels.tag(registry, "my_dog", ["pets"])
        labels.note(registry, "my_dog", "good")
    return tmp_path / "home"


def test_a_removed_concept_comes_back_whole(home):
    with Registry() as registry:
        before = {entry.hash for entry in registry.versions("my_dog")}
    run("rm", "my_dog")
    with Registry() as registry:
        assert not registry.has("my_dog")
    run("rm", "--undo", "my_dog")
    with Registry() as registry:
        entry = registry.get("my_dog")
        assert {one.hash for one in registry.versions("my_dog")} == before
        assert registry.preview(entry) == PNG
        assert search.labels(registry, [entry])["my_dog"]["tags"] == ["pets"]
        assert [note.text for note in labels.notes(registry, "my_dog")] == ["good"]
    again = CliRunner().invoke(main, ["rm", "--undo", "my_dog"])
    assert again.exit_code == 2 and "no 'my_dog' in the trash" in again.stderr


def test_a_name_comes_back_with_all_that_was_known_of_it(home):
    run("favourite", "my_dog")
    with Registry() as registry:
        before = everything(registry)
        length = len(history.history(registry, "my_dog"))
    assert "`conceptkit rm --undo my_dog` brings them back" in run("rm", "my_dog")
    assert run("rm", "--undo", "my_dog") == "my_dog@1 is back.\nmy_dog@2 is back.\n"
    with Registry() as registry:
        assert everything(registry) == before
        events = [(event.event, event.version) for event in history.history(registry, "my_dog")[length:]]
        assert events == [
            ("remove", 1),
            ("remove", 2),
            ("undo remove", 2),
            ("undo remove aside", 1),
        ]
        assert maintenance.verify(registry).problems == []
        assert registry.add("my_dog", blob("my_dog", 9), {}, new_version=True).version == 3
    assert json.loads(run("rollback", "my_dog", "--json"))["version"] == 2
    assert json.loads(run("rollback", "my_dog", "--json"))["version"] == 1


def everything(registry):
    """All rows of the index about names and versions, whatever their own numbers."""
    return [
        registry.index.query(query)
        for query in (
            "select id, name, version, newest, favourite from names",
            "select name, version, hash, bytes, created, summary, preview, noun, base, method, captions"
            " from versions order by version",
            "select v.version, u.role, u.hash from uses u join versions v on v.id = u.version_id",
            "select v.version, place, p.name, p.version, p.hash from parents p join versions v"
            " on v.id = p.version_id",
            "select tag from tags",
            "select text, created from notes",
            "select name, noun, tags, captions, notes from texts",
        )
    ]


def test_one_version_comes_back_and_moves_no_name(home):
    with Registry() as registry:
        registry.use(registry.get("my_dog", 1), {"prior": b"pictures"})
        before = everything(registry)
    assert "`conceptkit rm --undo my_dog@1` brings it back" in run("rm", "my_dog@1")
    assert run("rm", "--undo", "my_dog") == "my_dog@1 is back.\n"
    with Registry() as registry:
        assert everything(registry) == before
        assert registry.read_used(registry.get("my_dog", 1), "prior") == b"pictures"
        assert history.history(registry, "my_dog")[-1].event == "undo remove aside"


def test_what_a_name_meant_before_is_a_rollback_away(home):
    run("rm", "my_dog@2")
    said = run("rm", "--undo", "my_dog@2")
    assert said.startswith("my_dog@2 is back; my_dog goes on meaning my_dog@1, ")
    assert "`conceptkit rollback my_dog 2`" in said
    with Registry() as registry:
        assert registry.get("my_dog").version == 1
        assert registry.preview("my_dog@2") == PNG


def test_a_number_that_was_taken_meanwhile(home):
    run("rm", "my_dog")
    with Registry() as registry:
        registry.add("my_dog", blob("my_dog", 7), {"kind": "subject"})
        labels.note(registry, "my_dog", "mine")
    said = run("rm", "--undo", "my_dog").splitlines()
    assert said[0] == "my_dog@1 is back as my_dog@3, because another version has the number 1 now."
    assert said[1].startswith("my_dog@2 is back; my_dog goes on meaning my_dog@1")
    with Registry() as registry:
        assert registry.read("my_dog") == blob("my_dog", 7)
        assert registry.read("my_dog@3") == blob("my_dog", 0)
        assert [note.text for note in labels.notes(registry, "my_dog")] == ["mine", "good"]
        assert labels.tag(registry, "my_dog") == ["pets"]
    run("rm", "my_dog@3")
    run("rm", "--undo", "my_dog@3")
    with pytest.raises(UnknownConcept, match="it is empty"), Registry() as registry:
        trash.take_back(registry, "my_dog")


def test_the_same_bytes_are_here_already(home):
    run("rm", "my_dog")
    with Registry() as registry:
        registry.add("my_dog", blob("my_dog", 0), {"kind": "subject"})
    assert run("rm", "--undo", "my_dog").startswith("my_dog@1 is here already, with the same bytes.\n")


def test_a_name_that_came_from_elsewhere_stays_theirs(home):
    """What is taken back is no word of the user's: a later pull may move the name as before."""
    origin = "remote team"
    with Registry() as registry:
        registry.add_many([New("cat", blob("cat"), origin=origin, event="pull")])
        ((number,),) = registry.index.query("select id from names where name = 'cat'")
    run("rm", "cat")
    run("rm", "--undo", "cat")
    with Registry() as registry:
        assert belongs(registry.index.conn, number, origin)
        registry.add_many([New("cat", blob("cat", 1), origin=origin, event="pull")], new_version=True)
        assert registry.get("cat").version == 2


def test_lineage_and_list_agree_and_keep_strengths(home):
    with Registry() as registry:
        parent = registry.get("my_dog", 1)
        registry.add("moongate", blob("moongate", 1), {"kind": "subject"})
        gate = registry.get("moongate")
        about = {"parents": ["my_dog@1", "moongate@1"], "weights": [0.8, 1.0]}
        provenance = about | {"parent_sha256": [parent.hash, gate.hash]}
        data = blob("together", 2, provenance=provenance, kind="merge", noun=None)
        registry.add("together", data, {"kind": "merge", "noun": None, "method": "soft"} | about)
    shown = "my_dog@1:0.8 + moongate@1"
    for words in ((), ("rm", "my_dog@1"), ("rm", "--undo", "my_dog")):
        if words:
            run(*words)
        assert shown in run("list")
    assert run("lineage", "together").splitlines()[1:] == ["├── my_dog@1:0.8", "└── moongate@1"]
    run("rename", "my_dog", "rex")
    assert "rex@1:0.8 + moongate@1" in run("list") and "rex@1:0.8" in run("lineage", "together")
    run("rm", "together")
    run("rm", "--undo", "together")
    assert "rex@1:0.8 + moongate@1" in run("list") and "rex@1:0.8" in run("lineage", "together")
    assert "regmean" in run("show", "together") and "soft" not in run("show", "together")
    assert json.loads(run("show", "together", "--json"))["summary"]["method"] == "regmean"
    assert json.loads(run("stats", "--json"))["method"]["regmean"] == 1
    for method in ("regmean", "soft"):
        assert "together" in run("list", "--method", method)


def test_a_removed_name_says_how_it_comes_back(home):
    for words in (["my_dog@1"], ["my_dog"]):
        run("rm", *words)
        ref = words[0]
        refused = CliRunner().invoke(main, ["show", ref])
        assert refused.exit_code == 2 and f"`conceptkit rm --undo {ref}` brings it back" in refused.stderr
    stats = json.loads(run("stats", "--json"))
    assert stats["trash"] == 2 and stats["bytes"]["trash"] > 0
    assert re.search(r"^trash +2$", run("stats"), re.MULTILINE)
    assert "add" not in CliRunner().invoke(main, ["compose", "my_dog", "--prompt", "my_dog"]).stderr
    run("rm", "--undo", "my_dog")
    assert [entry.version for entry in versions("my_dog")] == [2]
    run("rm", "--undo", "my_dog")
    assert [entry.version for entry in versions("my_dog")] == [1, 2]


def versions(name):
    with Registry() as registry:
        return registry.versions(name)


def test_all_names_are_taken_back_or_none(home):
    run("rm", "my_dog")
    refused = CliRunner().invoke(main, ["rm", "--undo", "my_dog", "rex"])
    assert refused.exit_code == 2 and "no 'rex' in the trash: in it are my_dog." in refused.stderr
    with Registry() as registry:
        assert not registry.has("my_dog")


def test_removals_of_before_come_back_as_bundles(home):
    with Registry() as registry:
        entries = registry.versions("my_dog")
        (home / "trash").mkdir()
        exchange.export(registry, entries, home / "trash" / "my_dog.17.bundle")
        registry.remove("my_dog")
    assert "my_dog@2 is back." in run("rm", "--undo", "my_dog")
    assert {entry.hash for entry in versions("my_dog")} == {entry.hash for entry in entries}


def test_a_damaged_removal_loses_nothing(home):
    run("rm", "my_dog")
    (file,) = (home / "trash").iterdir()
    data = file.read_bytes()
    file.write_bytes(data[:-2000] + b"x" * 976 + data[-1024:])
    refused = CliRunner().invoke(main, ["rm", "--undo", "my_dog"])
    assert refused.exit_code == 2 and "damaged" in refused.stderr and file.is_file()
    with Registry() as registry:
        assert not registry.has("my_dog")


def test_gc_empties_the_trash(home):
    run("rm", "my_dog")
    assert json.loads(run("gc", "--json"))["trash"] == 1 and list((home / "trash").iterdir())
    assert "Deleted 1 removal in the trash" in run("gc", "--yes")
    assert not list((home / "trash").iterdir())


def test_what_is_removed_now_is_in_no_trash(home):
    run("rm", "--now", "my_dog")
    assert json.loads(run("gc", "--json"))["trash"] == 0


def test_what_cannot_be_kept_is_told(loose, home):
    with Registry() as registry:
        entry = registry.add("broken", b"no concept", {"kind": "subject"})
        place = blobs.place(registry.blobs, entry.hash)
    run("rm", "broken")
    run("rm", "--undo", "broken")  # whatever its bytes are
    place.write_bytes(b"damaged")
    told = CliRunner().invoke(main, ["rm", "broken"])
    assert told.exit_code == 0 and "broken is not in the trash" in told.stderr
    assert "--undo" not in told.stdout


def test_listing_by_size_and_date_and_tagging_many(home):
    with Registry() as registry:
        for number, name in enumerate(("ink_b", "ink_a", "oil")):
            registry.add(name, b"x" * (number + 1), {"kind": "style"})
    names = {
        sort: [one["name"] for one in json.loads(run("list", "--json", "--sort", sort))]
        for sort in ("name", "date", "size")
    }
    assert names["name"] == ["ink_a", "ink_b", "my_dog", "oil"]
    assert names["date"] == ["oil", "ink_a", "ink_b", "my_dog"]
    assert names["size"] == ["my_dog", "oil", "ink_a", "ink_b"]
    run("tag", "ink_*", "drawings")
    assert {one["name"] for one in json.loads(run("list", "--json", "--tag", "drawings"))} == {
        "ink_a",
        "ink_b",
    }
    none = CliRunner().invoke(main, ["tag", "x*", "drawings"])
    assert none.exit_code == 2 and "No concept fits 'x*'" in none.stderr
