"""A million concepts in one index: what looking things up, searching, listing, adding and starting cost.

Times are CPU times, medians of many, except where they say wall. Beside them: the same from a folder with a
JSON file for each concept. Run `python -m benchmarks.registry_scale`; `registry_disk` is about bytes.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from conceptkit.errors import UnknownConcept
from conceptkit.registry.catalogue import search
from conceptkit.registry.catalogue.search import Filters
from conceptkit.registry.entries import New
from conceptkit.registry.store import Registry

NOUNS = ("dog", "cat", "rabbit", "bird", "fish", "robot", "car", "boat", "house", "gate", "teapot", "candle")
WORDS = ("red", "blue", "old", "tiny", "happy", "shy", "round", "tall", "my", "your", "our", "his", "snow")
TAG, TAGGED = "pets", ("cat", "rabbit", "bird")
"""A tag, and the classes that have it: many, and not all."""
BARS = {"get_ms": 1.0, "search_ms": 20.0, "list_ms": 50.0, "adds_per_s": 1000.0, "start_ratio": 1.5}
FOLDERS = 20_000
"""Concepts in the folder that is compared with; its costs grow with their number."""


def names(count: int) -> Iterator[str]:
    """The same names every time, in no order."""
    for i in range(count):
        first, second = WORDS[i % len(WORDS)], WORDS[i // len(WORDS) % len(WORDS)]
        yield f"{first}_{second}_{NOUNS[i % len(NOUNS)]}_{i * 7919 % 1_000_003}"


def fill(registry: Registry, count: int, tick: Callable[[int], None]) -> None:
    """Rows as `entries.insert` writes them, many at a time; triggers feed the search. Without blobs."""
    conn = registry.index.conn
    conn.execute("pragma synchronous = off")
    conn.execute("pragma cache_size = -400000")
    for start in range(0, count, 50_000):
        rows = list(enumerate(itertools.islice(names(count), start, min(start + 50_000, count)), start + 1))
        about = [
            (i, name, NOUNS[(i - 1) % len(NOUNS)], hashlib.sha256(name.encode()).hexdigest())
            for i, name in rows
        ]
        days = [f"20{20 + i % 7}-{1 + i % 12:02}-{1 + i % 28:02}T12:00:00+00:00" for i, _ in rows]
        with registry.index.writing():
            conn.executemany(
                "insert into versions values (?, ?, 1, ?, ?, ?, ?, null, ?, 'storybook', 'custom', ?)",
                (
                    (i, name, digest, 11_000 + i % 5000, day, _summary(noun), noun, f"a {noun} number {i}")
                    for (i, name, noun, digest), day in zip(about, days, strict=True)
                ),
            )
            conn.executemany("insert into names values (?, ?, 1, 1, 0)", rows)
            conn.executemany(
                "insert into texts values (?, ?, ?, ?, ?, '')",
                (
                    (i, name, noun, TAG if noun in TAGGED else "", f"a {noun} number {i}")
                    for i, name, noun, _ in about
                ),
            )
            conn.executemany(
                "insert into tags values (?, ?)", ((i, TAG) for i, _, noun, _ in about if noun in TAGGED)
            )
            conn.executemany(
                "insert into history (name_id, name, event, version, hash, at) values (?, ?, 'add', 1, ?, ?)",
                ((i, name, digest, day) for (i, name, _, digest), day in zip(about, days, strict=True)),
            )
        tick(start + len(rows))
    conn.execute("pragma wal_checkpoint(truncate)")
    conn.execute("pragma cache_size = -2000")
    conn.execute("pragma synchronous = full")


def _summary(noun: str) -> str:
    return json.dumps({"kind": "subject", "noun": noun, "base_name": "storybook", "method": "custom"})


def cpu_ms(calls: Iterable[Callable[[], object]]) -> float:
    """The median CPU time of these calls, in milliseconds."""
    spent = []
    for call in calls:
        start = time.process_time()
        call()
        spent.append(1000 * (time.process_time() - start))
    return statistics.median(spent)


def lookups(registry: Registry, count: int, rng: random.Random) -> dict[str, float]:
    """Medians over a mix of easy and hard questions."""
    known = list(itertools.islice(names(count), 0, count, max(1, count // 2000)))
    words = [*NOUNS, *WORDS]
    questions = [
        *(rng.choice(known).replace("_", " ") for _ in range(50)),
        *(rng.choice(known) for _ in range(50)),
        *(rng.choice(words) for _ in range(50)),
        *(f"{rng.choice(WORDS)} {rng.choice(NOUNS)[:2]}" for _ in range(50)),
        *(f"{rng.choice(NOUNS)} number {rng.randrange(count)}" for _ in range(50)),
    ]
    rng.shuffle(questions)
    pages = [
        lambda: search.labels(registry, search.page(registry, limit=100)),
        lambda: search.page(registry, Filters(noun=rng.choice(NOUNS)), limit=100),
        lambda: search.page(registry, Filters(noun="cat", tag=TAG), limit=100),
        lambda: search.page(registry, Filters(noun="dog", tag=TAG), limit=100),
        lambda: search.page(registry, after=rng.choice(known), limit=100),
        lambda: search.page(registry, Filters(noun=rng.choice(NOUNS)), after=rng.choice(known), limit=100),
    ]
    slips = [
        name[:i] + name[i + 1 :] for name in rng.sample(known, 40) for i in [rng.randrange(1, len(name))]
    ]
    return {
        "get_ms": cpu_ms((lambda n=name: registry.get(n)) for name in known),
        "search_ms": cpu_ms((lambda q=question: search.search(registry, q)) for question in questions),
        "slowest_search_ms": max(cpu_ms([lambda q=q: search.search(registry, q)]) for q in questions),
        "list_ms": max(cpu_ms([page] * 40) for page in pages),
        "suggest_ms": cpu_ms((lambda n=slip: _miss(registry, n)) for slip in slips),
    }


def _miss(registry: Registry, name: str) -> None:
    with suppress(UnknownConcept):
        registry.get(name)


def adds(registry: Registry, rng: random.Random, batches: int = 5, size: int = 1000) -> dict[str, float]:
    """Concepts added a second, in batches, with bytes of 11 kB each; wall and CPU."""
    summary = json.loads(_summary("dog"))
    wall, cpu = [], []
    for batch in range(batches):
        news = [New(f"new{batch}_{i}", rng.randbytes(11_000), summary) for i in range(size)]
        start, spent = time.perf_counter(), time.process_time()
        registry.add_many(news)
        wall.append(size / (time.perf_counter() - start))
        cpu.append(size / (time.process_time() - spent))
    return {"adds_per_s_wall": statistics.median(wall), "adds_per_s": statistics.median(cpu)}


def start_ratio(home: Path, times: int = 15) -> dict[str, float]:
    """CPU of `conceptkit list`, cold, against importing click and sqlite_utils, in turns."""
    environment = os.environ | {"CONCEPTKIT_HOME": str(home)}

    def spent(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, *arguments]
        subprocess.run(
            command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    rounds = [
        (spent("-m", "conceptkit", "list"), spent("-c", "import click, sqlite_utils")) for _ in range(times)
    ]
    listing, imports = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {"start_ms": listing, "imports_ms": imports, "start_ratio": listing / imports}


def folder(home: Path, count: int) -> dict[str, float]:
    """The same from a folder with a JSON file for each concept: nothing is durable, nothing is atomic."""
    home.mkdir()
    start = time.process_time()
    for name in names(count):
        (home / f"{name}.json").write_text(_summary(name.split("_")[2]))
    added = count / (time.process_time() - start)

    def everything() -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) | {"name": file.stem} for file in sorted(home.iterdir())]

    some = list(itertools.islice(names(count), 0, count, count // 200))
    return {
        "concepts": count,
        "adds_per_s": added,
        "get_ms": cpu_ms((lambda n=name: json.loads((home / f"{n}.json").read_text())) for name in some),
        "search_ms": cpu_ms([lambda: [about for about in everything() if about["noun"] == "dog"]] * 3),
        "list_ms": cpu_ms([lambda: everything()[:100]] * 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, help="a folder on the disk to use")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(dir=options.home) as name:
        home = Path(name) / "home"
        with Registry(home) as registry:
            start = time.process_time()
            fill(registry, options.count, lambda done: print(f"{done:,} rows", flush=True))
            found = {
                "fill_s": time.process_time() - start,
                "index_mb": (home / "index.db").stat().st_size / 1e6,
            }
            found |= lookups(registry, options.count, rng)
            print(found, flush=True)
            found |= adds(registry, rng)
        print(found, flush=True)
        found |= start_ratio(home)
        beside = folder(Path(name) / "folder", FOLDERS)
    found = {key: round(value, 3) for key, value in found.items()}
    for key, value in found.items():
        print(f"{key:20} {value:12,.3f}   {beside.get(key, float('nan')):12,.3f} in a folder of {FOLDERS:,}")

    from benchmarks.report import finish

    least = {"adds_per_s"}
    holds = all(found[key] >= bar if key in least else found[key] <= bar for key, bar in BARS.items())
    more = {"count": options.count, "beside": {key: round(value, 3) for key, value in beside.items()}}
    finish("registry_scale", found, "CPU", BARS, holds, [options.seed], **more)


if __name__ == "__main__":
    sys.exit(main())
