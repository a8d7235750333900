"""The command line: what it prints, what it returns, and that it hands on what it was given."""

import json
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import conceptkit
from conceptkit.cli.compose import slug
from conceptkit.cli.main import main
from conceptkit.errors import BadPhotos
from conceptkit.pictures import png_metadata
from conceptkit.registry.store import Registry

SUMMARY = {"kind": "subject", "noun": "dog", "base_name": "storybook", "tokens": ["<my_dog>"], "rank": 8}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def put(name: str, data: bytes = b"bytes", **summary: object) -> None:
    with Registry() as registry:
        registry.add(name, data, SUMMARY | summary, new_version=True)


@pytest.fixture
def fake(monkeypatch):
    """`fake("merging.compose", compose=...)` stands in for a room, also where it was imported before."""

    def install(room: str, **contents: object) -> None:
        module = ModuleType(f"conceptkit.{room}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, leaf = module.__name__.rpartition(".")
        if parent != "conceptkit":
            monkeypatch.setitem(vars(import_module(parent)), leaf, module)
        else:
            monkeypatch.setitem(vars(conceptkit), leaf, module)

    return install


@pytest.fixture
def rooms(fake):
    """Fakes of all rooms that need torch; what they were called with is in `calls`."""
    calls: dict[str, object] = {}
    picture = Image.new("RGB", (8, 8), "teal")

    def add(name, photos, *, registry, progress, **options):
        calls["add"] = {"name": name, "photos": photos, **options}
        progress(1, 2, "halfway")
        entry = registry.add(name, b"learned", SUMMARY, new_version=options["new_version"])
        return SimpleNamespace(
            entry=entry,
            preview=picture,
            seconds=61.7,
            bytes=7,
            notices=["These look like photographs."],
            curve=None,
        )

    def pipe(prompt, *, generator, callback_on_step_end, **options):
        calls.setdefault("drawn", []).append((prompt, generator.initial_seed(), options))
        callback_on_step_end(None, 0, 0, {})
        return SimpleNamespace(images=[picture])

    def compose(*names, **options):
        calls["compose"] = (names, options)
        concept = SimpleNamespace(
            words={name.partition("@")[0]: "..." for name in names},
            called=lambda name: concept,
            to_bytes=lambda: b"merged",
            summary=lambda: SUMMARY | {"kind": "merge", "parents": list(names)},
        )
        return SimpleNamespace(concept=concept, report=SimpleNamespace(text=lambda: "kept 99 %"))

    class Attachment:
        read_apart = False

        def clauses(self, prompt):
            return {}

        def __enter__(self):
            calls["attached"] = True
            return self

        def __exit__(self, *_):
            calls["attached"] = False

    def load(name, device=None):
        calls["base"], calls["device"] = name, device
        return SimpleNamespace(name=name, pipe=pipe, guidance=3.5)

    def export(what, out):
        calls["export"] = what
        return [out / "pytorch_lora_weights.safetensors"]

    def draw_subject(noun, seed, count, out):
        calls["subject"] = (noun, seed, count)
        return [out / f"{i}.png" for i in range(count)]

    fake("workflows.add", add=add)
    fake("base.pipeline", load=load)
    fake("merging.compose", compose=compose)

    @contextmanager
    def guided(base, guidance, pag):
        yield base.pipe, {"guidance_scale": guidance or base.guidance} | ({"pag_scale": pag} if pag else {})

    fake("inference.attach", attach=lambda pipe, merge, **how: Attachment())
    fake("inference.generate", guided=guided)
    fake("concepts.prompt_words", mentioned=lambda prompt, words: {word for word in words if word in prompt})
    fake("concepts.concept", read=lambda registry, name: registry.read(name))
    fake("formats.diffusers", export=export)
    fake("workflows.demo", run=lambda out, progress: calls.update(demo=out))
    fake("storybook", draw_subject=draw_subject)
    return calls


# help


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    for name, command in group.commands.items():
        inner = (*path, name)
        found += commands(command, inner) if isinstance(command, click.Group) else [inner]
    return found


@pytest.mark.parametrize("path", commands(main), ids=" ".join)
def test_every_help_has_an_example_that_parses(path):
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert "..." not in result.output.partition("Commands:")[2]
    example = result.output.partition("Example:\n")[2].splitlines()[0].split()
    assert example[: 1 + len(path)] == ["conceptkit", *path]


def test_version_and_python_dash_m():
    assert run("--version").output == f"conceptkit, version {conceptkit.__version__}\n"
    output = subprocess.run(
        [sys.executable, "-m", "conceptkit", "list"], capture_output=True, text=True, check=True
    )
    assert output.stdout.startswith("No concepts yet")


# list, show, rm


def test_list():
    assert "conceptkit add NAME PHOTOS" in run("list").output
    put("my_dog", b"x" * 12_345)
    put("both", b"y" * 2_345_678, kind="merge", noun=None, parents=["my_dog", "moongate"])
    lines = run("list").output.splitlines()
    assert lines[0].split() == ["NAME", "VERSION", "KIND", "CLASS", "BASE", "SIZE", "CREATED"]
    assert lines[1].startswith("both    1        merge    my_dog + moongate  storybook  2.3 MB")
    assert lines[2].startswith("my_dog  1        subject  dog                storybook  12.3 kB")


def test_list_json():
    assert json.loads(run("list", "--json").output) == []
    put("my_dog")
    (entry,) = json.loads(run("list", "--json").output)
    assert (entry["name"], entry["version"], entry["summary"]) == ("my_dog", 1, SUMMARY)


def test_show():
    put("my_dog")
    put("my_dog")
    output = run("show", "my_dog").output
    assert output.startswith("my_dog@2\n")
    for line in ("class     dog", "base      storybook", "tokens    <my_dog>", "versions  1, 2"):
        assert line in output
    shown = json.loads(run("show", "my_dog@1", "--json").output)
    assert (shown["version"], shown["versions"]) == (1, [1, 2])


def test_show_writes_the_preview(tmp_path):
    put("my_dog")
    result = run("show", "my_dog", "--preview", tmp_path / "a.png")
    assert result.exit_code == 2 and "without a preview" in result.stderr
    with Registry() as registry:
        registry.set_preview("my_dog", 1, b"png")
    assert run("show", "my_dog", "--preview", tmp_path / "new" / "a.png").exit_code == 0
    assert (tmp_path / "new" / "a.png").read_bytes() == b"png"


def test_rm_removes_all_it_names_or_nothing():
    for name in ("a", "b", "c"):
        put(name)
    result = run("rm", "a", "bb")
    assert result.exit_code == 2 and "did you mean 'b'" in result.stderr
    assert run("rm", "a", "a@1", "b").output == "Removed a@1, b@1.\n"
    assert [entry["name"] for entry in json.loads(run("rm", "c", "--json").output)] == ["c"]
    assert json.loads(run("list", "--json").output) == []


# the road


def test_add(rooms, tmp_path):
    result = run("add", "my_dog", "photos", "more", "--class", "dog", "--steps", 9, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert rooms["add"] == {
        "name": "my_dog",
        "photos": (Path("photos"), Path("more")),
        "noun": "dog",
        "base": "storybook",
        "device": "auto",
        "new_version": False,
        "seed": 0,
        "steps": 9,
        "rank": None,
        "method": "custom",
        "adapter": None,
        "kind": "subject",
        "changes": {},
        "masks": None,
        "prior_photos": None,
        "resume": False,
    }
    assert "Learned my_dog@1 in 62 s; it takes 0.0 kB." in result.stdout
    assert "Note: These look like photographs." in result.stderr
    assert (tmp_path / "out" / "my_dog.png").is_file()


def test_add_refuses_a_taken_or_bad_name_before_it_learns(rooms):
    put("my_dog")
    result = run("add", "my_dog", "photos")
    assert result.exit_code == 2 and "--new-version" in result.stderr
    assert run("add", "my dog", "photos").exit_code == 2
    assert "add" not in rooms


def test_compose(rooms, tmp_path):
    put("my_dog")
    put("moongate")
    prompt = "my_dog in front of a Wall"
    result = run(
        "compose", "my_dog@1", "moongate", "--prompt", prompt, "-n", 2, "--seed", 5, "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    assert rooms["compose"][0] == ("my_dog@1", "moongate")
    options = {"num_inference_steps": 25, "guidance_scale": 3.5}
    assert rooms["drawn"] == [(prompt, 5, options), (prompt, 6, options)]
    assert rooms["attached"] is False
    metadata = png_metadata.read_metadata(tmp_path / "my_dog_in_front_of_a_wall-6.png")
    assert metadata["concepts"] == ["my_dog@1", "moongate@1"] and metadata["seed"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "my_dog_in_front_of_a_wall-5.png",
        "my_dog_in_front_of_a_wall-6.png",
        "my_dog_in_front_of_a_wall-sheet.png",
    ]
    assert "does not mention 'moongate'" in result.stderr
    assert result.stdout.endswith("kept 99 %\n")
    run("compose", "my_dog", "--prompt", prompt, "--seed", 5, "--guidance", 4, "--out", tmp_path)
    assert (tmp_path / "my_dog_in_front_of_a_wall-5-2.png").is_file()
    assert rooms["drawn"][-1][2]["guidance_scale"] == 4
    run("compose", "my_dog", "--prompt", prompt, "--seed", 9, "--pag", 2, "--out", tmp_path)
    assert rooms["drawn"][-1][2]["pag_scale"] == 2
    metadata = png_metadata.read_metadata(tmp_path / "my_dog_in_front_of_a_wall-9.png")
    assert (metadata["guidance"], metadata["pag"]) == (3.5, 2)


def test_compose_saves_the_merge(rooms, tmp_path):
    put("my_dog", base_name="some/base")
    result = run("compose", "my_dog", "--prompt", "my_dog", "--save", "best", "--out", tmp_path)
    assert "Stored best@1." in result.output and rooms["base"] == "some/base"
    with Registry() as registry:
        assert registry.read("best") == b"merged"
    del rooms["compose"]
    assert run("compose", "my_dog", "--prompt", "my_dog", "--save", "best").exit_code == 2
    assert "compose" not in rooms


def test_compose_knows_before_it_loads_anything(rooms):
    put("my_dog")
    result = run("compose", "my_dgo", "--prompt", "my_dog")
    assert result.exit_code == 2 and "did you mean 'my_dog'" in result.stderr
    result = run("compose", "my_dog", "--prompt", " ")
    assert result.exit_code == 2 and "empty prompt" in result.stderr
    assert "base" not in rooms


def test_export(rooms, tmp_path):
    put("my_dog", b"one")
    put("moongate", b"two")
    assert "pytorch_lora_weights" in run("export", "my_dog", "--out", tmp_path / "x").output
    assert rooms["export"] == b"one" and "compose" not in rooms
    run("export", "my_dog", "moongate", "--out", tmp_path / "y")
    assert rooms["compose"][0] == ("my_dog", "moongate")


def test_demo_and_draw(rooms, tmp_path):
    assert run("demo", "--out", tmp_path).output == f"Wrote {tmp_path / 'contact_sheet.png'}\n"
    assert rooms["demo"] == tmp_path
    assert run("storybook", "draw", "--class", "cat", "--seed", 7, "--out", tmp_path, "-n", 2).exit_code == 0
    assert rooms["subject"] == ("cat", 7, 2)


def test_slugs_are_short_file_names():
    assert slug("My_Dog, in the 'snow'!") == "my_dog_in_the_snow"
    assert slug("/..") == "picture"
    assert len(slug("a very long prompt " * 9)) <= 48


# errors


def failing(error: BaseException):
    def add(*_, **__):
        raise error

    return add


def test_a_mistake_is_one_sentence_and_exit_code_2(rooms, fake):
    fake("workflows.add", add=failing(BadPhotos("There are no photos in 'x': name a folder with some.")))
    result = run("add", "my_dog", "x")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: There are no photos in 'x': name a folder with some.\n",
    )
    for debugging in (run("--debug", "add", "my_dog", "x"), run("add", "my_dog", "x", "--debug")):
        assert debugging.exit_code == 2 and "Traceback" in debugging.stderr


def test_the_unexpected_is_exit_code_1(rooms, fake):
    fake("workflows.add", add=failing(ValueError("odd")))
    result = run("add", "my_dog", "x")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: unexpectedly, ValueError: odd; run it again with --debug to see where\n",
    )
    assert "Traceback" in run("add", "my_dog", "x", "--debug").stderr
