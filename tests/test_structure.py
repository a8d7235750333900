"""The benchmark of the structure and the contracts of imports find what breaks them."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks import structure

ROOT = Path(__file__).parents[1]
MOST_ANY = json.loads((ROOT / "tests" / "any_baseline.json").read_text())
PYPROJECT = """
[tool.setuptools.package-dir]
"conceptkit.cli" = "cli"
"conceptkit.registry" = "registry"

[[tool.importlinter.contracts]]
type = "layers"
containers = ["conceptkit"]
layers = ["cli", "(learn) | (merging)", "base", "errors", "registry"]
"""
SOUND = {
    "pyproject.toml": PYPROJECT,
    "README.md": "one\ntwo\n",
    "conceptkit/__init__.py": "",
    "conceptkit/__main__.py": "from conceptkit.cli.main import main\n",
    "conceptkit/errors.py": "from conceptkit.registry.errors import ConceptError\n",
    "conceptkit/base/__init__.py": "",
    "conceptkit/base/load.py": "from conceptkit import errors\n",
    "conceptkit/learn/__init__.py": "",
    "conceptkit/learn/config.py": "from conceptkit.base import load\n",
    "conceptkit/learn/trainer.py": "from conceptkit.learn.methods import keyed\n",
    "conceptkit/learn/methods/__init__.py": "",
    "conceptkit/learn/methods/keyed.py": "from ..config import x\n",
    "conceptkit/merging/__init__.py": "import conceptkit.base.load\n",
    "registry/__init__.py": "",
    "registry/errors.py": "class ConceptError(Exception):\n    'An error.'\n",
    "cli/__init__.py": "",
    "cli/main.py": "def main():\n    'Start.'\n    from conceptkit.learn import trainer\n",
}


@pytest.fixture(scope="module")
def house():
    """The project itself, measured once."""
    return structure.measure(ROOT)


@pytest.fixture
def measured(tmp_path):
    """Measures a small sound project with some files replaced or added."""

    def measure(files=None):
        for name, text in {**SOUND, **(files or {})}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return structure.measure(tmp_path)

    return measure


def test_a_sound_project_holds_every_bar(measured):
    found = measured()
    assert found.broken() == []
    figures = found.figures()
    assert (figures["rooms"], figures["floors"], figures["readme_lines"]) == (7, 5, 2)
    assert figures["lazy_imports_between_rooms"] == 1


@pytest.mark.parametrize(
    "line", ["import conceptkit.learn.trainer", "importlib.import_module('conceptkit.learn.trainer')"]
)
def test_a_cycle_through_a_lazy_import(measured, line):
    found = measured({"conceptkit/base/load.py": f"def f():\n    'Load.'\n    {line}\n"})
    assert found.figures()["cycles"] == 1
    (circle,) = found.cycles
    assert set(circle) == {("conceptkit.base", "conceptkit.learn"), ("conceptkit.learn", "conceptkit.base")}
    text = "\n".join(structure.lines(found))
    assert "conceptkit.base -> conceptkit.learn: conceptkit/base/load.py:3 (lazy)" in text
    assert "conceptkit.learn -> conceptkit.base: conceptkit/learn/config.py:1" in text


def test_a_cycle_of_a_folder_with_a_file_beside_it(measured):
    """A subfolder may use the files beside it, and they it, but not the same ones."""
    found = measured({"conceptkit/learn/config.py": "from conceptkit.learn.methods.keyed import x\n"})
    (circle,) = found.cycles
    assert {name for pair in circle for name in pair} == {
        "conceptkit.learn.config",
        "conceptkit.learn.methods",
    }


def test_imports_for_type_checkers_are_no_cycle(measured):
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from conceptkit.learn import trainer\n"
    found = measured({"conceptkit/base/load.py": code})
    assert found.broken() == []
    assert found.figures()["type_checking_imports"] == 1


def test_an_upward_import(measured):
    found = measured({"registry/errors.py": "def f():\n    'Go up.'\n    from conceptkit import errors\n"})
    (one,) = found.upward
    assert (one.where, one.target, one.kind) == ("registry/errors.py:3", "conceptkit.errors", "lazy")


def test_an_import_between_independent_rooms(measured):
    found = measured({"conceptkit/merging/__init__.py": "from conceptkit.learn import config\n"})
    assert [one.where for one in found.upward] == ["conceptkit/merging/__init__.py:1"]
    assert found.figures()["cycles"] == 0


def test_a_room_in_no_layer_is_named(measured):
    found = measured({"conceptkit/attic/__init__.py": ""})
    assert "conceptkit.attic" in found.outside


def test_a_long_signature(measured):
    nine = ", ".join("abcdefghi")
    code = f"""
class Index:
    "A class."
    def add(self, {nine[:-3]}): "Eight."
def _inner({nine}): "Nine."
@click.command("draw")
def draw({nine}, j): "A command."
"""
    found = measured({"cli/main.py": code})
    assert [(d.name, d.parameters) for d in found.signatures[:2]] == [("_inner", 9), ("Index.add", 8)]
    assert found.broken() == ["longest_signature"]


def test_a_long_body(measured):
    def code(count):
        return "def main():\n    '''Start.\n\n    And go on.\n    '''\n" + "    x = 1\n" * count

    assert measured({"cli/main.py": code(60)}).broken() == []
    found = measured({"cli/main.py": code(61)})
    assert found.broken() == ["longest_body"]
    assert "  61 cli/main.py:1 main" in structure.lines(found)


def test_a_missing_docstring(measured):
    code = """
class Open:
    def __init__(self): pass
    def method(self): pass
    def _private(self): pass
    @property
    def size(self): "How large."
    @size.setter
    def size(self, value): pass
class _Hidden:
    def method(self): pass
def function():
    def inner(): pass
@group.command(help="Helped.")
def helped(): pass
@group.command()
def silent(): pass
"""
    found = measured({"cli/main.py": code})
    assert [d.name for d in found.undocumented] == ["Open", "Open.method", "function", "silent"]
    assert found.figures()["dunders_without_docstring"] == 1


def test_a_long_readme(measured):
    assert measured({"README.md": "line\n" * 181}).broken() == ["readme_lines"]


def test_any_is_found_in_public_functions(measured):
    code = """
def f(x: Any): "One."
def g(x: "typing.Any | None"): "Two."
def h(x: dict[str, Any]): "A dictionary says something."
def _i() -> Any: "Private."
"""
    found = measured({"cli/main.py": code})
    assert [d.name for d in structure.any_by_package(found)["cli"]] == ["f", "g"]


def test_annotations_of_any_only_become_fewer(house):
    """tests/any_baseline.json counts the public functions with a parameter or a result annotated Any."""
    for top, several in structure.any_by_package(house).items():
        listed = "\n".join(map(str, several))
        assert len(several) <= MOST_ANY[top], f"{top}: annotate the new ones with what they take:\n{listed}"
        assert len(several) == MOST_ANY[top], f"Fewer than before: write {len(several)} for {top} in the file"


def test_the_last_line_is_json(house, monkeypatch, capsys):
    monkeypatch.setattr(structure, "measure", lambda root: house)
    monkeypatch.setattr(sys, "argv", ["structure"])
    structure.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["name"] == "structure"
    assert last["value"] == len(last["broken"])
    assert last["holds"] is (last["value"] == 0)


# The contracts themselves: a project of empty folders keeps them, and each is broken by one import.


def broken_contracts(root, files):
    """The project's contracts that a conceptkit of empty folders and `files` breaks, by import-linter."""
    rows = structure.import_graph.layers(ROOT)[0].floors
    for name in {"", *(name for row in rows for name in row)}:
        (root / "conceptkit" / name).mkdir(parents=True, exist_ok=True)
        (root / "conceptkit" / name / "__init__.py").touch()
    for name, text in {"__main__.py": "", **files}.items():
        (root / "conceptkit" / name).parent.mkdir(exist_ok=True)
        (root / "conceptkit" / name).write_text(text)
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo", str(ROOT / "pyproject.toml")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    assert "Contracts:" in result.stdout, result.stdout + result.stderr
    return {line.removesuffix(" BROKEN") for line in result.stdout.splitlines() if line.endswith(" BROKEN")}


NAMES = {
    c["id"]: c["name"]
    for c in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}


@pytest.mark.parametrize(
    ("broken", "files"),
    [
        (set(), {"__main__.py": "import conceptkit.cli", "cli/main.py": "import conceptkit.registry"}),
        ({"layers"}, {"registry/store.py": "def f():\n    import conceptkit.errors"}),
        ({"layers"}, {"attic/__init__.py": ""}),
        ({"light-registry"}, {"registry/store.py": "def f():\n    import torch"}),
        ({"acyclic"}, {"base/a.py": "import conceptkit.base.b", "base/b.py": "import conceptkit.base.a"}),
        ({"layers", "merging"}, {"merging/soft.py": "import conceptkit.learn"}),
        ({"layers", "cli"}, {"learn/trainer.py": "import conceptkit.cli"}),
        ({"cli"}, {"__init__.py": "def f():\n    import conceptkit.cli"}),
    ],
)
def test_contracts(tmp_path, broken, files):
    assert broken_contracts(tmp_path, files) == {NAMES[name] for name in broken}


def test_the_house_holds_its_bars(house):
    assert house.broken() == []
