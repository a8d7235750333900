"""Processes that are killed while they write, and processes that write at once."""

import json
import subprocess
import sys
import textwrap

import pytest

from conceptkit.registry.store import Registry

# Forks one child per step; each child dies by SIGKILL just before its n-th system call or SQL statement.
KILLER = """
    import os, signal, sys
    from conceptkit.registry import blobs, paths, store

    def countdown(n):
        left = [n]
        def step(*_):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        for module, name in ((os, "fsync"), (os, "replace"), (os, "fdopen"), (os, "open")):
            def wrapped(*args, _call=getattr(module, name), **options):
                step()
                return _call(*args, **options)
            setattr(module, name, wrapped)
        return step

    def work(job, home, step):
        registry = store.Registry(home)
        registry._db.conn.set_trace_callback(step)
        if job == "add":
            registry.add("my_dog", b"new" * 100_000, {"kind": "subject"})
        elif job == "version":
            registry.add("my_dog", b"new" * 100_000, {"kind": "subject"}, new_version=True)
        elif job == "remove":
            registry.remove("my_dog")

    job, homes = sys.argv[1], sys.argv[2:]
    for n, home in enumerate(homes):
        if job != "add":
            with store.Registry(home) as registry:
                registry.add("my_dog", b"old" * 100_000, {"kind": "subject"})
        child = os.fork()
        if child == 0:
            work(job, home, countdown(n))
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
    print(n)
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
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("job", ["add", "version", "remove"])
def test_killed_at_any_step_leaves_all_or_nothing(tmp_path, job):
    homes = [tmp_path / f"{n:02}" for n in range(60)]
    last = json.loads(finish(python(KILLER, job, *map(str, homes))))
    assert 5 < last < len(homes) - 1, "the harness killed nothing, or never ran to the end"
    old, new = b"old" * 100_000, b"new" * 100_000
    seen = set()
    for home in homes[: last + 1]:
        with Registry(home) as registry:
            state = tuple(
                registry.read(entry) for found in registry.list() for entry in registry.versions(found.name)
            )
            seen.add(state)
            heads = [(entry.name, registry.read(entry)) for entry in registry.list()]
            assert heads in ([], [("my_dog", old)], [("my_dog", new)])
            registry.add("my_dog", b"next", {}, new_version=True)
            assert registry.read("my_dog") == b"next"
    expected = {"add": {(), (new,)}, "version": {(old,), (old, new)}, "remove": {(old,), ()}}
    assert seen == expected[job]


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
