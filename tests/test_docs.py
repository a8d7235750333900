"""The documents are true: their blocks run, their commands are understood, generated pages are current."""

import ast
import dataclasses
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from diffusers import DDIMScheduler

import conceptkit
from conceptkit import storybook
from conceptkit.base import families
from conceptkit.cli import configuration_reference, reference
from conceptkit.cli.main import main
from conceptkit.compression import sensitivity
from conceptkit.features import caption_statistics, captions
from conceptkit.learn.config import DEFAULT_CONFIGS, TrainConfig
from conceptkit.learn.methods.table import adapters
from tests import documents, learning, tiny
from tests.documents import PAGES, ROOT, Block

WALKS = [ROOT / "README.md", *sorted((ROOT / "docs" / "tutorial").glob("*.md"))]
"""Pages whose blocks are run, in order."""
HOME = ROOT / "docs" / "index.md"
HUB_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def short_recipes(monkeypatch):
    """All methods in a few steps, and sizes from few pictures."""
    for name in DEFAULT_CONFIGS:
        monkeypatch.setitem(DEFAULT_CONFIGS, name, learning.method(name))
    monkeypatch.setattr(sensitivity, "PICTURES", 8)


@pytest.fixture(scope="session")
def pico(tmp_path_factory) -> Path:
    return tiny.save(tiny.pico_sd(), tmp_path_factory.mktemp("base") / "pico")


@pytest.fixture
def pico_storybook(pico, monkeypatch):
    """A base that draws noise in the place of the storybook, and few captions."""
    monkeypatch.setattr(storybook, "path", lambda part="pipeline": str(pico))
    row = replace(families.FAMILIES["storybook"], weights=pico)
    monkeypatch.setitem(families.FAMILIES._rows, "storybook", row)
    texts = captions.captions("any")[:40]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: texts)
    set_timesteps = DDIMScheduler.set_timesteps

    def few(scheduler, num_inference_steps, *args, **options):
        set_timesteps(scheduler, min(num_inference_steps, 2), *args, **options)

    monkeypatch.setattr(DDIMScheduler, "set_timesteps", few)


@pytest.fixture
def desk(tmp_path, pico, monkeypatch):
    """A folder to work in: the examples, photos, and small bases under the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    documents.enter(tmp_path / "desk")
    shutil.copytree(ROOT / "examples" / "photos" / "my_dog", "photos")
    for base in (HUB_ID, "models/my_fine_tune"):
        shutil.copytree(pico, base)


def walk(page: Path) -> None:
    names: dict[str, object] = {"__name__": page.stem}
    for block in documents.blocks(page, "bash", "python"):
        documents.run(block, names)


@pytest.mark.parametrize("page", WALKS, ids=name_of)
def test_a_walk_runs_on_a_small_base(page, desk, short_recipes, pico_storybook):
    walk(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", [*WALKS, HOME], ids=name_of)
def test_a_walk_runs_on_the_storybook(page, desk, short_recipes):
    walk(page)


def test_the_home_page_shows_what_the_readme_runs():
    run = [" ".join(documents.words_of(line)) for line in all_lines(ROOT / "README.md")]
    home = [" ".join(documents.words_of(line)) for line in all_lines(HOME)]
    assert home and all(any(line.startswith(shown) for line in run) for shown in home)


def all_lines(page: Path) -> list[str]:
    return [line for block in documents.blocks(page, "bash") for line in documents.shell_lines(block)]


def test_the_examples_run(desk, short_recipes, pico_storybook, monkeypatch):
    for program in ("compose_two", "load_in_diffusers"):
        runpy.run_path(str(ROOT / "examples" / f"{program}.py"), run_name="__main__")
    conceptkit.export(["my_dog", "moongate"], "for_diffusers")
    monkeypatch.setattr(sys, "argv", ["load", "for_diffusers", storybook.path()])
    runpy.run_path(str(ROOT / "examples" / "load_without_conceptkit.py"), run_name="__main__")
    drawn = {file.name for file in Path("pictures").iterdir()}
    assert drawn == {"attached.png", "compose_two.png", "detached.png", "without_conceptkit.png"}


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in documents.blocks(page, *languages)]


def shown_commands() -> list[list[str]]:
    """Arguments of each `conceptkit` line in the shell blocks, and in the examples of the commands' help."""
    lines = [line for block in all_blocks("bash") for line in documents.shell_lines(block)]
    helped = re.findall(r"^ +(conceptkit .*)$", reference.commands_page(), re.M)
    found = [documents.words_of(line) for line in [*lines, *helped]]
    unique = {tuple(words[1:]) for words in found if words[0] == "conceptkit"}
    return [list(words) for words in sorted(unique)]


def commands(command: click.Command = main):
    yield command
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from commands(below)


@pytest.fixture
def parsed_only(monkeypatch):
    for command in commands():
        monkeypatch.setattr(command, "callback", lambda *_, **__: None)


@pytest.mark.parametrize("words", shown_commands(), ids=" ".join)
def test_every_command_line_is_understood(words, parsed_only):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "words", [["compose", "my_dog", "--promt", "x"], ["ad", "my_dog", "photos"], ["compose", "my_dog"]]
)
def test_a_wrong_command_line_would_be_noticed(words, parsed_only):
    """The test above is no stronger than this."""
    assert CliRunner().invoke(main, words).exit_code == 2


def test_every_command_is_shown_in_use():
    used = {words[0] for words in shown_commands() if words}
    assert set(main.commands) <= used


@pytest.mark.parametrize("block", all_blocks("bash"), ids=str)
def test_what_sets_up_an_environment_exists(block):
    for line in documents.shell_lines(block):
        if documents.words_of(line)[0] in ("make", "pip", "."):
            documents.run_line(line, str(block))


@pytest.mark.parametrize("line", ["make nothing", "pip install other", "pip install 'conceptkit[nothing]'"])
def test_an_environment_that_does_not_exist_would_be_noticed(line):
    with pytest.raises(AssertionError):
        documents.run_line(line, "here")


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_python_is_python_and_uses_what_is_public(block):
    tree = ast.parse(block.text)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ck"
    }
    assert used <= set(conceptkit.__all__)


def test_no_block_has_a_language_that_nothing_checks():
    assert {block.language for block in all_blocks()} <= {"bash", "python", "text", "toml"}


def shared_files() -> dict[str, str]:
    """Files of the repository that the site shows under another address; the module itself needs mkdocs."""
    tree = ast.parse((ROOT / "docs" / "extensions" / "shared_files.py").read_text())
    (found,) = (node.value for node in tree.body if isinstance(node, ast.Assign))
    return ast.literal_eval(found)


@pytest.mark.parametrize("path", shared_files().values())
def test_a_file_that_the_site_shares_exists(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_between_pages_leads_somewhere(page):
    text = re.sub(documents.BLOCK, "", page.read_text(encoding="utf-8"))
    shared = {f"docs/{address}" for address in shared_files()}
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[\w-]+)?\)", text):
        if not target.startswith("http"):
            file = (page.parent / target).resolve()
            assert file.exists() or name_of(file) in shared, f"{name_of(page)} links to {target}"


def test_code_fits_a_page_of_the_site():
    wide = [
        (str(block), line)
        for block in all_blocks()
        for line in block.text.splitlines()
        if len(line) > reference.WIDTH + 2 and block.page.name != "commands.md"
    ]
    assert wide == []


def test_a_recipe_file_has_fields_of_a_recipe():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    recipes = [tomllib.loads(block.text) for block in all_blocks("toml") if block.title == "my_recipe.toml"]
    assert recipes and all(set(recipe) <= fields for recipe in recipes)


def test_what_pages_set_are_fields_of_a_recipe():
    """`--set rank=4`, and lists of settings such as `rank=4 batch=2`."""
    texts = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "commands.md")
    named = set(re.findall(r"--set (\w+)=", texts))
    for code in re.findall(r"`((?:[a-z_]+=[\w.+]+ ?)+)`", texts):
        named |= {word.partition("=")[0] for word in code.split()}
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert named and named - fields - {"FIELD"} == set()


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    """In strict mode: every link leads somewhere, and every module and name of the Python pages exists."""
    pytest.importorskip("mkdocs", reason="the site is built with the extra `docs`")
    subprocess.run(["make", "types"], cwd=ROOT, check=True, capture_output=True)
    build = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len([page for page in PAGES if page.is_relative_to(ROOT / "docs")])
    outside = re.compile(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?(?:https?:)?//""")
    assert [page for page in pages if outside.search(page.read_text(encoding="utf-8"))] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_generated_page_is_current(name):
    page = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert page == reference.PAGES[name](), "run `make reference`"


def test_generated_pages_are_written_where_asked(tmp_path):
    stale = tmp_path / "commands.md"
    stale.write_text("stale")
    first = CliRunner().invoke(reference.main, [str(tmp_path)])
    second = CliRunner().invoke(reference.main, [str(tmp_path)])
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "Wrote" in first.output and "Wrote" not in second.output
    assert "Usage: conceptkit storybook draw" in stale.read_text()


def test_every_field_of_a_recipe_is_described():
    assert [name for name, *_, text in configuration_reference.field_rows() if not text] == []


def test_descriptions_are_found_in_a_docstring():
    doc = """How.

    rank, size: of both; and so on.
        It goes on: here. lr: a rate.

    batch: of a step of `decay`, see (rank: no).
    """
    assert configuration_reference.described(doc, ["rank", "size", "lr", "batch", "decay", "odd"]) == {
        "rank": "of both; and so on. It goes on: here.",
        "size": "of both; and so on. It goes on: here.",
        "lr": "a rate.",
        "batch": "of a step of `decay`, see (rank: no).",
        "decay": "See `batch`.",
    }


def test_the_adapters_of_the_page_of_methods_are_those_there_are():
    page = (documents.ROOT / "docs" / "how-to" / "methods.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith("| `--adapter NAME`"))
    assert set(re.findall(r"`(\w+)`", row)) == {method.adapter.name for method in adapters()}
