"""What commands say of something misspelt, missing or there already: the next thing to do, and it works."""

import re
import shlex

import pytest
from click.testing import CliRunner

from conceptkit.base.loading import locate
from conceptkit.cli.main import main
from conceptkit.errors import BadBase, BadRecipe, ConceptError
from conceptkit.files import fill_folder
from conceptkit.learn.config import config_for
from conceptkit.registry.catalogue import labels
from conceptkit.registry.names import choose
from conceptkit.registry.store import Registry
from tests.blobs import PNG, blob
from tests.commands import run


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPTKIT_HOME", str(tmp_path / "home"))
    with Registry() as registry:
        registry.add("my_cat", blob("my_cat"), {"kind": "subject", "noun": "cat", "base_name": "storybook"})
        about = {"kind": "subject", "noun": "cat", "parents": ["my_cat@1"], "weights": []}
        registry.add("my_cat", blob("my_cat", 1), about, new_version=True)
        labels.tag(registry, "my_cat", ["garden"])


def refused(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("add", "a", "b", "--size", "tny"), "tiny"),
        (("shrink", "my_cat", "--size", "tny"), "tiny"),
        (("add", "a", "b", "--method", "dreamboth"), "dreambooth"),
        (("compose", "a", "--prompt", "a", "--scheduler", "eulr"), "euler"),
        (("compose", "a", "--prompt", "a", "--merge-method", "regmeen"), "regmean"),
        (("export", "a", "--out", "x", "--for", "a111"), "a1111"),
    ],
)
def test_the_nearest_word_comes_first(words, near):
    said = refused(*words)
    assert f"did you mean '{near}'? If not, choose one of " in said


def test_of_many_words_only_the_nearest_is_named():
    with pytest.raises(BadRecipe, match=r"no field 'rnk'; did you mean 'rank'\?$"):
        config_for(changes={"rnk": "3"})
    assert choose("zzz", ["a", "b"]) == "choose one of a, b"
    with pytest.raises(BadBase, match="did you mean 'storybook'?"):
        locate("storybok")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("search", "gardn"), "Nothing has gardn; did you mean garden?"),
        (("search", "Garden", "my", "cta"), "Nothing has Garden and my and cta; did you mean garden my cat?"),
        (("search", "xylophone"), "Nothing has xylophone; `conceptkit list` shows what there is."),
        (("search", "garden", "--tag", "gardn"), "Nothing has garden; did you mean --tag garden?"),
        (("list", "--class", "catt"), "No concept is like that: did you mean --class cat?"),
        (("list", "--tag", "zzz"), "No concept is like that: `conceptkit list` shows what there is."),
    ],
)
def test_what_is_not_found_has_a_nearest_word(words, said):
    assert run(*words).strip() == said


def test_of_no_preview_a_command_that_works_is_named(tmp_path):
    said = refused("show", "my_cat", "--preview", tmp_path / "a.png")
    command = re.search("`(conceptkit compose .*?)`", said)[1]
    name, options = shlex.split(command)[2], shlex.split(command)[3:]
    assert (name, options) == ("my_cat@2", ["--prompt", "a picture of my_cat"])
    with Registry() as registry:
        registry.set_preview("my_cat", 1, PNG)
    said = refused("show", "my_cat", "--preview", tmp_path / "a.png")
    command = shlex.split(
        re.search("`(conceptkit show .*?)`", said)[1].replace("FILE", str(tmp_path / "a.png"))
    )
    run(*command[1:])
    assert (tmp_path / "a.png").read_bytes() == PNG


def test_a_version_that_was_made_smaller_is_no_merge():
    assert re.search(r"made smaller from +my_cat@1", run("show", "my_cat"))


def test_export_names_all_its_targets():
    said = refused("export", "my_cat")
    assert all(option in said for option in ("--out", "--to", "--bundle"))


def test_equal_bytes_are_no_overwriting(tmp_path):
    fill_folder(tmp_path, {"embeddings/my_cat.safetensors": b"cat", "lora": b"one"})
    fill_folder(tmp_path, {"embeddings/my_cat.safetensors": b"cat", "b": b"two"})
    with pytest.raises(ConceptError, match="b is never overwritten"):
        fill_folder(tmp_path, {"lora": b"one", "b": b"2wo"})
    (tmp_path / "c").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConceptError, match="c is never overwritten"):
        fill_folder(tmp_path, {"c": b"one"})
    assert (tmp_path / "b").read_bytes() == b"two"


@pytest.mark.parametrize("photos", [False, True])
def test_a_bundle_says_what_of_photos_is_in_it(tmp_path, photos):
    with Registry() as registry:
        provenance = {"seed": 0} | ({"photos": ["holiday.jpg"]} if photos else {})
        registry.add("old", blob("old", 3, provenance=provenance), {"kind": "subject"})
        registry.set_preview("old", 1, PNG)
        labels.tag(registry, "old", ["a", "b"])
    result = CliRunner().invoke(main, ["export", "old", "--bundle", str(tmp_path / "a.bundle")])
    assert result.exit_code == 0, result.output
    assert ("takes the names of its photos along" in result.stderr) is photos
    named = "the hashes and, as noted, names" if photos else "the hashes alone"
    assert f"In it are 1 preview, 2 tags, 0 notes, and of photos {named}." in result.stdout
