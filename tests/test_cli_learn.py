"""`conceptkit add` and its ways to learn, as a user types them."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from PIL import Image

from conceptkit.cli.main import main


@pytest.fixture
def asked(monkeypatch):
    """What the library was asked for, instead of learning."""
    from conceptkit.workflows import add as adding

    calls = []

    def learned(name, registry):
        entry = registry.add(name, name.encode(), {})
        picture = Image.new("RGB", (8, 8))
        return SimpleNamespace(
            entry=entry, preview=picture, seconds=1, bytes=7, notices=["told"], curve=picture
        )

    def add(name, photos, **options):
        calls.append((name, photos, options))
        return learned(name, options["registry"])

    def add_together(photos, **options):
        calls.append((photos, options))
        return [learned(name, options["registry"]) for name in [*photos, "both"]]

    monkeypatch.setattr(adding, "add", add)
    monkeypatch.setattr(adding, "add_together", add_together)
    return calls


def run(*words):
    return CliRunner().invoke(main, ["add", *map(str, words)])


def test_options_become_fields_of_the_recipe(asked, tmp_path):
    words = ["my_dog", "a", "--method", "dreambooth", "--adapter", "kv", "--sude", "--early-stop"]
    words += ["--device", "cpu", "--mixed-precision", "bf16"]
    result = run(
        *words, "--set", "learning_rate=1e-4", "--set", "validation_steps=5", "--resume", "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    ((name, photos, options),) = asked
    assert (name, photos, options["method"], options["resume"]) == (
        "my_dog",
        (Path("a"),),
        "dreambooth",
        True,
    )
    changes = options["changes"]
    assert (options["device"], changes["mixed_precision"]) == ("cpu", "bf16")
    assert (options["adapter"], options["rank"], options["sude"]) == ("kv", None, True)
    assert options["early_stopping"] and options["config"] is None
    assert (changes["learning_rate"], changes["validation_steps"]) == ("1e-4", "5")
    assert (tmp_path / "my_dog.png").is_file() and (tmp_path / "my_dog-curve.png").is_file()


def test_the_common_fields_have_options_of_their_own(asked, tmp_path):
    words = ["--config", "mine.toml", "--learning-rate", "0.01", "--max-train-steps", 7, "--rank", 3]
    words += ["--train-batch-size", 4, "--gradient-accumulation-steps", 2, "--gradient-checkpointing"]
    result = run("my_dog", "a", *words, "--set", "train_batch_size=6", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    options = asked[0][2]
    assert (options["config"], options["rank"], options["method"]) == (Path("mine.toml"), 3, None)
    assert options["changes"] == {
        "learning_rate": 0.01,
        "max_train_steps": 7,
        "train_batch_size": "6",
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
    }


def test_a_style_and_what_lies_beside_the_photos(asked, tmp_path):
    result = run("inky", "a", "--kind", "style", "--masks", "m", "--class-images", "p", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    options = asked[0][2]
    assert (options["kind"], options["masks"], options["class_images"]) == ("style", "m", "p")
    assert options["class_noun"] is None


def test_several_in_one_run(asked, tmp_path):
    given = ["my_dog=./a", "moongate=./b", "--class", "my_dog=dog", "--class", "moongate=gate"]
    beside = ["--masks", "moongate=./m", "--class-images", "my_dog=./p", "--class-images", "moongate=./q"]
    result = run("--joint", *given, *beside, "--name", "both", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    ((photos, options),) = asked
    assert list(photos) == ["my_dog", "moongate"] and Path(photos["moongate"]) == Path("b")
    assert options["class_nouns"] == {"my_dog": "dog", "moongate": "gate"} and options["name"] == "both"
    assert options["masks"] == {"moongate": "./m"}
    assert options["class_images"] == {"my_dog": "./p", "moongate": "./q"}
    assert result.stdout.count("Learned ") == 3 and result.stderr.count("told") == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--joint", "my_dog", "b=c"], "NAME=VALUE .* not 'my_dog'"),
        (["--joint", "a=1", "a=2"], "--joint was given a twice"),
        (["--joint", "a=1", "b=2", "--kind", "style"], "learn a style by itself"),
        (["--joint", "a=1", "b=2", "--masks", "m"], "--masks takes NAME=VALUE .* not 'm'"),
        (["my_dog", "a", "--masks", "m", "--masks", "n"], "are for --joint"),
        (["my_dog", "a", "--mixed-precision", "half"], "'half' is not known: choose one of"),
        (["my_dog", "a", "--name", "x"], "are for --joint"),
        (["my_dog", "a", "--class", "dog", "--class", "cat"], "are for --joint"),
        (["my_dog", "a", "--set", "lr"], "--set takes NAME=VALUE"),
        (["my_dog", "a", "--steps", "5", "--max-train-steps", "5"], "give one of them"),
        (["my_dog", "a", "--method", "magic"], "'magic' is no method; choose one of"),
    ],
)
def test_mistakes_are_one_sentence(asked, words, named):
    result = run(*words)
    assert result.exit_code == 2 and not asked

    assert re.search(named, " ".join(result.stderr.split())), result.stderr


@pytest.mark.parametrize("kept", [False, True])
def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path, kept):
    from conceptkit.workflows import add as adding
    from conceptkit.workflows import demo

    def stopped(*_, **options):
        stop = KeyboardInterrupt()
        if kept:
            stop.add_note(adding.UNFINISHED)
        raise stop

    monkeypatch.setattr(adding, "add", stopped)
    monkeypatch.setattr(demo, "run", stopped)
    for words, way in (
        (["add", "my_dog", "a"], "give the same command with --resume to go on."),
        (["demo", "--out", str(tmp_path)], f"`conceptkit demo --out {tmp_path}` goes on."),
    ):
        result = CliRunner().invoke(main, words)
        ways = f"what was learned so far is kept: {way}" if kept else "nothing half-written was kept."
        assert (result.exit_code, result.stderr) == (130, f"\nStopped; {ways}\n")


def test_the_demo_goes_on_from_a_checkpoint(monkeypatch, tmp_path):
    """And learns anew where the checkpoint is of something else."""
    from conceptkit.errors import ConceptError
    from conceptkit.registry.store import Registry
    from conceptkit.workflows import demo

    asked = []

    def learn(name, photos, **options):
        asked.append((name, bool(options.get("resume"))))
        if len(asked) == 2:
            raise ConceptError("it is of another run")
        return name

    monkeypatch.setattr(demo.add, "add", learn)
    with Registry(tmp_path) as registry:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "my_dog.safetensors").write_bytes(b"state")
        for _ in range(2):
            assert demo._learn(demo.PARTS[0], tmp_path, None, registry, print) == "my_dog"
        assert demo._learn(demo.PARTS[1], tmp_path, None, registry, print) == "moongate"
    assert asked == [("my_dog", True), ("my_dog", True), ("my_dog", False), ("moongate", False)]
