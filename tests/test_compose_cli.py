"""`conceptkit compose` with strengths, ways, regions and heat maps, and merges that are composed again."""

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from conceptkit.cli.main import main
from conceptkit.features import caption_statistics, captions
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
    return tiny.save(pipe, tmp_path_factory.mktemp("base") / "pico").resolve()


@pytest.fixture(autouse=True)
def place(pipe, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = captions.captions("any")[:30]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: few)
    with Registry() as registry:
        for seed, (name, noun) in enumerate({"my_dog": "dog", "moongate": "gate"}.items()):
            concept = tiny.pico_concept(pipe, name, noun, seed=seed)
            concept = dataclasses.replace(concept, base_name=str(folder))
            registry.add(name, concept.to_bytes(), concept.summary())


PROMPT = ("--prompt", "my_dog by a moongate", "--steps", 1)


def test_a_merge_with_strengths_is_shown_and_composed_again():
    made = run("compose", "my_dog:0.8", "moongate@1", *PROMPT, "--save", "both", "--heatmap", "who.png")
    assert made.exit_code == 0, made.output
    assert "What each concept adds at the others' words" in made.stdout
    assert "my_dog keeps" in made.stdout
    assert png_metadata.read_metadata("who.png")["concepts"] == ["my_dog", "moongate"]
    assert Image.open("who.png").width > 200
    (picture,) = Path("pictures").glob("*.png")
    metadata = png_metadata.read_metadata(picture)
    assert metadata["weights"] == [0.8, 1.0] and metadata["concepts"] == ["my_dog@1", "moongate@1"]
    shown = run("show", "both", "--rebuild")
    assert shown.exit_code == 0, shown.output
    assert "my_dog@1:0.8, moongate@1" in shown.stdout
    assert "the same bytes" in shown.stderr
    refused = run("show", "my_dog", "--rebuild")
    assert refused.exit_code == 2 and "nothing to rebuild" in refused.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--merge-method", "routed", "--padding-delta", "sum"),
        ("--region", "my_dog=left", "--region", "moongate=0.5,0,1,1"),
        ("--auto-regions",),
    ],
    ids=" ".join,
)
def test_ways_and_places_draw_other_pictures(options):
    steps = 20 if "--auto-regions" in options else 1  # it looks on for five; then it must show
    assert run("compose", "my_dog", "moongate", *PROMPT, "--steps", steps, "--out", "a").exit_code == 0
    result = run("compose", "my_dog", "moongate", *PROMPT, "--steps", steps, "--out", "b", *options)
    assert result.exit_code == 0, result.output
    (plain,), (other,) = Path("a").iterdir(), Path("b").iterdir()
    assert Image.open(plain).tobytes() != Image.open(other).tobytes()


def test_a_name_that_comes_too_late_in_a_prompt_is_told():
    long = f"a photo of {'a red house in the snow with ' * 40} my_dog"
    result = run("compose", "my_dog", "--prompt", long, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "tokens of a prompt, and in 'a photo of a red" in result.stderr
    assert "name my_dog earlier, or shorten the prompt" in " ".join(result.stderr.split())


def test_side_by_side_says_what_each_window_is_told_and_the_picture_remembers():
    prompt = "my_dog in front of a moongate"
    result = run("compose", "my_dog", "moongate", "--prompt", prompt, "--steps", 1, "--side-by-side")
    assert result.exit_code == 0, result.output
    (path,) = Path("pictures").glob("*.png")
    told = png_metadata.read_metadata(path)["windows"]
    assert Image.open(path).size == (28, 16) and len(told) == 2
    assert f"Side by side: {told[0]} | {told[1]}" in result.stderr
    assert "moongate" not in told[0] and "my_dog" not in told[1]
    assert "'in front of' is not drawn; --one-frame may" in " ".join(result.stderr.split())
    one = run("compose", "my_dog", "moongate", *PROMPT, "--steps", 1, "--one-frame", "--out", "one")
    assert one.exit_code == 0 and "Side by side" not in one.stderr
    assert Image.open(next(Path("one").iterdir())).size == (16, 16)


def test_a_layout_is_told_and_drawn_and_the_picture_remembers():
    both = ("compose", "my_dog", "moongate", *PROMPT)
    result = run(*both, "--confine", "--layout", "layout.png", "--region", "my_dog=left", "-n", 2)
    assert result.exit_code == 0, result.output
    assert "Seed 1: my_dog is in the region that it was given." in result.stderr
    assert "Seed 0: moongate " in result.stderr
    assert Image.open("layout.png").width > 2 * 384
    path = next(Path("pictures").glob("*-1.png"))
    dog, gate = png_metadata.read_metadata(path)["layout"]
    assert dog["name"] == "my_dog" and dog["found"] and dog["box"][2] == 0.5 and gate["name"] == "moongate"
    refused = run(*both, "--layout", "layout.png")
    assert refused.exit_code == 2 and "layout.png" in refused.stderr
    alone = run("compose", "my_dog", "--prompt", "my_dog", "--steps", 1, "--layout", "none.png")
    assert alone.exit_code == 0 and "There is no layout" in alone.stderr and not Path("none.png").exists()


def test_words_are_read_apart_where_it_is_asked_for_and_the_picture_remembers():
    drawn = []
    for option, apart in ((), False), (("--isolate-concepts",), True), (("--no-isolate-concepts",), False):
        out = "-".join(("out", *option))
        result = run("compose", "my_dog", "moongate", *PROMPT, "--no-confine", *option, "--out", out)
        assert result.exit_code == 0, result.output
        (path,) = Path(out).iterdir()
        assert png_metadata.read_metadata(path)["isolate_concepts"] is apart
        drawn.append(Image.open(path).tobytes())
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("my_dog:0", "moongate"), "The weight of my_dog is 0"),
        (("my_dog:-1", "moongate"), "The weight of my_dog is -1"),
        (("my_dog:nan", "moongate"), "The weight of my_dog is nan"),
        (("my_dog:much", "moongate"), "'much' is no weight for my_dog"),
        (("my_dog", "moongate", "--region", "my_dog=left", "--region", "moongate=left"), "share 50.0%"),
        (("my_dog", "moongate", "--region", "my_cat=left"), "There is no my_cat in this picture"),
        (("my_dog", "moongate", "--region", "my_dog=0,0,2,1"), "leaves the picture"),
        (("my_dog", "moongate", "--region", "my_dog=left", "--auto-regions"), "choose one of them"),
        (
            ("my_dog", "moongate", "--merge-method", "joint"),
            "No concept was learned of my_dog and moongate together",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence):
    result = run("compose", *arguments, *PROMPT)
    assert result.exit_code == 2 and sentence in result.stderr, result.output
    assert result.stderr.count("\n") == 1
    assert not Path("pictures").exists()


def test_one_concept_is_exported_for_the_base_that_is_asked_for(folder, tmp_path):
    made = run("export", "my_dog", "--base", folder, "--out", tmp_path / "mine")
    assert made.exit_code == 0 and list((tmp_path / "mine").iterdir()), made.output
    other = tiny.save(tiny.pico_sd(d=48), tmp_path / "other")
    refused = run("export", "my_dog", "--base", other, "--out", tmp_path / "theirs")
    assert refused.exit_code == 2 and "my_dog" in refused.stderr and not (tmp_path / "theirs").exists()
    bundled = run("export", "my_dog", "--base", folder, "--bundle", tmp_path / "one.bundle")
    assert bundled.exit_code == 2 and "--base belongs to --out" in bundled.stderr
