"""What lies about in a home or at a remote and is not what its place says: left alone, and named."""

import os
import stat
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from conceptkit.cli.main import main
from conceptkit.errors import BadBlob, ConceptError
from conceptkit.registry import backup, blobs, maintenance, odd_files
from conceptkit.registry.sharing import exchange, locations, remote_config, signing, sync
from conceptkit.registry.sharing.remote import Remote
from conceptkit.registry.store import Registry
from tests.blobs import blob, sentence
from tests.commands import run

MONTHS_AGO = time.time() - 90 * odd_files.DAY
MAKERS = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link": lambda path: path.symlink_to("/etc/passwd"),
}


def old(file: Path, data: bytes = b"x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    os.utime(file, (MONTHS_AGO, MONTHS_AGO))
    return file


@pytest.fixture
def dog(registry):
    registry.add("my_dog", blob("my_dog"), {"kind": "subject", "noun": "dog"})
    return registry


def test_a_push_deletes_nothing_behind_a_link(dog, tmp_path):
    mine = old(tmp_path / "documents" / ("a" * 24), b"three years of work")
    with Remote("usb", locations.parse(str(tmp_path / "usb"))) as remote:
        remote.prepare()
    (tmp_path / "usb" / "incoming").rmdir()
    (tmp_path / "usb" / "incoming").symlink_to(mine.parent)
    with Remote("usb", locations.parse(str(tmp_path / "usb"))) as remote, pytest.raises(ConceptError):
        sync.push(dog, remote)
    assert mine.read_bytes() == b"three years of work"


def test_a_push_deletes_only_what_a_push_left(dog, tmp_path):
    with Remote("usb", locations.parse(str(tmp_path / "usb"))) as remote:
        remote.prepare()
        incoming = tmp_path / "usb" / "incoming"
        swept, kept = old(incoming / ("a" * 24)), old(incoming / "thesis.txt")
        link = incoming / ("b" * 24)
        link.symlink_to(kept)
        sync.push(dog, remote)
        assert not swept.exists() and kept.exists() and link.is_symlink()


def test_storing_sweeps_nothing_behind_a_link(loose, dog, tmp_path):
    mine = old(tmp_path / "documents" / "123-0123456789abcdef")
    incoming = dog.blobs / "incoming"
    for file in incoming.iterdir():
        file.unlink()
    incoming.rmdir()
    incoming.symlink_to(mine.parent)
    dog.add("gate", blob("gate"), {})
    assert mine.exists()


LEFT = (
    ".remotes.json.4242-deadbeef",
    "keys/.me.key.4242-deadbeef",
    "keys/.trusted.json.4242-deadbeef",
    "backups/index-2026-01-01T000000.db.4242.part",
    "backups/index-2026-01-01T000000.db.4242.part-journal",
    "index.rebuilt.db",
    "index.rebuilt.db-wal",
    "incoming/aa.part",
    "blobs/incoming/4242-deadbeef",
    "checkpoints/.x.part",
    "index.db.4242.part",
)


def test_gc_removes_the_remains_of_killed_processes_of_every_kind(dog):
    left = [old(dog.home / name) for name in LEFT]
    mine = [old(dog.home / name) for name in ("notes.txt", "keys/spare.txt", "backups/mine.txt")]
    assert maintenance.verify(dog).unfinished == len(LEFT)
    assert maintenance.gc(dog).old == len(LEFT) and all(file.exists() for file in left)
    maintenance.gc(dog, delete=True)
    assert not any(file.exists() for file in left) and all(file.exists() for file in mine)
    young = dog.home / LEFT[0]
    young.write_bytes(b"being written")
    assert maintenance.gc(dog, delete=True).old == 0 and young.exists()


def test_checkpoints_are_known(dog):
    young, ancient = dog.home / "checkpoints/my_dog.safetensors", "checkpoints/gate.safetensors"
    old(young)
    os.utime(young)
    old(dog.home / ancient)
    assert maintenance.verify(dog).checkpoints == maintenance.stats(dog)["checkpoints"] == 2
    assert "2 checkpoints" in run("verify")
    told = run("gc")
    assert "Kept checkpoints" in told and "(my_dog)" in told and "30 days" in told, "gc says what it leaves"
    maintenance.gc(dog, delete=True)
    assert young.exists() and not (dog.home / ancient).exists()
    dog.remove("my_dog")
    assert not young.exists()
    old(dog.home / ancient)
    assert "checkpoint of gate" in run("rm", "gate") and not (dog.home / ancient).exists()


@pytest.mark.parametrize("what", MAKERS)
def test_odd_things_among_the_blobs_are_named_and_left_alone(loose, dog, what):
    own = blobs.place(dog.blobs, dog.get("my_dog").hash)
    own.unlink()
    stray = dog.blobs / "ab" / ("c" * 62)
    stray.parent.mkdir(exist_ok=True)
    for path in (own, stray):
        MAKERS[what](path)
    found = maintenance.verify(dog)
    assert found.problems and len(found.strange) == 2
    assert all(
        str(path) in "".join(found.strange) and what in "".join(found.strange) for path in (own, stray)
    )
    with pytest.raises(BadBlob, match=what) as caught:
        dog.read("my_dog")
    sentence(caught.value)
    with pytest.raises(ConceptError, match=what):
        dog.add("again", blob("my_dog"), {})
    maintenance.gc(dog, delete=True)
    dog.remove("my_dog")
    assert odd_files.kind(own) == odd_files.kind(stray) == what


def test_a_huge_file_in_the_place_of_a_blob_is_not_taken_into_memory(loose, dog, monkeypatch):
    monkeypatch.setattr(blobs, "LARGE", 1 << 20)
    with blobs.place(dog.blobs, dog.get("my_dog").hash).open("r+b") as file:
        file.truncate(1 << 22)
    monkeypatch.setattr(Path, "read_bytes", None)
    with pytest.raises(BadBlob, match="damaged"):
        dog.read("my_dog")


@pytest.mark.parametrize("write", ["bundle", "backup", "preview"])
def test_what_is_written_replaces_no_device_and_no_file_of_mine(dog, tmp_path, write):
    dog.set_preview("my_dog", 1, b"\x89PNG\r\n\x1a\n")
    pipe, mine, link = tmp_path / "pipe", tmp_path / "thesis.txt", tmp_path / "link"
    os.mkfifo(pipe)
    mine.write_bytes(b"years")
    link.symlink_to(mine)
    words = {"bundle": ["export", "my_dog", "--bundle"], "backup": ["backup"]}
    for file in (pipe, mine, link):
        result = CliRunner().invoke(main, [*words.get(write, ["show", "my_dog", "--preview"]), str(file)])
        assert result.exit_code == 2 and str(file) in result.output
    assert stat.S_ISFIFO(pipe.lstat().st_mode) and mine.read_bytes() == b"years" and link.is_symlink()


def test_a_bundle_may_replace_a_bundle(dog, tmp_path):
    for _ in range(2):
        exchange.export(dog, exchange.chosen(dog, ["my_dog"]), tmp_path / "a.bundle")


@pytest.mark.parametrize("name", ["a**b.db", "x[1].db", "*.db", "a?b#c%41.db", "new\nline.db", "n" * 250])
def test_any_name_will_do_for_a_backup(dog, tmp_path, name):
    file = backup.backup(dog, tmp_path / name)
    assert backup.restore(dog.home, file).concepts == 1
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_a_pipe_in_the_place_of_a_small_file_is_not_waited_for(dog):
    (dog.home / "keys").mkdir()
    for file in ("keys/trusted.json", "remotes.json"):
        os.mkfifo(dog.home / file)
    for look in (signing.keys, remote_config.load):
        with pytest.raises(ConceptError) as caught:
            look(dog.home)
        sentence(caught.value)
    with Registry(dog.home):
        pass
