"""Runs what the documents show: the shell and Python blocks of a page, in order, in one folder."""

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from conceptkit.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```", re.M | re.S)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, its title, and where it stands."""

    page: Path
    line: int
    language: str
    text: str
    title: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page, in order; without `languages` all of them."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        indent, language, about, body = match.groups()
        body = re.sub(rf"^{indent}", "", body, flags=re.M)
        if not languages or language in languages:
            title = re.search(r'title="(.*?)"', about)
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, language, body, title[1] if title else ""))
    return found


def shell_lines(block: Block) -> Iterator[str]:
    """The lines of a shell block that are commands; one that ends in a backslash goes on."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if shlex.split(line, comments=True):
            yield line


def words_of(line: str) -> list[str]:
    """A shell line as its words, without its comment."""
    return shlex.split(line, comments=True)


def run(block: Block, names: dict[str, object]) -> None:
    """Run a block in the current folder. `names` are the Python names of the page so far.

    Raises AssertionError, or what the Python code raises.
    """
    if block.language == "python":
        source = "\n" * block.line + block.text  # so that a traceback names the line of the page
        exec(compile(source, str(block.page), "exec"), names)
        return
    for line in shell_lines(block):
        run_line(line, f"{block}: {line}")


def run_line(line: str, place: str) -> None:
    """Run one shell line: conceptkit in this process, what sets up an environment as far as a test can."""
    first, *words = words_of(line)
    if first == "conceptkit":
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, f"{place}\n{result.output}"
    elif first == "make":
        done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{place}\n{done.stderr}"
    elif first == "pip":
        check_install(words, place)
    elif first == ".":
        assert words == [".venv/bin/activate"], f"{place}: `make` makes another environment"
    else:
        done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{place}\n{done.stderr}"


def check_install(words: list[str], place: str) -> None:
    """What `pip install` names is this checkout or extras of it. Raises AssertionError."""
    assert words[0] == "install", place
    for word in words[1:]:
        named = re.fullmatch(r"(?:\.|conceptkit)(?:\[([\w,]+)\])?", word)
        assert named, f"{place}: {word} is not this project"
        assert set((named[1] or "").split(",")) - {""} <= set(EXTRAS), f"{place}: no such extra"


def enter(folder: Path) -> None:
    """Make a folder the current one, with the examples of the checkout in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "examples").symlink_to(ROOT / "examples")
    os.chdir(folder)
