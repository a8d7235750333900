"""What others wrote, on one's own screen; numbers and names that no disk and no index can hold."""

import json

import pytest
from click.testing import CliRunner

from conceptkit.cli.main import main
from conceptkit.cli.terminal import CELL, clip, echo_table, plain, width
from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadBlob, BadName, ConceptError
from conceptkit.registry import concept_validation, names
from conceptkit.registry.catalogue import history
from conceptkit.registry.store import Registry
from tests.blobs import about, blob, pack, sentence, tensors

ESCAPE = "\x1b]0;mine\x07\x1b[2J\x9b2J\u202e"
HUGE = "99999999999999999999"


def call(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def dog(tmp_path):
    file = tmp_path / "dog.ck"
    file.write_bytes(blob("my_dog"))
    assert call("import", file).exit_code == 0
    return file


@pytest.mark.parametrize(
    "words",
    [
        ["rollback", "my_dog", HUGE],
        ["note", "my_dog", "--remove", HUGE],
        ["list", "--limit", HUGE],
        ["list", "--limit", 2**63 - 1],
        ["search", "dog", "--limit", HUGE],
        ["list", "--min-size", "1e30"],
        ["list", "--max-size", "1e25"],
        ["show", f"my_dog@{HUGE}"],
    ],
)
def test_a_number_that_no_index_can_hold_is_no_surprise(dog, words):
    result = call(*words)
    assert result.exit_code in (0, 2) and "unexpectedly" not in result.output


def test_a_number_beyond_the_index_is_one_sentence_in_python_too(dog):
    with Registry() as registry, pytest.raises(ConceptError, match="beyond") as caught:
        history.rollback(registry, "my_dog", 10**20)
    sentence(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["import", f"none{ESCAPE}"],
        ["restore", f"none{ESCAPE}"],
        ["search", f"zzz{ESCAPE}"],
        ["show", f"x{ESCAPE}"],
        ["tag", "my_dog", f"t{ESCAPE}"],
        ["backup", f"bk{ESCAPE}"],
        ["export", "my_dog", "--bundle", f"b{ESCAPE}"],
        ["list", "--since", ESCAPE],
        [ESCAPE],
        ["--" + ESCAPE],
        ["list", "--" + ESCAPE],
        ["backup", f"bk{ESCAPE}", "--json"],
        ["show", f"x{ESCAPE}", "--json"],
    ],
)
def test_nothing_that_a_terminal_obeys_is_printed(dog, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = call(*words).output
    assert output and not set(output) & set(ESCAPE) - set("]0;mine[2J")
    if "--json" in words and words[0] == "backup":
        assert json.loads(call("backup", "again" + ESCAPE, "--json").stdout)["file"].endswith(ESCAPE)


def test_escapes_are_told_as_what_they_are():
    assert plain("a\x1b\n") == "a\\x1b\\x0a" and plain("a\x1b\n", lines=True) == "a\\x1b\n"
    assert plain("\u200f\u061c") == "\\u200f\\u061c", "marks of direction reorder a line as well"
    assert plain("\u202e") == "\\u202e" and plain("Größe 犬") == "Größe 犬"


def test_a_long_text_is_cut_and_a_wide_one_is_aligned(capsys):
    echo_table([("NAME", "CLASS"), ("a", "x" * 10_000), ("犬", "b")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(width, lines)) <= 2 * CELL and lines[1].endswith("…")
    assert width(lines[2][: lines[2].index("b")]) == len(lines[0]) - len("CLASS")
    assert clip("abc", 3) == "abc" and clip("abcd", 3) == "ab…" and width(clip("犬" * 9, 6)) <= 6


def test_one_concept_with_long_texts_does_not_flood_a_list(tmp_path):
    parents = [f"p{i:03}" + "y" * 900 for i in range(500)]
    told = {"parents": parents, "weights": [1.0] * 500}
    file = tmp_path / "evil.ck"
    file.write_bytes(blob("evil", kind="merge", noun=None, provenance=told))
    assert call("import", file).exit_code == 0
    for words in (["list"], ["show", "evil"], ["lineage", "evil"], ["stats"], ["search", "evil"]):
        assert len(call(*words).output) < 100_000
    assert json.loads(call("show", "evil", "--json").stdout)["summary"]["parents"] == parents


@pytest.mark.parametrize("where", ["recipe", "provenance", "base"])
def test_a_number_that_is_infinite_to_python_is_no_number(where):
    inner = about()
    inner[where] = inner[where] | {"sketch": [0.125] * 63 + [777.5], "x": 777.5}
    data = pack(inner, tensors()).replace(b"777.5", b"1e999")
    for read in (concept_validation.check, Concept.from_bytes):
        with pytest.raises(BadBlob):
            read(data)


@pytest.mark.parametrize("name", ["CON", "nul", "Aux", "com1", "LPT9"])
def test_a_device_of_windows_is_no_name(name):
    with pytest.raises(BadName, match="Windows") as caught:
        names.check_name(name)
    sentence(caught.value)
    assert names.check_name(name + "_1")


@pytest.mark.parametrize("name", ["pytorch_lora_weights", "ReadMe"])
def test_a_file_of_an_export_is_no_name(name):
    with pytest.raises(BadName, match="a file of an export"):
        names.check_name(name)


def test_names_that_differ_by_case_alone_are_two_concepts(registry):
    """They lie in the index, not in files; exports tell them apart where programs fold case."""
    registry.add("my_dog", b"1", {})
    registry.add("My_Dog", b"2", {})
    assert [registry.read(name) for name in ("my_dog", "My_Dog")] == [b"1", b"2"]
    registry.add("My_Dog", b"3", {}, new_version=True)
    assert len(registry.versions("My_Dog")) == 2 and len(registry.versions("my_dog")) == 1
    assert registry.spelled("my_dog") == "my_dog" and registry.spelled("MY_DOG") in ("my_dog", "My_Dog")
    assert history.rename(registry, "my_dog", "MY_dog").name == "MY_dog"


def test_json_is_whole_when_half_of_it_went_wrong(dog, tmp_path):
    good, bad = tmp_path / "good.ck", tmp_path / "bad.ck"
    good.write_bytes(blob("gate"))
    bad.write_bytes(b"x" * 100)
    result = call("import", good, bad, "--json")
    first, second = json.loads(result.stdout)
    assert result.exit_code == 2 and first["arrivals"][0]["name"] == "gate"
    assert second["file"] == str(bad) and "not imported" in second["error"]


@pytest.mark.parametrize(
    "words", [["show", "nobody"], ["rollback", "my_dog", "x"], ["import", "none"], ["list", "--nonsense"]]
)
def test_json_is_answered_with_json_in_every_outcome(dog, words):
    result = call(*words, "--json")
    assert result.exit_code == 2 and "error" in json.dumps(json.loads(result.stdout))
