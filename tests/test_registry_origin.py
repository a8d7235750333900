"""Whose name it is: what comes from elsewhere lies beside what the user made, unless the user says so."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from conceptkit.cli.main import main
from conceptkit.errors import BadKey, BadRemote
from conceptkit.registry.catalogue import history, labels
from conceptkit.registry.sharing import exchange, incoming, remote_config, signing, sync
from conceptkit.registry.sharing.incoming import IncomingConcept
from conceptkit.registry.sharing.remote import Remote
from conceptkit.registry.store import Registry
from tests.blobs import PNG, blob, sentence
from tests.commands import run

FUTURE = "9999-12-31T00:00:00+00:00"
MINE, THEIRS, NEXT = (blob("my_dog", seed) for seed in (1, 2, 3))


def learned(registry: Registry, data: bytes, name: str = "my_dog") -> None:
    registry.add(name, data, {"kind": "subject", "noun": "dog"}, new_version=True)


def bundled(registry: Registry, file: Path, **options) -> Path:
    exchange.export(registry, exchange.chosen(registry, ["my_dog"], every=True), file, **options)
    return file


@pytest.fixture
def team(mine, yours, tmp_path):
    """The same remote, as both know it."""
    for registry in (mine, yours):
        remote_config.add(registry.home, "team", str(tmp_path / "remote"))
    return lambda registry: Remote("team", remote_config.find(registry.home, "team"))


def test_an_unsigned_bundle_from_the_future_does_not_take_a_name_over(mine):
    learned(mine, MINE)
    evil = IncomingConcept("my_dog", THEIRS, FUTURE, PNG, ("theirs",), ("look here",))
    (arrival,) = incoming.receive(mine, [evil], "import")
    assert mine.read("my_dog") == MINE and mine.read("my_dog@2") == THEIRS
    assert not arrival.points and "still means what it meant" in arrival.sentence()
    sentence(ValueError(arrival.sentence()))
    assert labels.tag(mine, "my_dog") == [] and labels.notes(mine, "my_dog") == []
    assert mine.preview("my_dog") is None and "left out" in arrival.sentence()
    assert history.history(mine, "my_dog")[-1].event == "import aside"


def test_a_remote_does_not_take_a_name_over(mine, yours, team):
    learned(mine, MINE)
    learned(yours, THEIRS)
    with team(yours) as remote:
        sync.push(yours, remote)
    with team(mine) as remote:
        sync.pull(mine, remote)
        assert mine.read("my_dog") == MINE
        learned(yours, NEXT)
        with team(yours) as theirs:
            sync.push(yours, theirs)
        sync.pull(mine, remote)
        assert mine.read("my_dog") == MINE and len(mine.versions("my_dog")) == 3
        sync.pull(mine, remote, take=True)
        assert mine.read("my_dog") == NEXT
    assert history.rollback(mine, "my_dog", 1).version == 1


def test_a_name_that_came_from_a_remote_follows_it_until_it_becomes_mine(mine, yours, team):
    with team(mine) as here, team(yours) as there:
        for data in (MINE, THEIRS):
            learned(yours, data)
            sync.push(yours, there)
            sync.pull(mine, here)
            assert mine.read("my_dog") == data
        learned(mine, blob("my_dog", 9))
        learned(yours, NEXT)
        sync.push(yours, there)
        sync.pull(mine, here)
        assert mine.read("my_dog") == blob("my_dog", 9)


def test_two_strangers_are_not_one(mine):
    incoming.receive(mine, [IncomingConcept("my_dog", MINE)], "import")
    incoming.receive(mine, [IncomingConcept("my_dog", THEIRS)], "import")
    assert mine.read("my_dog") == MINE


def test_removing_mine_leaves_it_to_theirs_only_when_nothing_else_is_left(mine):
    learned(mine, MINE)
    learned(mine, NEXT)
    incoming.receive(mine, [IncomingConcept("my_dog", THEIRS, FUTURE)], "import")
    mine.remove("my_dog@2")
    assert mine.read("my_dog") == MINE
    mine.remove("my_dog@1")
    assert mine.read("my_dog") == THEIRS


def test_a_name_in_another_case_is_the_name_that_is_here(mine):
    learned(mine, MINE)
    both = [
        IncomingConcept("My_Dog", blob("My_Dog", 5)),
        IncomingConcept("Gate", blob("Gate")),
        IncomingConcept("gate", blob("gate")),
    ]
    arrivals = incoming.receive(mine, both, "import")
    refs = [arrival.entry.ref for arrival in arrivals]
    assert refs == ["my_dog@2", "Gate@1", "gate@1"], "several that differ by case are as many concepts"
    assert mine.read("my_dog") == MINE


def test_twins_of_a_name_that_is_here_in_a_third_case_stay_twins(mine):
    learned(mine, MINE)
    both = [IncomingConcept(name, blob(name, 5)) for name in ("My_Dog", "MY_DOG")]
    arrivals = incoming.receive(mine, both, "import")
    assert [arrival.entry.ref for arrival in arrivals] == ["My_Dog@1", "MY_DOG@1"]
    assert len(mine.versions("my_dog")) == 1


@pytest.mark.parametrize("signed", [True, False])
def test_a_trusted_key_speaks_for_the_names_it_gave(mine, yours, tmp_path, signed):
    key = signing.create(yours.home, "me")
    signing.trust(mine.home, "alice", key.public)
    for data in (MINE, THEIRS):
        learned(yours, data)
        exchange.import_file(mine, bundled(yours, tmp_path / "b", signer="" if signed else None))
    assert mine.read("my_dog") == (THEIRS if signed else MINE)


def test_pull_refuses_what_no_trusted_key_signed(mine, yours, team):
    learned(yours, THEIRS)
    key = signing.create(yours.home, "me")
    with team(yours) as remote:
        sync.push(yours, remote)
    with team(mine) as remote:
        (refusal,) = sync.pull(mine, remote, require_signed=True).refused
        assert "no key that you trust" in refusal and mine.list() == []
        with team(yours) as theirs:
            sync.push(yours, theirs, key="me")
        assert sync.pull(mine, remote, require_signed=True).refused and mine.list() == []
        signing.trust(mine.home, "alice", key.public)
        assert not sync.pull(mine, remote, require_signed=True).refused
    assert mine.read("my_dog") == THEIRS


def test_a_remote_that_is_bound_to_a_key_takes_nothing_else(mine, yours, tmp_path):
    key, folder = signing.create(yours.home, "me"), str(tmp_path / "remote")
    signing.trust(mine.home, "alice", key.public)
    remote_config.add(mine.home, "team", folder, keys=signing.chosen(mine.home, ["alice"]))
    remote_config.add(yours.home, "team", folder, keys=signing.chosen(yours.home, ["me"]))
    learned(yours, THEIRS)
    with Registry(tmp_path / "mallory") as mallory:
        remote_config.add(mallory.home, "team", folder)
        learned(mallory, NEXT)
        signing.create(mallory.home, "me")
        with Remote("team", remote_config.find(mallory.home, "team")) as remote:
            sync.push(mallory, remote, key="me")
    with Remote("team", remote_config.find(yours.home, "team")) as remote:
        sync.push(yours, remote)
    with Remote("team", remote_config.find(mine.home, "team")) as remote:
        pulled = sync.pull(mine, remote)
    assert [mine.read(entry) for entry in mine.versions("my_dog")] == [THEIRS] and len(pulled.refused) == 1
    with pytest.raises(BadKey, match="bob"):
        signing.chosen(mine.home, ["bob"])


def test_a_changed_record_has_no_signature(mine, yours, team):
    learned(yours, THEIRS)
    signing.trust(mine.home, "alice", signing.create(yours.home, "me").public)
    with team(yours) as remote:
        sync.push(yours, remote, key="me")
        (file,) = remote.records("my_dog")
        told = json.loads(remote.read(file.path, file.size))
        told["tags"] = ["changed"]
    assert sync._signed_by(mine.home, told) is None
    told["tags"] = []
    assert sync._signed_by(mine.home, told)


def test_the_command_line_takes_only_when_told(mine, yours, tmp_path, monkeypatch):
    learned(mine, MINE)
    learned(yours, THEIRS)
    file = bundled(yours, tmp_path / "b")
    monkeypatch.setenv("CONCEPTKIT_HOME", str(mine.home))
    assert "takes theirs" in run("import", file) and mine.read("my_dog") == MINE
    run("import", file, "--take")
    assert mine.read("my_dog") == THEIRS
    run("keys", "create", "me")
    run("remote", "add", "usb", tmp_path / "usb", "--key", "me")
    run("push", "usb")
    assert json.loads(run("remote", "list", "--json"))[0]["keys"]
    assert json.loads(run("pull", "usb", "--json"))["refused"] == []


def test_a_pull_that_breaks_off_tells_what_arrived_in_json(mine, yours, team, monkeypatch):
    for name in ("a", "b", "c"):
        learned(yours, blob(name), name)
    with team(yours) as remote:
        sync.push(yours, remote)
    fetch = sync.fetch

    def broken(home, remote, digest, size):
        if mine.has("a"):
            raise BadRemote("The remote went away: try again.")
        return fetch(home, remote, digest, size)

    monkeypatch.setattr(sync, "fetch", broken)
    monkeypatch.setenv("CONCEPTKIT_HOME", str(mine.home))
    result = CliRunner().invoke(main, ["pull", "team", "--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == 2 and [one["name"] for one in told["pulled"]] == ["a"]
    assert told["error"] == "The remote went away: try again."


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_an_import_becomes_visible_with_its_labels_and_previews(mine):
    coming = [IncomingConcept(f"c{i}", blob(f"c{i}", i), None, PNG, ("keep",), ("mine",)) for i in range(5)]
    pid = os.fork()
    if pid == 0:
        with Registry(mine.home) as registry:
            add_many = registry.add_many

            def killed(*arguments, **options):
                add_many(*arguments, **options)
                os.kill(os.getpid(), signal.SIGKILL)

            registry.add_many = killed
            incoming.receive(registry, coming, "import")
    os.waitpid(pid, 0)
    assert len(mine.list()) == 5
    for entry in mine.list():
        assert mine.preview(entry) == PNG and labels.tag(mine, entry.name) == ["keep"]
        assert [note.text for note in labels.notes(mine, entry.name)] == ["mine"]
