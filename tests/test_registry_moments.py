"""Several who do the same at the same moment: what each was told is so."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from conceptkit.errors import BadKey, BadRemote, ConceptError
from conceptkit.registry import atomic_files, backup
from conceptkit.registry.sharing import remote_config, signing
from conceptkit.registry.store import Registry

DOG = {"kind": "subject", "noun": "dog"}
pytestmark = pytest.mark.skipif(os.name == "nt", reason="no such locks")


def at_once(calls) -> tuple[list, list[ConceptError]]:
    """What the calls returned and what they raised, each in a thread of its own."""

    def run(call):
        try:
            return call(), None
        except ConceptError as error:
            return None, error

    with ThreadPoolExecutor(len(calls)) as pool:
        done = list(pool.map(run, calls))
    return [result for result, error in done if error is None], [error for _, error in done if error]


@pytest.fixture
def slowly(monkeypatch):
    """Every small file takes a while to write, so that the others have read what was there before."""
    write = atomic_files.write_whole

    def slow(*arguments, **options):
        time.sleep(0.02)
        write(*arguments, **options)

    monkeypatch.setattr(atomic_files, "write_whole", slow)


def public(number: int) -> str:
    import base64

    return signing.PREFIX + base64.b64encode(bytes([number]) * 32).decode()


def test_every_key_that_was_trusted_is_there(tmp_path, slowly):
    made, errors = at_once([lambda i=i: signing.trust(tmp_path, f"k{i}", public(i)) for i in range(6)])
    assert not errors and {key.name for key in signing.keys(tmp_path)} == {key.name for key in made}
    at_once([lambda i=i: signing.distrust(tmp_path, f"k{i}") for i in range(5)])
    assert [key.name for key in signing.keys(tmp_path)] == ["k5"]


def test_of_several_keys_of_one_name_one_is_made(tmp_path, slowly):
    made, errors = at_once([lambda: signing.create(tmp_path, "me")] * 4)
    assert signing.keys(tmp_path) == made and len(made) == 1
    assert {type(error) for error in errors} == {BadKey}


def test_a_key_is_not_overwritten_where_there_are_no_locks(tmp_path, monkeypatch):
    mine = signing.create(tmp_path, "me")
    monkeypatch.setattr(signing, "_check_free", lambda home, name: None)  # both have looked before
    with pytest.raises(BadKey, match="here already"):
        signing.create(tmp_path, "me")
    assert signing.keys(tmp_path) == [mine]


def test_every_remote_that_was_added_is_there(tmp_path, slowly):
    for name in ("one", "two", "three", "four"):
        (tmp_path / name).mkdir()
    made, errors = at_once(
        [lambda n=n: remote_config.add(tmp_path, n, str(tmp_path / n)) for n in ("one", "two", "three")]
    )
    assert not errors and set(remote_config.load(tmp_path)) == {"one", "two", "three"}
    made, errors = at_once(
        [lambda n=n: remote_config.add(tmp_path, "same", str(tmp_path / n)) for n in ("one", "two")]
    )
    assert [remote_config.find(tmp_path, "same")] == made and isinstance(errors[0], BadRemote)


@pytest.mark.parametrize("links", [True, False])
def test_every_backup_is_a_file_of_its_own(registry, monkeypatch, links):
    registry.add("my_dog", b"dog", DOG)
    monkeypatch.setattr(backup, "now", lambda: "2026-01-01T00:00:00.000000+00:00")
    if not links:  # a file system on which a file has one name
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links")))
    made, errors = at_once([lambda: backup.backup(registry)] * 6)
    assert not errors and len(set(made)) == 6
    assert {file.name for file in (registry.home / "backups").iterdir()} == {file.name for file in made}
    for file in made:
        backup.check(file)


def test_two_backups_to_one_file(registry, tmp_path):
    registry.add("my_dog", b"dog", DOG)
    made, errors = at_once([lambda: backup.backup(registry, tmp_path / "my.db")] * 3)
    assert made == [tmp_path / "my.db"]
    assert all("already there" in str(error) for error in errors) and len(errors) == 2


def test_two_restores_keep_both_indexes_that_were_there(registry, tmp_path):
    registry.add("my_dog", b"dog", DOG)
    saved = backup.backup(registry, tmp_path / "my.db")
    home = tmp_path / "other"
    with Registry(home) as other:
        other.add("my_cat", b"cat", DOG)
    made, errors = at_once([lambda: backup.restore(home, saved)] * 2)
    assert not errors and len({one.before for one in made}) == 2
