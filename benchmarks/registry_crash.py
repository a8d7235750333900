"""Processes that write to a registry, killed at every step in turn and then at random moments.

Killed at a step means: by SIGKILL just before that write, fsync, rename, unlink, mkdir or SQL statement.
After each kill everything that was acknowledged must load, nothing that had not begun to commit may be
visible, and `verify` must be clean. Run `python -m benchmarks.registry_crash [--random 1000] [OPERATION]...`.
"""

import argparse
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.registry_operations import OPERATIONS, Operation, Seen
from conceptkit.registry import blobs, database, paths, sources
from conceptkit.registry.store import Registry

CALLS = ("write", "fsync", "replace", "rename", "link", "unlink", "mkdir")
"""Functions of os that change a disk."""

BEGUN, COMMITTING, ACKNOWLEDGED = 1, 2, 3


@dataclass(frozen=True)
class Hit:
    """Where a child was when it died: the label of its last step, or None when it was done."""

    step: str | None
    progress: int
    seconds: float = 0.0  # from the first write to the end, of one that lived


def child(operation: Operation, home: Path, shared: mmap.mmap, die_at: int | None) -> None:
    """Do the operation in this process; before step number `die_at`, die."""
    count = 0

    def step(label: str) -> None:
        nonlocal count
        shared[2:34] = label.encode()[:32].ljust(32)
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if shared[0] and not shared[1] and (label in CALLS or label == "begin immediate"):
            shared[1] = 1  # from here on something changes
            shared[40:48] = struct.pack("d", time.perf_counter())
        if shared[0] and label == operation.commits:
            shared[0] = max(shared[0], COMMITTING)
        count += 1

    for name in CALLS:
        setattr(os, name, _announced(getattr(os, name), name, step))
    paths.syncfs = _announced(paths.syncfs, "syncfs", step)
    connect = database._connect

    def traced(path: Path | str) -> Any:
        conn = connect(path)
        conn.set_trace_callback(lambda sql: step(named(sql)))
        return conn

    database._connect = traced
    blobs.CHUNK = sources.CHUNK = 1 << 16  # several writes to a file
    with Registry(home) if operation.opened else nullcontext(home) as subject:
        shared[0] = BEGUN
        operation.act(subject)
        shared[48:56] = struct.pack("d", time.perf_counter())
        shared[0] = ACKNOWLEDGED


def run(operation: Operation, home: Path, *, die_at: int | None = None, after: float | None = None) -> Hit:
    """The operation in a forked process that dies at a step, or `after` seconds, or lives."""
    shared = mmap.mmap(-1, 4096)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(operation, home, shared, die_at)
            code = 0
        finally:
            os._exit(code)
    if after is not None:
        while not shared[1]:
            time.sleep(0.0001)
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if status not in (0, signal.SIGKILL):
        raise AssertionError(f"{operation.name} failed by itself with status {status}")
    label = bytes(shared[2:34]).decode(errors="replace").strip()
    first, last = struct.unpack("dd", shared[40:56])
    hit = Hit(label if status else None, shared[0], last - first)
    shared.close()
    return hit


def judge(operation: Operation, home: Path, hit: Hit, before: Any, after: Any) -> None:
    """Raises AssertionError when something acknowledged is gone, or something unacknowledged is there."""
    seen = operation.see(home)
    allowed = {BEGUN: [before], COMMITTING: [before, after], ACKNOWLEDGED: [after]}.get(
        hit.progress, [before]
    )
    if seen not in allowed:
        raise AssertionError(f"killed in {operation.name} at {hit}: {seen}")


def homes(operation: Operation, folder: Path) -> tuple[Path, Any, Any]:
    """(a prepared home to be copied, what is seen in it before, and after the operation)."""
    template, done = folder / "template", folder / "done"
    template.mkdir(mode=0o700)
    operation.prepare(template)
    shutil.copytree(template, done)
    before = operation.see(template) if any(template.iterdir()) else Seen(frozenset(), frozenset())
    if run(operation, done).step is not None:
        raise AssertionError(f"{operation.name} did not end")
    return template, before, operation.see(done)


def at_every_step(operation: Operation, folder: Path) -> Counter[str]:
    """Kill before step 0, 1, 2, ... until there are no more; how often each kind of step was hit."""
    template, before, after = homes(operation, folder)
    hits: Counter[str] = Counter()
    for number in range(10_000):
        home = folder / "home"
        shutil.copytree(template, home)
        hit = run(operation, home, die_at=number)
        judge(operation, home, hit, before, after)
        shutil.rmtree(home)
        if hit.step is None:
            break
        hits[hit.step] += 1
    shutil.rmtree(template)
    shutil.rmtree(folder / "done")
    return hits


def at_random(operation: Operation, folder: Path, times: int, rng: random.Random) -> Counter[str]:
    """Kill `times` times between the first write of the operation and its end; hits as above."""
    template, before, after = homes(operation, folder)
    hits: Counter[str] = Counter()
    window = _window(operation, template, folder)
    while sum(hits.values()) < times:
        home = folder / "home"
        shutil.copytree(template, home)
        hit = run(operation, home, after=rng.uniform(0, window))
        judge(operation, home, hit, before, after)
        shutil.rmtree(home)
        if hit.step is not None and hit.progress < ACKNOWLEDGED:
            hits[hit.step] += 1
    shutil.rmtree(template)
    shutil.rmtree(folder / "done")
    return hits


def _window(operation: Operation, template: Path, folder: Path) -> float:
    """Seconds from the first write of the operation to its end, the median of five."""
    seconds = []
    for _ in range(5):
        home = folder / "home"
        shutil.copytree(template, home)
        seconds.append(run(operation, home).seconds)
        shutil.rmtree(home)
    return sorted(seconds)[2]


def named(sql: str) -> str:
    """A short name for a kind of statement; those that SQLite makes up for full-text search are one kind."""
    words = sql.lower().replace('"', "").split()
    if words[0] == "--":
        return "within full-text search"
    if words[0] in ("savepoint", "release", "create", "drop", "alter", "pragma", "select"):
        return words[0]
    return " ".join(words[:3])


def _announced(call: Callable[..., Any], label: str, step: Callable[[str], None]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        step(label)
        return call(*arguments, **options)

    return wrapped


def lines(title: str, hits: Counter[str]) -> Iterator[str]:
    yield f"{title}: {sum(hits.values())} kills, every one of them left all or nothing"
    for label, count in sorted(hits.items(), key=lambda item: -item[1]):
        yield f"  {count:5}  {label}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operations", nargs="*", choices=[*OPERATIONS, []], help="default: all")
    parser.add_argument("--random", type=int, default=1000, help="random kills in all, shared out evenly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, help="a folder on the disk to use")
    options = parser.parse_args()
    chosen = [OPERATIONS[name] for name in options.operations or OPERATIONS]
    rng = random.Random(options.seed)
    stepped = struck = 0
    with tempfile.TemporaryDirectory(dir=options.home) as name:
        for operation in chosen:
            hits = at_every_step(operation, Path(name))
            stepped += sum(hits.values())
            print(*lines(f"{operation.name}, at every step", hits), sep="\n", flush=True)
        for operation in chosen:
            hits = at_random(operation, Path(name), -(-options.random // len(chosen)), rng)
            struck += sum(hits.values())
            print(*lines(f"{operation.name}, at random moments", hits), sep="\n", flush=True)

    from benchmarks.report import finish  # last: it loads torch, and a child should be small

    kills = {"at_steps": stepped, "at_random_moments": struck, "operations": [o.name for o in chosen]}
    finish("registry_crash", 0, "broken promises", 0, True, [options.seed], **kills)


if __name__ == "__main__":
    sys.exit(main())
