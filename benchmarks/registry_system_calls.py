"""As `registry_crash`, one level down: killed at every system call that changes a disk, SQLite's included.

strace delivers SIGKILL as the n-th call of a kind is entered, so that call does not happen. Needs strace; run
`python -m benchmarks.registry_system_calls [OPERATION]...`.
"""

import argparse
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import registry_crash
from benchmarks.registry_crash import Hit
from benchmarks.registry_operations import OPERATIONS, Operation

CALLS = ("write", "pwrite64", "fsync", "fdatasync", "syncfs", "rename", "ftruncate", "unlink", "mkdir")
WORKER = "import sys; from benchmarks.registry_system_calls import worker; worker(*sys.argv[1:])"


def worker(name: str, home: str, progress: str) -> None:
    """The operation in this process, which marks in a shared file how far it is: that is no system call."""
    with open(progress, "r+b") as file:
        shared = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    registry_crash.child(OPERATIONS[name], Path(home), shared, None)


def run(operation: Operation, home: Path, progress: Path, call: str, number: int) -> Hit:
    """The operation under strace, dying at call number `number` of that kind."""
    progress.write_bytes(bytes(mmap.PAGESIZE))
    inject = f"inject={call}:signal=SIGKILL:when={number}"
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", inject]
    worker = [sys.executable, "-B", "-c", WORKER, operation.name, str(home), str(progress)]
    code = subprocess.run([*command, *worker], capture_output=True).returncode
    if code not in (0, -signal.SIGKILL, 128 + signal.SIGKILL):
        raise AssertionError(f"{operation.name} failed by itself with exit code {code}")
    return Hit(call if code else None, progress.read_bytes()[0])


def at_every_call(operation: Operation, folder: Path) -> Counter[str]:
    """Kill at the first, second, ... call of each kind; how often each was hit."""
    template, before, after = registry_crash.homes(operation, folder)
    hits: Counter[str] = Counter()
    for call in CALLS:
        for number in range(1, 1000):
            home = folder / "home"
            shutil.copytree(template, home)
            hit = run(operation, home, folder / "progress", call, number)
            registry_crash.judge(operation, home, hit, before, after)
            shutil.rmtree(home)
            if hit.step is None:
                break
            hits[call] += 1
    shutil.rmtree(template)
    shutil.rmtree(folder / "done")
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operations", nargs="*", default=["add", "merge", "gc"])
    parser.add_argument("--home", type=Path, help="a folder on the disk to use")
    options = parser.parse_args()
    if not shutil.which("strace"):
        parser.exit(1, "strace is not installed\n")
    total = 0
    with tempfile.TemporaryDirectory(dir=options.home) as name:
        for operation in options.operations:
            hits = at_every_call(OPERATIONS[operation], Path(name))
            total += sum(hits.values())
            print(*registry_crash.lines(f"{operation}, at every system call", hits), sep="\n", flush=True)

    from benchmarks.report import finish  # last: it loads torch, and a worker should be small

    finish(
        "registry_system_calls", 0, "broken promises", 0, True, [], kills=total, operations=options.operations
    )


if __name__ == "__main__":
    sys.exit(main())
