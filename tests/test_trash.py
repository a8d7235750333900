"""What is removed can be taken back, until the trash is emptied."""

import json

import pytest
from click.testing import CliRunner

from conceptkit.cli.main import main
from conceptkit.registry.catalogue import labels, search
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


def test_one_version_comes_back(home):
    run("rm", "my_dog@1")
    with Registry() as registry:
        assert [entry.version for entry in registry.versions("my_dog")] == [2]
    run("rm", "--undo", "my_dog")
    with Registry() as registry:
        assert len(registry.versions("my_dog")) == 2


def test_gc_empties_the_trash(home):
    run("rm", "my_dog")
    assert json.loads(run("gc", "--json"))["trash"] == 1 and list((home / "trash").iterdir())
    assert "Deleted 1 removal in the trash" in run("gc", "--yes")
    assert not list((home / "trash").iterdir())


def test_what_is_removed_now_is_in_no_trash(home):
    run("rm", "--now", "my_dog")
    assert json.loads(run("gc", "--json"))["trash"] == 0


def test_what_cannot_be_kept_is_told(home):
    with Registry() as registry:
        registry.add("broken", b"no concept", {"kind": "subject"})
    told = CliRunner().invoke(main, ["rm", "broken"])
    assert told.exit_code == 0 and "broken is not in the trash" in told.stderr


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
