"""Rows that another package adds to the tables by entry points are used from the command."""

import dataclasses
import json
from importlib.metadata import EntryPoint

import pytest
from click.testing import CliRunner
from PIL import Image

from conceptkit import extension_table
from conceptkit.cli.main import main
from conceptkit.concepts.concept import read
from conceptkit.errors import ConceptError
from conceptkit.evaluate.scorer_table import SCORERS, load_scorer
from conceptkit.features import caption_statistics, captions
from conceptkit.formats.dialects import DIALECTS, dialect_of
from conceptkit.merging.compose import rebuild
from conceptkit.merging.method_table import MERGE_METHODS, MergeMethod, merge_method_of
from conceptkit.registry.store import Registry
from tests import tiny

POINTS = {
    "conceptkit.merge_methods": {"halves": "tests.plugins.halves:HALVES"},
    "conceptkit.dialects": {"word-list": "tests.plugins.word_list:WORD_LIST"},
    "conceptkit.scorers": {"brightness": "tests.plugins.brightness:SCORER"},
}


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """As if a package with these entry points was installed; the tables are as before afterwards."""
    points = {group: dict(rows) for group, rows in POINTS.items()}
    monkeypatch.setattr(
        extension_table,
        "entry_points",
        lambda *, group: [EntryPoint(name, value, group) for name, value in points.get(group, {}).items()],
    )
    for table in (MERGE_METHODS, DIALECTS, SCORERS):
        monkeypatch.setattr(table, "_rows", dict(table._rows))
        monkeypatch.setattr(table, "_waiting", None)
    return points


@pytest.fixture
def pico(tmp_path, monkeypatch):
    """A saved base with two concepts in the registry."""
    monkeypatch.chdir(tmp_path)
    few = captions.captions("any")[:30]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: few)
    pipe = tiny.pico_sd()
    folder = tiny.save(pipe, tmp_path / "base").resolve()
    with Registry() as registry:
        for seed, (name, noun) in enumerate({"my_dog": "dog", "moongate": "gate"}.items()):
            concept = tiny.pico_concept(pipe, name, noun, seed=seed)
            concept = dataclasses.replace(concept, base_name=str(folder))
            registry.add(name, concept.to_bytes(), concept.summary())


def test_a_merge_method_of_another_package(pico):
    order = ("--prompt", "my_dog by a moongate", "--steps", 1, "--save", "both", "--merge-method", "halves")
    made = run("compose", "my_dog", "moongate", *order)
    assert made.exit_code == 0, made.output
    with Registry() as registry:
        both, dog = (read(registry, name) for name in ("both", "my_dog"))
        assert both.recipe["method"] == "halves" and both.recipe["share"] == 0.5
        assert both.delta.rank == 2 * dog.delta.rank
        assert rebuild("both", registry=registry).concept.to_bytes() == registry.read("both")
    refused = run("compose", "my_dog:0.5", "moongate", *order[:4], "--merge-method", "halves")
    assert refused.exit_code == 2 and "halves has no strength for each" in refused.output


def test_a_dialect_of_another_package(pico, tmp_path):
    done = run("export", "my_dog", "--for", "word-list", "--out", "files")
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "files" / "my_dog.json").read_text())
    assert about["words"] == {"my_dog": "<my_dog> dog"} and set(about["ranks"].values()) == {2}
    assert "word-list files leave out its word" in done.stderr
    assert run("export", "my_dog", "--for", "peft", "--out", "lora").exit_code == 0
    assert [file.name for file in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]


def test_a_scorer_of_another_package():
    pictures = [Image.new("RGB", (2, 2), shade) for shade in ("black", "white")]
    assert load_scorer("brightness").embed(pictures).flatten().tolist() == [0.0, 255.0]
    assert list(SCORERS) == ["subject", "attributes", "brightness"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compose", "a", "--prompt", "x", "--merge-method", "soft"), "called 'regmean' now"),
        (("compose", "a", "--prompt", "x", "--merge-method", "blend"), "choose one of regmean, closed-form"),
        (("export", "a", "--out", "x", "--for", "kohyaa"), "choose one of diffusers, comfyui"),
        (("export", "a", "--bundle", "x", "--for", "peft"), "--for belongs to --out"),
    ],
)
def test_a_name_that_is_not_there_is_one_sentence(words, said):
    result = run(*words)
    assert result.exit_code == 2 and said in result.output


def test_what_is_no_row_and_what_has_a_taken_name_is_refused(installed):
    installed["conceptkit.dialects"]["odd"] = "json:dumps"
    installed["conceptkit.merge_methods"]["odd"] = "json:dumps"
    installed["conceptkit.scorers"]["odd"] = "json:dumps"
    for find in (dialect_of, merge_method_of, load_scorer):
        with pytest.raises(ConceptError, match="'odd' is no .*; mend or uninstall its package"):
            find("odd")
    with pytest.raises(ConceptError, match="two merge methods called 'sum'"):
        MERGE_METHODS.register("sum", MergeMethod("sum", "another", lambda context: None))
    with pytest.raises(ConceptError, match="'x' refuses 'everything'"):
        MergeMethod("x", "", "y:z", refuses=frozenset({"everything"}))
