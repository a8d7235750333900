"""Mistakes, made with the real commands on a tiny pipeline: one sentence, exit code 2, nothing changed."""

import dataclasses
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from conceptkit import storybook
from conceptkit.base.families import FAMILIES
from conceptkit.cli.main import main
from conceptkit.concepts.concept import read
from conceptkit.features import caption_statistics
from conceptkit.features import captions as bases
from conceptkit.learn.config import DEFAULT, DEFAULT_CONFIGS
from conceptkit.registry import paths
from conceptkit.registry.store import Registry
from tests import tiny

STOPPED = "Stopped; nothing half-written was kept."


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def noise(path: Path, size: tuple[int, int] = (44, 36), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def put(pipe, name: str, noun: str, folder: Path) -> None:
    """A concept of random values, learned on the pipeline in `folder`."""
    concept = replace(tiny.pico_concept(pipe, name, noun, seed=len(name)), base_name=str(folder))
    with Registry() as registry:
        registry.add(name, concept.to_bytes(), concept.summary())


@pytest.fixture(scope="module")
def pipe():
    return tiny.pico_sd()


@pytest.fixture(scope="module")
def pico(pipe, tmp_path_factory) -> Path:
    return tiny.save(pipe, tmp_path_factory.mktemp("bases") / "pico").resolve()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """The folder where the commands run, with three photos of a dog, and learning that takes a moment."""
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        noise(tmp_path / "dogs" / f"{seed}.png", seed=seed)
    quick = replace(
        DEFAULT_CONFIGS[DEFAULT],
        train_batch_size=2,
        prior_batch_size=1,
        num_class_images=2,
        class_image_steps=1,
        num_augmented_views=4,
    )
    monkeypatch.setitem(DEFAULT_CONFIGS, DEFAULT, quick)
    few = bases.captions("any")[:30]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: few)
    return tmp_path


@pytest.fixture
def stored(pipe, pico) -> None:
    put(pipe, "my_dog", "dog", pico)
    put(pipe, "moongate", "gate", pico)


def state(*folders: Path) -> dict[str, object]:
    """Every file of the folders and the registry; databases as SQL, for looking changes their files."""
    Registry().close()
    found: dict[str, object] = {}
    for name in ("index.db", "blobs/packed.db"):
        database = sqlite3.connect(paths.home() / name)
        found[name] = list(database.iterdump())
        database.close()
    for file in (file for folder in (paths.home(), *folders) for file in folder.rglob("*")):
        if not file.name.startswith(("index.db", "packed.db")):
            found[str(file)] = file.read_bytes() if file.is_file() else None
    return found


@pytest.fixture
def refused(place) -> Callable[..., str]:
    """Run a command that must fail, and return its sentence."""

    def check(*arguments: object) -> str:
        before = state(place)
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert state(place) == before
        assert_one_sentence(result.stderr)
        return result.stderr

    return check


def assert_one_sentence(text: str, opening: str = "Error: ") -> None:
    """One line from a capital letter, or the value it is about, to a full stop."""
    assert text.startswith(opening) and text.endswith((".\n", "?\n")) and text.count("\n") == 1, text
    assert "Traceback" not in text
    said = text.removeprefix(opening)
    assert not re.match(r"[a-z]+\s", said), f"begins with a small letter: {text}"
    assert not re.search(r"[.?!] [A-Z]", said), f"more than one sentence: {text}"
    assert len(text) < 500


# photos


def empty(folder: Path) -> None:
    folder.mkdir()


def only_others(folder: Path) -> None:
    noise(folder / "deeper" / "0.png")
    noise(folder / ".hidden.png")
    (folder / "notes.txt").write_text("nothing to see")


def text_as_photo(folder: Path) -> None:
    noise(folder / "0.png")
    (folder / "text.jpg").write_text("This is no picture.\n" * 50)


def nothing_as_photo(folder: Path) -> None:
    noise(folder / "0.png")
    (folder / "nothing.jpg").touch()


def cut_short(folder: Path) -> None:
    noise(folder / "0.png")
    whole = noise(folder / "cut.jpg", (200, 200))
    whole.write_bytes(whole.read_bytes()[:3000])


def one_pixel(folder: Path) -> None:
    noise(folder / "0.png")
    noise(folder / "dot.png", (1, 1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (empty, ("No photos in my_photos", "put one JPEG, PNG or WebP or more there")),
        (only_others, ("No photos in my_photos", "subfolders are not read")),
        (text_as_photo, ("text.jpg cannot be recognised as a picture", "take it out")),
        (nothing_as_photo, ("nothing.jpg is empty", "take it out")),
        (cut_short, ("cut.jpg is damaged or cut short", "copy it again")),
        (one_pixel, ("dot.png is 1 x 1 pixels", "photos need 32 or more")),
        (lambda folder: None, ("my_photos does not exist", "name a folder of photos")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_photos(place, pico, refused, make, said):
    make(place / "my_photos")
    sentence = refused("add", "my_dog", "my_photos", "--class", "dog", "--base", pico, "--steps", 2)
    assert all(words in sentence for words in said), sentence


# names

BAD_NAMES = ["my dog", "my/dog", "../dog", "/dog", "d" * 300, "1dog", "dög", "my.dog", "my_dog@2", ""]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: name[:9] or "empty")
def test_names(stored, pico, refused, name):
    advice = "cannot be a concept's name: use a letter followed by at most 63 letters"
    adding = refused("add", name, "dogs", "--class", "dog", "--base", pico, "--steps", 2)
    assert advice in adding and name[:40] in adding
    if name:  # an empty one asks for nothing to be kept
        assert advice in refused("compose", "my_dog", "--prompt", "my_dog", "--save", name)


def test_a_bad_name_is_told_of_a_good_one(refused):
    assert "for example 'my_dog'" in refused("add", "my dog", "dogs")


def test_a_taken_name_and_what_its_sentence_advises(stored, place, pico, refused):
    learning = ("add", "my_dog", "dogs", "--base", pico, "--steps", 2)
    sentence = refused(*learning)
    assert "'my_dog' is already in the registry (version 1)" in sentence and "--new-version" in sentence
    assert "--new-version" in refused("compose", "my_dog", "--prompt", "my_dog", "--save", "moongate")

    result = run(*learning, "--new-version")
    assert result.exit_code == 0, result.output
    assert_one_sentence(result.stderr, "Note: ")
    assert "Learned my_dog@2" in result.stdout and (place / "pictures" / "my_dog.png").is_file()
    with Registry() as registry:
        assert [entry.version for entry in registry.versions("my_dog")] == [1, 2]


@pytest.mark.parametrize("command", [("compose", "--prompt", "my_dog"), ("export", "--out", "out")])
def test_unknown_concepts(stored, refused, command):
    def sentence(*names: str) -> str:
        return refused(command[0], *names, *command[1:])

    assert "no concept named 'my_dgo': did you mean 'my_dog'?" in sentence("my_dgo")
    assert "did you mean 'moongate'?" in sentence("my_dog", "moon_gate")
    assert "`conceptkit list` shows" in sentence("zzz")
    assert "'my_dog' has no version 7: ask for one of 1" in sentence("my_dog@7")
    assert "no version number after the '@'" in sentence("my_dog@new")
    assert "no concept named 'my dog'" in sentence("my dog")
    assert "my_dog is named twice" in sentence("my_dog", "my_dog")


def test_an_unknown_concept_in_an_empty_registry(refused):
    assert "teach it with `conceptkit add my_dog PHOTOS`" in refused(
        "compose", "my_dog", "--prompt", "my_dog"
    )


# prompts


def test_a_prompt_without_a_concept_is_warned_of_and_drawn(stored, place):
    result = run("compose", "my_dog", "moongate", "--prompt", "my_dog at night", "--steps", 1)
    assert result.exit_code == 0, result.output
    assert_one_sentence(result.stderr, "Note: ")
    assert "does not mention 'moongate': write the name where the thing should be" in result.stderr
    assert [file.name for file in (place / "pictures").iterdir()] == ["my_dog_at_night-0.png"]


def test_an_empty_prompt(stored, refused):
    assert "say what to draw" in refused("compose", "my_dog", "--prompt", "  ")


# bases


@pytest.mark.parametrize("other", [{"d": 48}, {"seed": 1}], ids=["other shapes", "other weights"])
@pytest.mark.parametrize("command", [("compose", "--prompt", "my_tower"), ("export", "--out", "out")])
def test_two_concepts_of_different_bases(stored, pico, tmp_path_factory, refused, other, command):
    there = tiny.pico_sd(**other)
    elsewhere = tiny.save(there, tmp_path_factory.mktemp("elsewhere") / "other").resolve()
    put(there, "my_tower", "tower", elsewhere)
    for base in ((), ("--base", pico)):
        sentence = refused(command[0], "my_dog", "my_tower", *command[1:], *base)
        assert sentence.startswith(f"Error: my_tower was learned on {elsewhere}")
        assert f"learn my_tower again on {pico}" in sentence


def test_a_concept_on_another_base(stored, tmp_path_factory, pico, refused):
    elsewhere = tiny.save(tiny.pico_sd(d=48), tmp_path_factory.mktemp("elsewhere") / "other").resolve()
    sentence = refused("compose", "my_dog", "--prompt", "my_dog", "--base", elsewhere)
    assert f"use {pico}, or learn my_dog again on {elsewhere}" in sentence


def test_a_damaged_concept(pico, refused):
    with Registry() as registry:
        registry.add("my_dog", b"not safetensors", {"kind": "subject"})
    advice = "my_dog@1 is stored as bytes that are not a concept; remove it with `conceptkit rm my_dog@1`"
    assert advice in refused("compose", "my_dog", "--prompt", "my_dog", "--base", pico)
    assert advice in refused("export", "my_dog", "--out", "out")


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def empty_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{}")


def cut_index(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(index.read_text()[:100])


def without_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def without_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def damaged_unet(folder: Path) -> None:
    cut(folder / "unet" / "diffusion_pytorch_model.safetensors")


def damaged_encoder(folder: Path) -> None:
    cut(folder / "text_encoder" / "model.safetensors")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    "spoil",
    [
        no_index,
        empty_index,
        cut_index,
        without_unet,
        without_weights,
        damaged_unet,
        damaged_encoder,
    ],
)
def test_a_base_that_is_no_pipeline(stored, place, pico, refused, spoil):
    shutil.copytree(pico, place / "my base")
    spoil(place / "my base")
    for command in (("add", "rex", "dogs", "--class", "dog"), ("compose", "my_dog", "--prompt", "my_dog")):
        sentence = refused(*command, "--base", "my base", "--steps", 2)
        assert "'my base'" in sentence
        assert re.search("give one with a model_index.json|use a text-to-image pipeline", sentence)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "nobody/nothing", "dogs/0.png"])
def test_a_base_that_is_not_there(refused, name):
    sentence = refused("add", "rex", "dogs", "--class", "dog", "--base", name)
    assert f"'{name}'" in sentence
    assert re.search(
        "give a diffusers folder|check the id and the network|give a .safetensors file or a folder", sentence
    )


# classes


def test_a_class_that_the_storybook_does_not_know(pico, refused, monkeypatch):
    row = dataclasses.replace(FAMILIES["storybook"], weights=Path(pico))
    monkeypatch.setitem(FAMILIES._rows, "storybook", row)
    listed = f"choose one of {', '.join(storybook.nouns())}."
    sentence = refused("add", "my_dog", "dogs", "--class", "unicorn", "--steps", 2)
    assert "storybook does not know the class 'unicorn'" in sentence and listed in sentence
    sentence = refused("storybook", "draw", "--class", "unicorn")
    assert "cannot draw a 'unicorn'" in sentence and "moongate" in sentence


def test_a_class_that_nobody_named(place, pico, refused):
    (place / "dogs").rename(place / "xyzzy")
    assert "'quux'" in (sentence := refused("add", "quux", "xyzzy", "--base", pico, "--steps", 2))
    assert "--class NOUN" in sentence


# Ctrl-C


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "moment", ["learn.prior_preservation._draw", "learn.losses.masked_mse", "workflows.add.preview"]
)
def test_ctrl_c_while_learning(stored, place, pico, monkeypatch, moment):
    learning = ("add", "my_dog", "dogs", "--new-version", "--base", pico, "--steps", 2)
    learning += ("--set", "prior_loss_weight=1", "--set", "num_class_images=4")
    before = kept(place)
    with monkeypatch.context() as patch:
        patch.setattr(f"conceptkit.{moment}", interrupt)
        result = run(*learning)
    learned = moment == "workflows.add.preview"
    stored = "Stopped; what was learned is stored; only its preview is missing."
    told = f"\n{stored if learned else STOPPED}\n"
    assert (result.exit_code, result.stderr) == (130, told)
    assert (kept(place) == before) is not learned
    assert run(*learning).exit_code == 0


def test_ctrl_c_while_drawing(stored, place, monkeypatch):
    drawing = ("compose", "my_dog", "--prompt", "my_dog", "--save", "best", "--steps", 2)
    before = kept(place)
    with monkeypatch.context() as patch:
        patch.setattr("diffusers.DDIMScheduler.step", interrupt)
        result = run(*drawing)
    assert (result.exit_code, result.stderr) == (130, f"\n{STOPPED}\n")
    assert kept(place) == before
    assert (done := run(*drawing)).exit_code == 0 and "does not mention" not in done.stderr
    with Registry() as registry:
        assert read(registry, "best").words.keys() == {"best"}


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be sent Ctrl-C alone there")
def test_ctrl_c_in_a_terminal(stored, place, pico):
    """The real thing: another process, stopped by the signal when its progress bar says that it learns."""
    learning = ("add", "rex", "dogs", "--class", "dog", "--steps", 1_000_000, "--base", pico)
    before = kept(place)
    process = subprocess.Popen(
        [sys.executable, "-m", "conceptkit", *map(str, learning)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "160"},  # a bar without a terminal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    assert process.stderr and process.stdout
    watchdog = threading.Timer(280, process.kill)
    watchdog.start()
    try:
        shown = b""
        while b"learning the word" not in shown and (chunk := os.read(process.stderr.fileno(), 4096)):
            shown += chunk
        process.send_signal(signal.SIGINT)
        rest, said = process.stderr.read(), process.stdout.read()
        code = process.wait()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", (shown + rest).decode())
    assert (code, said) == (130, b""), text
    (last,) = {line for line in text.splitlines() if line.startswith("Stopped; ")}
    assert text.splitlines()[-1] == last and text.count("Stopped;") == 1
    assert "Traceback" not in text and "Error" not in text
    if last == STOPPED:
        assert kept(place) == before
    else:  # a slow machine has a checkpoint by then
        assert last.endswith("give the same command with --resume to go on.")


def kept(place: Path) -> dict[str, object]:
    """The concepts and the files in `place`; prior sets and statistics may stay too, if they are whole."""
    with Registry() as registry:
        stored = {digest: whole for digest, _, whole in registry.blob_store.checked()}
        concepts = [entry for name in registry.list() for entry in registry.versions(name.name)]
    index = sqlite3.connect(paths.home() / "index.db")
    query = "select hash from versions union select preview from versions union select hash from assets"
    known = {row[0] for row in index.execute(query)}
    index.close()
    assert set(stored) == known - {None} and all(stored.values())
    return {"concepts": concepts} | {
        str(file): file.read_bytes() for file in place.rglob("*") if file.is_file()
    }
