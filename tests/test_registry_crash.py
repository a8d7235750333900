"""Processes that are killed while they write, and processes that write at once."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conceptkit.registry.store import Registry

ROOT = Path(__file__).parents[1]

# The harness forks, so it runs in a small process of its own, and in memory: SIGKILL asks nothing of a disk.
KILLER = """
    import collections, json, random, sys
    from pathlib import Path
    from benchmarks.registry_crash import OPERATIONS, at_every_step, at_random

    name, folder, times = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    hits = at_random(OPERATIONS[name], folder, times, random.Random(0)) if times else (
        at_every_step(OPERATIONS[name], folder))
    print(json.dumps(hits))
"""

ADDER = """
    import sys
    from conceptkit.registry.store import Registry
    for i in range(10):
        with Registry() as registry:
            registry.add("shared", f"{sys.argv[1]}{i}".encode(), {}, new_version=True)
            registry.add(f"{sys.argv[1]}{i}", b"equal bytes", {})
            registry.remove(f"{sys.argv[1]}{i}")
            registry.add(f"{sys.argv[1]}{i}", b"equal bytes", {})
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


@pytest.fixture
def folder(tmp_path):
    """On a file system in memory where there is one."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("name", ["add", "merge", "rm", "small", "rebuild packed"])
def test_killed_at_any_step_leaves_all_or_nothing(folder, name):
    hits = json.loads(finish(python(KILLER, name, str(folder), "0")))
    assert hits["commit"] >= 1 and hits["begin immediate"] >= 1
    if name in ("add", "merge"):
        assert hits["write"] > 1 and hits["fsync"] >= 3 and hits["replace"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("name", ["batch", "gc", "pack", "compact"])
def test_killed_at_any_moment_leaves_all_or_nothing(folder, name):
    assert sum(json.loads(finish(python(KILLER, name, str(folder), "12"))).values()) == 12


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize(
    ("name", "times"), [("restore", 0), ("rebuild", 9), ("rebuild damaged", 9), ("backup", 0), ("keys", 0)]
)
def test_upkeep_that_is_killed_leaves_what_was_acknowledged(folder, name, times):
    hits = json.loads(finish(python(KILLER, name, str(folder), str(times))))
    assert sum(hits.values()) >= (times or 3)


def test_processes_that_add_at_once_lose_nothing(home):
    for process in [python(ADDER, name) for name in ("a", "b", "c")]:
        finish(process)
    with Registry() as registry:
        versions = registry.versions("shared")
        assert [entry.version for entry in versions] == list(range(1, 31))
        assert {registry.read(entry) for entry in versions} == {
            f"{p}{i}".encode() for p in "abc" for i in range(10)
        }
        assert {registry.read(entry) for entry in registry.list() if entry.name != "shared"} == {
            b"equal bytes"
        }
