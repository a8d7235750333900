"""Many processes on one registry: adding, renaming, removing, searching, loading, all at once.

Each has threads that share a `Registry`, and opens and closes further ones of its own meanwhile.
Every thread keeps books of what was acknowledged to it; in the end the registry must hold exactly that.
Reads that found the index locked are counted and must be none. Run
`python -m benchmarks.registry_concurrency`.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conceptkit.errors import UnknownConcept
from conceptkit.registry import maintenance
from conceptkit.registry.catalogue import history, search
from conceptkit.registry.store import Registry

DOG = {"kind": "subject", "noun": "dog", "base_name": "storybook", "method": "custom"}
SHARED = 5
"""Names to which all processes add versions."""


@dataclass
class Books:
    """What was acknowledged to one thread: its own names with sha256s, its versions of shared ones."""

    own: dict[str, list[str]] = field(default_factory=dict)
    shared: list[tuple[str, int, str]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)  # seconds each
    reader_waits: int = 0
    writer_waits: int = 0


def process(home: Path, number: int, threads: int, seconds: float, seed: int) -> list[Books]:
    """One process: its threads with one registry, which counts its waits in the first one's books."""
    with Registry(home) as registry:
        with ThreadPoolExecutor(threads) as pool:
            numbers = [number * threads + thread for thread in range(threads)]
            books = list(pool.map(lambda each: work(registry, each, seconds, seed), numbers))
        packed = registry.blob_store.packed
        for database in (registry.index, *([packed] if packed else [])):
            books[0].reader_waits += database.reader_waits
            books[0].writer_waits += database.writer_waits
    return books


def work(registry: Registry, number: int, seconds: float, seed: int) -> Books:
    """One thread: a random mix for so many seconds."""
    rng = random.Random(f"{seed}/{number}")
    books = Books()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        action = rng.choice(
            ["add", "add", "shared", "version", "rename", "rm", "second", *["search", "load", "list"] * 4]
        )
        try:
            _act(registry, action, number, rng, books)
            books.done[action] += 1
        except UnknownConcept as error:
            if action != "load":  # another process may have removed what was to be loaded
                books.errors.append(f"{action}: {error}")
            books.done["load of something just removed"] += 1
        except Exception as error:
            books.errors.append(f"{action}: {type(error).__name__}: {error}")
    return books


def _act(registry: Registry, action: str, number: int, rng: random.Random, books: Books) -> None:
    data = rng.randbytes(rng.randint(100, 20_000))
    digest = hashlib.sha256(data).hexdigest()
    own = rng.choice(sorted(books.own)) if books.own else None
    start = time.perf_counter()
    if action == "add" or (own is None and action in ("version", "rename", "rm")):
        name = f"w{number}_{sum(books.done.values())}"
        registry.add(name, data, DOG)
        books.own[name] = [digest]
    elif action == "shared":
        entry = registry.add(f"shared{rng.randrange(SHARED)}", data, DOG, new_version=True)
        books.shared.append((entry.name, entry.version, entry.hash))
    elif action == "version" and own:
        registry.add(own, data, DOG, new_version=True)
        books.own[own].append(digest)
    elif action == "rename" and own:
        new = f"{own.partition('-')[0]}-{sum(books.done.values())}"
        history.rename(registry, own, new)
        books.own[new] = books.own.pop(own)
    elif action == "rm" and own:
        registry.remove(own)
        del books.own[own]
    elif action == "second":  # opened and closed in the same process, it takes nothing from the first
        name = f"w{number}_{sum(books.done.values())}"
        with Registry(registry.home) as second:
            second.add(name, data, DOG)
        books.own[name] = [digest]
    else:
        near = f"w{rng.randrange(16)}"
        if action == "search":
            search.search(registry, rng.choice(["dog", "shared1", near]))
        elif action == "list":
            search.page(registry, limit=20)
        elif page := search.page(registry, limit=20, after=near):
            registry.read(rng.choice(page))
        books.reads.append(time.perf_counter() - start)


def measure(home: Path, processes: int, seconds: float, seed: int, threads: int = 2) -> dict[str, Any]:
    """Run so many processes of so many threads for so many seconds; counts of what went on and went wrong."""
    Registry(home).close()
    files = [home / f"books-{number}.json" for number in range(processes)]
    pids = []
    for number, file in enumerate(files):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                books = process(home, number, threads, seconds, seed)
                file.write_text(json.dumps([vars(book) for book in books]))
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    crashed = sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)
    books = [Books(**book) for file in files if file.exists() for book in json.loads(file.read_text())]
    reads = sorted(second for book in books for second in book.reads)
    done = sum((Counter(book.done) for book in books), Counter[str]())
    with Registry(home) as registry:
        lost = _lost(registry, books)
        problems = maintenance.verify(registry).problems
    return {
        "operations": dict(done.most_common()),
        "errors": [error for book in books for error in book.errors] + ["a process died"] * crashed,
        "lost_updates": lost,
        "reader_waits": sum(book.reader_waits for book in books),
        "writer_waits": sum(book.writer_waits for book in books),
        "read_ms": {f"p{p}": round(1000 * reads[len(reads) * p // 1000], 2) for p in (500, 990, 999)},
        "problems": problems,
    }


def _lost(registry: Registry, books: list[Books]) -> list[str]:
    """How the registry differs from what was acknowledged."""
    there = {head.name: [e.hash for e in registry.versions(head.name)] for head in registry.list()}
    told = {name: hashes for book in books for name, hashes in book.own.items()}
    shared: dict[str, list[tuple[int, str]]] = {}
    for book in books:
        for name, version, digest in book.shared:
            shared.setdefault(name, []).append((version, digest))
    for name, versions in shared.items():
        if sorted(version for version, _ in versions) != list(range(1, len(versions) + 1)):
            return [f"the versions of {name} have gaps or come twice"]
        told[name] = [digest for _, digest in sorted(versions)]
    return [name for name in there.keys() | told.keys() if there.get(name) != told.get(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, help="a folder on the disk to use")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.home) as name:
        found = measure(Path(name), options.processes, options.seconds, options.seed, options.threads)
    for key, value in found.items():
        print(f"{key}: {value}")

    from benchmarks.report import finish  # last: it loads torch, and a process should be small

    wrong = len(found["errors"]) + len(found["lost_updates"]) + len(found["problems"]) + found["reader_waits"]
    load = {"processes": options.processes, "threads": options.threads, "seconds": options.seconds}
    bar = "no error, no lost update, no reader that waited"
    finish("registry_concurrency", wrong, "failures", bar, wrong == 0, [options.seed], **load, **found)


if __name__ == "__main__":
    sys.exit(main())
