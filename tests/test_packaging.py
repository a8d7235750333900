"""What an installed conceptkit consists of."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path, PurePath

import pytest

import conceptkit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = {"conceptkit": "conceptkit", **SETUPTOOLS["package-dir"]}


def folder(package: str) -> Path:
    """Where the sources of a listed package are."""
    top = next((p for p in SETUPTOOLS["package-dir"] if f"{package}.".startswith(f"{p}.")), None)
    path = package if top is None else package.replace(top, SETUPTOOLS["package-dir"][top], 1)
    return ROOT / path.replace(".", "/")


def test_every_folder_with_code_is_listed():
    """An unlisted package would be absent from the wheel, silently."""
    found = set()
    for package, top in FOLDERS.items():
        for file in (ROOT / top).rglob("*.py"):
            found.add(".".join((package, *file.parent.relative_to(ROOT / top).parts)))
    assert found <= set(SETUPTOOLS["packages"])


def test_every_listed_package_exists():
    for package in SETUPTOOLS["packages"]:
        assert folder(package).is_dir(), package


def covers(pattern: str, file: PurePath) -> bool:
    """As setuptools reads a pattern: "**/" is any number of folders, "*" stays inside of one."""
    head, deep, tail = pattern.partition("**/")
    if deep:
        return file.as_posix().startswith(head) and fnmatch(file.name, tail)
    return fnmatch(file.as_posix(), pattern) and len(file.parts) == len(PurePath(pattern).parts)


def test_what_is_not_code_is_listed_as_data():
    """Every tracked file beside the code is matched by a package-data pattern."""
    for package, top in FOLDERS.items():
        for file in (ROOT / top).rglob("*"):
            if file.is_dir() or file.suffix in (".py", ".pyc") or "__pycache__" in file.parts:
                continue
            homes = [p for p in SETUPTOOLS["packages"] if folder(p) in file.parents]
            home = max(homes, key=len)
            patterns = SETUPTOOLS["package-data"].get(home, [])
            relative = file.relative_to(folder(home))
            assert any(covers(pattern, relative) for pattern in patterns), (
                f"{file} ({package}) would be absent from the wheel"
            )


def test_the_wheel_holds_every_module_and_data_file(tmp_path):
    source = tmp_path / "source with a space"
    source.mkdir()
    for name in ("conceptkit", "registry", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package, top in FOLDERS.items():
        for file in (source / top).rglob("*"):
            if file.is_file():
                inside = Path(package.replace(".", "/")) / file.relative_to(source / top)
                assert inside.as_posix() in names
    version = conceptkit.__version__
    assert {name.partition("/")[0] for name in names} == {"conceptkit", f"conceptkit-{version}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize("name", PROJECT["project"]["dependencies"])
def test_every_dependency_is_pinned_for_the_tests(name):
    bare = re.split(r"[\[<>=]", name)[0]
    pins = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert bare in pins


@pytest.mark.parametrize("name", ["tests", "benchmarks", "conceptkit", "examples"])
def test_what_lies_beside_the_package_is_no_part_of_it(name):
    """A second conceptkit.conceptkit.errors would have classes that no `except` knows."""
    code = f"import conceptkit.registry.store, conceptkit.cli.main, conceptkit.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert f"No module named 'conceptkit.{name}'" in done.stderr
