"""The command line: what it prints, what it returns, and that it hands on what it was given."""

import json
import os
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import conceptkit
from conceptkit.base.load_options import LoadOptions
from conceptkit.cli import add_distributed
from conceptkit.cli.main import main
from conceptkit.errors import BadPhotos
from conceptkit.pictures import png_metadata
from conceptkit.registry.store import Registry
from conceptkit.workflows.draw_request import slug

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

    def carry_out(request, registry, *, base, device, loading, progress, on_picture, on_notice):
        calls["compose"], calls["base"], calls["device"], calls["loading"] = request, base, device, loading
        progress(1, 2, "drawing")
        on_notice("The prompt does not mention 'moongate'.")
        drawn = [
            SimpleNamespace(picture=picture, seed=seed, metadata={"seed": seed}) for seed in request.seeds
        ]
        for one in drawn:
            on_picture(one)
        entry = registry.add(request.save, b"merged", SUMMARY) if request.save else None
        report = SimpleNamespace(text=lambda: "kept 99 %", interference=(), kept=(1, 2))
        return SimpleNamespace(
            pictures=drawn,
            merge=SimpleNamespace(report=report),
            entry=entry,
            sheet=lambda: picture,
            sheet_metadata={"seeds": list(request.seeds)},
        )

    def export(what, out, *, base, registry, dialect, force, with_names, progress):
        calls["export"] = (what, base)
        return SimpleNamespace(files=[out / "pytorch_lora_weights.safetensors"], notices=["It is smaller."])

    def draw_subject(noun, seed, count, out, *, force):
        calls["subject"] = (noun, seed, count)
        return [out / f"{i}.png" for i in range(count)]

    fake("workflows.add", add=add)
    fake("workflows.compose", carry_out=carry_out, DrawnPicture=SimpleNamespace)
    fake("workflows.export", export=export)
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
    assert lines[1].startswith("both    1        merge    my_dog@1 + moongate  storybook  2.3 MB")
    assert lines[2].startswith("my_dog  1        subject  dog                  storybook  12.3 kB")


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
    assert run("rm", "a", "a@1", "b").stdout.startswith("Removed a@1, b@1.\n")
    assert [entry["name"] for entry in json.loads(run("rm", "c", "--json").stdout)] == ["c"]
    assert json.loads(run("list", "--json").output) == []


# the road


def test_add(rooms, tmp_path):
    result = run("add", "my_dog", "photos", "more", "--class", "dog", "--steps", 9, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert rooms["add"] == {
        "name": "my_dog",
        "photos": (Path("photos"), Path("more")),
        "class_noun": "dog",
        "base": "storybook",
        "device": "auto",
        "dtype": "fp32",
        "quantization": None,
        "new_version": False,
        "seed": 0,
        "steps": 9,
        "rank": None,
        "method": None,
        "adapter": None,
        "config": None,
        "sude": False,
        "early_stopping": False,
        "kind": "subject",
        "changes": {},
        "masks": None,
        "class_images": None,
        "resume": False,
        "size": "full",
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
    asked = rooms["compose"]
    assert asked.concepts == ("my_dog@1", "moongate") and list(asked.seeds) == [5, 6]
    assert (asked.num_inference_steps, asked.guidance_scale, asked.pag_scale) == (25, None, None)
    metadata = png_metadata.read_metadata(tmp_path / "my_dog_in_front_of_a_wall-6.png")
    assert metadata == {"seed": 6}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "my_dog_in_front_of_a_wall-5.png",
        "my_dog_in_front_of_a_wall-6.png",
        "my_dog_in_front_of_a_wall-sheet.png",
    ]
    assert "does not mention 'moongate'" in result.stderr
    assert result.stdout.endswith("kept 99 %\n")
    run("compose", "my_dog", "--prompt", prompt, "--seed", 5, "--guidance-scale", 4, "--out", tmp_path)
    assert (tmp_path / "my_dog_in_front_of_a_wall-5-2.png").is_file()
    assert rooms["compose"].guidance_scale == 4
    run("compose", "my_dog", "--prompt", prompt, "--pag-scale", 2, "--base", "some/base", "--out", tmp_path)
    assert rooms["compose"].pag_scale == 2 and rooms["base"] == "some/base"


def test_compose_hands_on_how_to_draw(rooms, tmp_path):
    put("my_dog")
    words = ("compose", "my_dog", "--prompt", "my_dog", "--out", tmp_path)
    result = run(
        *words, "--negative-prompt", "red", "--width", 768, "--height", 512, "--scheduler", "euler_a",
        "--batch-size", 4, "--true-cfg-scale", 2, "--num-inference-steps", 9, "--dtype", "bf16", "--offload",
        "model", "--quantization", "bnb-4bit",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    asked = rooms["compose"]
    assert (asked.negative_prompt, asked.width, asked.height) == ("red", 768, 512)
    assert (asked.scheduler, asked.batch_size, asked.true_cfg_scale) == ("euler_a", 4, 2)
    assert asked.num_inference_steps == 9
    assert rooms["loading"] == LoadOptions("bf16", "bnb-4bit", "model")


def test_compose_reads_settings_from_a_file_and_options_go_before_them(rooms, tmp_path):
    put("my_dog")
    file = tmp_path / "draw.toml"
    file.write_text(
        'scheduler = "heun"\nwidth = 768\nguidance_scale = 5\nbase = "some/base"\ndtype = "fp16"\n'
        'side_by_side = false\nregions = ["my_dog=left"]\n'
    )
    words = ("compose", "my_dog", "--prompt", "my_dog", "--out", tmp_path, "--config", file)
    result = run(*words, "--width", 512)
    assert result.exit_code == 0, result.output
    asked = rooms["compose"]
    assert (asked.scheduler, asked.width, asked.guidance_scale) == ("heun", 512, 5)
    assert (asked.side_by_side, asked.regions) == (False, ("my_dog=left",))
    assert (rooms["base"], rooms["loading"]) == ("some/base", LoadOptions("fp16"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("with = 3", "a drawing has no setting 'with'; did you mean 'width'?"),
        ('width = "wide"', "width = 'wide' makes no sense; give a whole number"),
        ("width = true", "width = True makes no sense; give a whole number"),
        ("auto_regions = 1", "auto_regions = 1 makes no sense; give true or false"),
        ('regions = "left"', "give a list of texts"),
        ('guidance_scale = "4"', "give a number"),
        ("scheduler = 3", "give a text in quotes"),
        ("width", "is no TOML"),
    ],
)
def test_a_mistake_in_a_file_of_settings_is_one_sentence(rooms, tmp_path, text, sentence):
    put("my_dog")
    file = tmp_path / "draw.toml"
    file.write_text(text)
    result = run("compose", "my_dog", "--prompt", "my_dog", "--config", file)
    assert result.exit_code == 2 and sentence in " ".join(result.stderr.split()), result.stderr
    assert "compose" not in rooms


def test_compose_saves_the_merge(rooms, tmp_path):
    put("my_dog")
    result = run("compose", "my_dog", "--prompt", "my_dog", "--save", "best", "--out", tmp_path)
    assert "Stored best@1." in result.output
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
    assert "compose" not in rooms


def test_a_command_leaves_the_process_as_it_was(rooms):
    before = (list(warnings.filters), dict(os.environ), sys.stdout)
    run("list")
    assert (list(warnings.filters), dict(os.environ), sys.stdout) == before


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_first_one_speaks(rooms, tmp_path, monkeypatch, capsys, rank):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.chdir(tmp_path)
    out = sys.stdout
    with pytest.raises(SystemExit) as stopped:
        add_distributed.add(["my_dog", "photos"])
    assert stopped.value.code in (0, None) and sys.stdout is out
    assert ("Learned my_dog@1" in capsys.readouterr().out) == (rank == "0")
    assert Path("pictures").exists() == (rank == "0")


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        (("compose", "my_dog", "--prompt", "x"), "--how", "--merge-method"),
        (("compose", "my_dog", "--prompt", "x"), "--separate", "--auto-regions"),
        (("compose", "my_dog", "--prompt", "x"), "--guidance", "--guidance-scale"),
        (("list",), "--larger", "--min-size"),
    ],
)
def test_an_option_under_its_old_name_says_the_new_one(command, old, new):
    result = run(*command, old, "x")
    assert result.exit_code == 2 and f"{old} is called {new}" in result.stderr


def test_export(rooms, tmp_path):
    put("my_dog", b"one")
    put("moongate", b"two")
    assert "pytorch_lora_weights" in run("export", "my_dog", "--out", tmp_path / "x").output
    assert rooms["export"] == (("my_dog",), None)
    result = run("export", "my_dog", "moongate", "--base", "some/base", "--out", tmp_path / "y")
    assert rooms["export"] == (("my_dog", "moongate"), "some/base")
    assert "It is smaller." in result.stderr


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
