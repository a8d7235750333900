"""The commands on a real, if tiny, pipeline: concepts in the registry become pictures and files."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from conceptkit.cli.main import main
from conceptkit.pictures import png_metadata
from conceptkit.registry.store import Registry
from tests import tiny


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pipe():
    return tiny.pico_sd()


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory) -> Path:
    return tiny.save(pipe, tmp_path_factory.mktemp("base") / "pico")


@pytest.fixture
def stored(pipe) -> None:
    with Registry() as registry:
        for seed, (name, noun) in enumerate({"my_dog": "dog", "moongate": "gate"}.items()):
            concept = tiny.pico_concept(pipe, name, noun, seed=seed)
            registry.add(name, concept.to_bytes(), concept.summary())


def test_compose_draws_the_same_pictures_again(stored, folder, tmp_path):
    arguments = ("compose", "my_dog", "moongate", "--prompt", "my_dog by a moongate", "-n", 2, "--steps", 2)
    for out in ("a", "b"):
        result = run(*arguments, "--base", folder, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
        assert "my_dog keeps" in result.stdout
        notes = [line for line in result.stderr.splitlines() if "Note" in line]
        assert all("was not found: the base drew no" in line for line in notes), "a base of noise draws none"
    first, second, sheet = sorted((tmp_path / "a").iterdir())
    assert [path.name for path in (first, second)] == [
        "my_dog_by_a_moongate-0.png",
        "my_dog_by_a_moongate-1.png",
    ]
    assert first.read_bytes() != second.read_bytes()
    assert first.read_bytes() == (tmp_path / "b" / first.name).read_bytes()
    metadata = png_metadata.read_metadata(second)
    assert metadata["prompt"] == "my_dog by a moongate" and metadata["seed"] == 1
    assert metadata["concepts"] == ["my_dog@1", "moongate@1"]
    assert Image.open(sheet).width > 400


def test_a_saved_merge_is_a_concept_too(stored, folder, tmp_path):
    prompt = ("--prompt", "my_dog by a moongate", "--steps", 1, "--base", folder)
    assert (
        run("compose", "my_dog", "moongate", *prompt, "--save", "both", "--out", tmp_path / "a").exit_code
        == 0
    )
    assert "my_dog@1, moongate@1" in run("show", "both").output
    result = run("compose", "both", *prompt, "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    (a,), (b,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    assert Image.open(a).tobytes() == Image.open(b).tobytes()


def test_export_writes_what_plain_diffusers_reads(stored, folder, tmp_path):
    assert run("export", "my_dog", "--out", tmp_path / "one").exit_code == 0
    result = run("export", "my_dog", "moongate", "--base", folder, "--out", tmp_path / "two")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert {"pytorch_lora_weights.safetensors", "README.md"} < names
    assert run("export", "my_dog", "--out", tmp_path / "one").exit_code == 0, "the same bytes"
    again = run("export", "moongate", "--out", tmp_path / "one")
    assert again.exit_code == 2 and "already holds files" in again.stderr
