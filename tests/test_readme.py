"""The README tells the truth about the commands."""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import conceptkit
from conceptkit.cli import reference
from conceptkit.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "examples/README.md")


def fenced(language: str) -> list[str]:
    """The code blocks of one language on all pages."""
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    return [code for text in texts for code in re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)]


def shell_lines() -> list[list[str]]:
    lines = "".join(fenced("sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def told_commands() -> list[list[str]]:
    """Arguments of each `conceptkit` line in the shell blocks, and in the examples of the help pages."""
    helped = re.findall(r"^ +(conceptkit .*)$", "".join(fenced("text")), re.M)
    lines = [*shell_lines(), *map(shlex.split, helped)]
    return [words[1:] for words in lines if Path(words[0]).name == "conceptkit"]


def commands(command: click.Command = main):
    yield command
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from commands(below)


def test_the_help_in_the_readme_is_current():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == reference.renewed(text), "run `make readme`"


@pytest.mark.parametrize("words", told_commands(), ids=" ".join)
def test_every_command_line_is_understood(words, monkeypatch):
    for command in commands():
        monkeypatch.setattr(command, "callback", lambda *_, **__: None)  # parsed, not run
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output


def test_a_wrong_option_would_be_noticed(monkeypatch):
    """The test above is no stronger than this."""
    for command in commands():
        monkeypatch.setattr(command, "callback", lambda *_, **__: None)
    for wrong in (["compose", "my_dog", "--promt", "x"], ["ad", "my_dog", "photos"], ["compose", "my_dog"]):
        assert CliRunner().invoke(main, wrong).exit_code == 2


def test_every_command_is_shown_in_use():
    used = {words[0] for words in told_commands() if words}
    assert set(main.commands) <= used


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {word for words in shell_lines() if words[0] == "make" for word in words[1:] if "=" not in word}
    assert named and named <= targets


def test_every_file_named_in_a_shell_line_exists():
    named = {word for words in shell_lines() for word in words if word.startswith("examples/")}
    assert named and all((ROOT / word).exists() for word in named)


@pytest.mark.parametrize("code", fenced("python"), ids=lambda code: code.strip().splitlines()[-1])
def test_python_is_python_and_uses_what_is_public(code):
    tree = ast.parse(code)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ck"
    }
    assert used <= set(conceptkit.__all__)


def test_a_readme_without_a_place_for_the_commands_is_refused():
    with pytest.raises(click.ClickException, match="no place for the commands"):
        reference.renewed("# nothing here\n")


def test_the_command_writes_the_block(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{reference.BEGIN}\nstale\n{reference.END}\nafter\n")
    first = CliRunner().invoke(reference.main, [str(page)])
    second = CliRunner().invoke(reference.main, [str(page)])
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "up to date" in second.output
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    assert "Usage: conceptkit storybook draw" in page.read_text() and "stale" not in page.read_text()
