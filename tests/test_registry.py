"""Names, versions, blobs, previews and assets of one registry."""

import hashlib
import json
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptkit.errors import BadBlob, BadName, ConceptError, NameTaken, UnknownConcept
from conceptkit.registry import blobs, paths
from conceptkit.registry.entries import Entry
from conceptkit.registry.names import check_name
from conceptkit.registry.store import Registry

SUMMARY = {"kind": "subject", "noun": "dog", "tokens": {"<my_dog>": 1}}


@pytest.fixture
def registry():
    with Registry() as registry:
        yield registry


def blob_files(registry: Registry) -> list[Path]:
    return [file for file in (registry.home / "blobs").rglob("*") if file.is_file()]


def assert_sentence(error: BaseException) -> None:
    assert re.fullmatch(r"[^\n]+[.?]", str(error))


def test_what_was_added_is_read_back(registry):
    entry = registry.add("my_dog", b"bytes", SUMMARY)
    assert (entry.name, entry.version, entry.bytes, entry.ref) == ("my_dog", 1, 5, "my_dog@1")
    assert entry.hash == hashlib.sha256(b"bytes").hexdigest()
    assert entry.created.endswith("+00:00")
    assert entry.summary == SUMMARY
    assert registry.get("my_dog") == entry == registry.list()[0]
    assert registry.read(entry) == registry.read("my_dog") == b"bytes"
    assert json.loads(json.dumps(entry.to_json()))["summary"] == SUMMARY


def test_home_is_private_and_found_through_the_environment(home, tmp_path):
    assert Registry().home == home == paths.home()
    deep = Registry(tmp_path / "a home" / "of mine").home
    for folder in (deep, deep.parent, deep / "blobs"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_home_without_environment_is_the_users_data_folder(monkeypatch):
    monkeypatch.setenv("CONCEPTKIT_HOME", "")
    assert paths.home().name == "conceptkit"


def test_another_process_finds_what_was_stored(home):
    with Registry() as first:
        entry = first.add("my_dog", b"bytes", SUMMARY)
    with Registry(home) as second:
        assert second.list() == [entry]


def test_a_taken_name_says_how_to_make_a_new_version(registry):
    registry.add("my_dog", b"one", SUMMARY)
    with pytest.raises(NameTaken, match="'my_dog'.*--new-version") as caught:
        registry.add("my_dog", b"two", SUMMARY)
    assert_sentence(caught.value)
    with pytest.raises(NameTaken):
        registry.check_free("my_dog")
    registry.check_free("my_dog", new_version=True)
    assert registry.read("my_dog") == b"one"


def test_versions_live_side_by_side(registry):
    one = registry.add("my_dog", b"one", SUMMARY)
    two = registry.add("my_dog", b"two", SUMMARY, new_version=True)
    assert registry.versions("my_dog") == [one, two]
    assert registry.list() == [two]
    assert registry.get("my_dog@1") == registry.get("my_dog", 1) == one
    assert registry.read("my_dog@1") == b"one"
    with pytest.raises(UnknownConcept, match=r"no version 3: ask for one of 1, 2\.") as caught:
        registry.get("my_dog@3")
    assert_sentence(caught.value)


def test_list_is_in_alphabetical_order(registry):
    for name in ("teapot", "Cat", "my_dog", "cab", "bowl"):
        registry.add(name, name.encode(), SUMMARY)
    assert [entry.name for entry in registry.list()] == ["bowl", "cab", "Cat", "my_dog", "teapot"]


def test_an_unknown_name_suggests_the_nearest(registry):
    with pytest.raises(UnknownConcept, match="conceptkit add my_dog") as caught:
        registry.get("my_dog")
    assert_sentence(caught.value)
    registry.add("my_dog", b"", SUMMARY)
    registry.add("moongate", b"", SUMMARY)
    with pytest.raises(UnknownConcept, match="did you mean 'my_dog'"):
        registry.get("My_Dgo")
    with pytest.raises(UnknownConcept, match="conceptkit list") as caught:
        registry.get("zzz")
    assert_sentence(caught.value)


def test_remove_forgets_all_versions_and_their_bytes(loose, registry):
    registry.add("my_dog", b"one", SUMMARY)
    registry.add("my_dog", b"two", SUMMARY, new_version=True)
    registry.set_preview("my_dog", 1, b"png")
    assert [entry.version for entry in registry.remove("my_dog")] == [1, 2]
    assert registry.list() == [] and blob_files(registry) == []
    with pytest.raises(UnknownConcept):
        registry.remove("my_dog")
    assert registry.add("my_dog", b"three", SUMMARY).version == 1


def test_remove_one_version(registry):
    one = registry.add("my_dog", b"one", SUMMARY)
    registry.add("my_dog", b"two", SUMMARY, new_version=True)
    registry.remove("my_dog@2")
    assert registry.get("my_dog") == one and registry.list() == [one]
    registry.remove("my_dog@1")
    assert registry.list() == []


def test_equal_bytes_are_stored_once_and_kept_while_anything_needs_them(loose, registry):
    registry.add("a", b"same", SUMMARY)
    registry.add("b", b"same", SUMMARY)
    registry.put_asset("gram/1", b"same")
    assert len(blob_files(registry)) == 1
    registry.remove("a")
    assert registry.read("b") == b"same"
    registry.remove("b")
    assert registry.get_asset("gram/1") == b"same"


def test_previews(loose, registry):
    entry = registry.add("my_dog", b"one", SUMMARY)
    assert registry.preview(entry) is None
    registry.set_preview("my_dog", 1, b"first")
    registry.set_preview("my_dog", 1, b"second")
    assert registry.preview("my_dog") == b"second"
    assert len(blob_files(registry)) == 2
    with pytest.raises(UnknownConcept):
        registry.set_preview("my_dog", 2, b"png")


def test_assets(loose, registry):
    assert registry.get_asset("prior/dog") is None
    registry.put_asset("prior/dog", b"one")
    digest = registry.put_asset("prior/dog", b"two")
    assert registry.get_asset("prior/dog") == b"two"
    assert len(blob_files(registry)) == 1
    blobs.drop(registry.home / "blobs", digest)
    assert registry.get_asset("prior/dog") is None
    registry.put_asset("prior/dog", b"two")
    assert registry.get_asset("prior/dog") == b"two"


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_damaged_bytes_are_never_handed_out(loose, registry, harm):
    entry = registry.add("my_dog", b"bytes", SUMMARY)
    file = blobs.place(registry.home / "blobs", entry.hash)
    file.write_bytes(b"bytez") if harm == "damaged" else file.unlink()
    with pytest.raises(BadBlob, match=f"my_dog@1 cannot be read.*{harm}.*conceptkit rm my_dog@1") as caught:
        registry.read("my_dog")
    assert_sentence(caught.value)
    registry.add("again", b"bytes", SUMMARY)
    assert registry.read("my_dog") == b"bytes"


def test_a_home_that_cannot_be_used_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConceptError, match="CONCEPTKIT_HOME") as caught:
        Registry(tmp_path / "file")
    assert_sentence(caught.value)
    (tmp_path / "index.db").write_text("not a database, but long enough to be looked at as one" * 20)
    with pytest.raises(ConceptError, match="CONCEPTKIT_HOME"):
        Registry(tmp_path)


def test_a_failed_write_leaves_no_trace(loose, registry, monkeypatch):
    monkeypatch.setattr("conceptkit.registry.blobs.os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        registry.add("my_dog", b"bytes", SUMMARY)
    assert registry.list() == [] and blob_files(registry) == []


def test_remains_of_a_killed_process_are_swept(loose, registry):
    left = paths.make_private(registry.home / "blobs" / "incoming") / "4242-0123456789abcdef"
    left.write_bytes(b"half")
    registry.add("a", b"a", SUMMARY)
    assert len(blob_files(registry)) == 2
    os.utime(left, (0, 0))
    registry.add("b", b"b", SUMMARY)
    assert len(blob_files(registry)) == 2


@pytest.mark.parametrize("name", ["my_dog", "a", "Moongate-2", "x" * 64])
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "my dog", "a/b", "../a", "2dogs", "_a", "-a", "a@2", "a.b", "hünd", "x" * 300, "a\n", "<a>"],
)
def test_bad_names(name, registry):
    with pytest.raises(BadName, match="cannot be a concept's name") as caught:
        registry.add(name, b"", SUMMARY)
    assert_sentence(caught.value)
    assert len(str(caught.value)) < 250
    assert registry.list() == []


def test_a_bad_name_comes_with_a_good_one():
    with pytest.raises(BadName, match="for example 'my_dog'"):
        check_name("my dog")


@given(st.text(max_size=80))
def test_every_name_is_taken_or_refused_with_a_usable_suggestion(name):
    try:
        check_name(name)
    except BadName as error:
        assert_sentence(error)
        if wish := re.search(r"for example '(.*)'\.$", str(error)):
            assert check_name(wish[1])


def test_entries_are_values():
    assert Entry("a", 1, "0" * 64, 0, "2026-01-01T00:00:00+00:00") == Entry(
        "a", 1, "0" * 64, 0, "2026-01-01T00:00:00+00:00"
    )
