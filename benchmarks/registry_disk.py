"""Tiny concepts on a disk: bytes that they take, and adding and reading them, beside a folder of files.

    python -m benchmarks.registry_disk [--count 1000000] [--reads 20000] [--home DIR]

Each concept is a whole one of format 5, encoded here with numbers of its own shape, under a name of its own.
Bytes on the disk are st_blocks, of files and folders; each file of the folder is written without fsync.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sqlite3
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.registry_scale import names
from benchmarks.report import finish, shortfall
from conceptkit.concepts.codec import compact, symbols
from conceptkit.concepts.concept import Concept
from conceptkit.registry import compact_header, concept_validation
from conceptkit.registry.entries import New
from conceptkit.registry.store import Registry
from tests.test_codec import small

COUNT = 1_000_000
BATCH = 1000
SHAPES = 60
"""Different shapes of concepts, of 0.8 to 5 kB."""
BARS = {"stored_share": 1.15}
"""Bytes of the stored concepts on the disk, the index aside, over the sum of their bytes."""


class Maker:
    """Concepts of many shapes, each as bytes under any name."""

    def __init__(self) -> None:
        self._templates = [_template(number) for number in range(SHAPES)]

    def data(self, number: int, name: str) -> bytes:
        """The bytes of a concept: the numbers of its shape, and a header of its own."""
        about, body = self._templates[number % SHAPES]
        token = f"<{name}>"
        about = about | {"name": name, "tokens": [token], "words": {name: f"{token} dog"}}
        about["crc32"] = compact_header.checksum(about, body)
        text = json.dumps(about, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        outer = {
            "__metadata__": {"conceptkit": text},
            compact_header.CODED: {"dtype": "U8", "shape": [1, len(body)], "data_offsets": [0, len(body)]},
        }
        header = json.dumps(outer, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
        return struct.pack("<Q", len(header)) + header + body


def _template(number: int) -> tuple[dict[str, Any], bytes]:
    """The header's fields and the coded bytes of one concept, of 1 to 37 maps of rank 1 to 3."""
    rng, like = np.random.default_rng(number), small(number)
    block = "mid_block.attentions.0.transformer_blocks"
    maps = tuple(
        compact.MapShape(f"{block}.{i // 2}.attn2.to_{'kv'[i % 2]}", 96, 96, 1 + number % 3, 0)
        for i in range(1 + 4 * (number % 10))
    )
    layout = compact.Layout(maps, (("<thing>", ((1 + number % 3, 96),)),))
    vectors = [
        symbols.Vector(np.round(rng.laplace(size=length) * 2).astype(np.int64), -20)
        for length in layout.lengths()
    ]
    numbers = compact.coded(layout, vectors)
    fields = {name: getattr(like, name) for name in Concept.__dataclass_fields__}
    fields |= {"tokens": dict(numbers.tokens), "delta": numbers.delta, "coded": numbers}
    data = Concept(**fields).to_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["conceptkit"]), data[8 + length :]


def batches(maker: Maker, count: int) -> Iterator[list[tuple[str, bytes]]]:
    """All concepts, so many at a time."""
    known = enumerate(names(count))
    while some := list(itertools.islice(known, BATCH)):
        yield [(name, maker.data(number, name)) for number, name in some]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds on the wall, of CPU) that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def on_disk(*paths: Path) -> int:
    """Bytes of these files and folders, and of all in them, on the disk."""
    every = (inner for path in paths for inner in (path, *(path.rglob("*") if path.is_dir() else ())))
    return sum(512 * inner.lstat().st_blocks for inner in every)


def rates(count: int, added: tuple[float, float], reads: int, read: tuple[float, float]) -> dict[str, float]:
    """Adds and reads a second, by the wall and by CPU."""
    return {
        "adds_per_s_wall": count / added[0],
        "adds_per_s": count / added[1],
        "reads_per_s_wall": reads / read[0],
        "reads_per_s": reads / read[1],
    }


def in_registry(home: Path, maker: Maker, count: int, chosen: list[tuple[int, str]]) -> dict[str, float]:
    """What a registry takes, and how fast it is; what is read is what was added."""
    summary, added, total = concept_validation.check(maker.data(0, "my_dog")).summary, [0.0, 0.0], 0
    with Registry(home) as registry:
        for number, some in enumerate(batches(maker, count)):
            news = [New(name, data, summary) for name, data in some]
            spent = timed(lambda news=news: registry.add_many(news))
            added = [before + more for before, more in zip(added, spent, strict=True)]
            total += sum(len(data) for _, data in some)
            if number % 50 == 49:
                print(f"{(number + 1) * BATCH:,} added in {added[0]:.0f} s", flush=True)
    with Registry(home) as registry:
        spent = timed(lambda: [registry.read(name) for _, name in chosen])
        if any(registry.read(name) != maker.data(number, name) for number, name in chosen[:500]):
            raise AssertionError("read as other bytes")
    stored, whole = on_disk(home / "blobs"), on_disk(home)
    return {
        "bytes_of_concepts": total,
        "stored": stored,
        "stored_share": stored / total,
        "index": whole - stored,
        **rates(count, (added[0], added[1]), len(chosen), spent),
    }


def in_folder(home: Path, maker: Maker, count: int, chosen: list[tuple[int, str]]) -> dict[str, float]:
    """The same of a folder with a file for each: nothing is durable, nothing is checked."""
    home.mkdir()
    added, total = [0.0, 0.0], 0
    for some in batches(maker, count):
        spent = timed(lambda some=some: [(home / name).write_bytes(data) for name, data in some])
        added = [before + more for before, more in zip(added, spent, strict=True)]
        total += sum(len(data) for _, data in some)
    spent = timed(lambda: [(home / name).read_bytes() for _, name in chosen])
    stored = on_disk(home)
    return {
        "stored": stored,
        "stored_share": stored / total,
        **rates(count, (added[0], added[1]), len(chosen), spent),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, help="a folder on the disk to use")
    options = parser.parse_args()
    maker, count = Maker(), options.count
    every = list(enumerate(names(count)))
    chosen = random.Random(options.seed).sample(every, min(count, options.reads))
    with tempfile.TemporaryDirectory(dir=options.home) as name:
        ours = in_registry(Path(name) / "home", maker, count, chosen)
        print(ours, flush=True)
        shutil.rmtree(Path(name) / "home")  # room for the folder
        beside = in_folder(Path(name) / "folder", maker, count, chosen)
        print(beside, flush=True)  # a million files take minutes to delete
    for key, value in ours.items():
        print(f"{key:20} {value:18,.3f}   {beside.get(key, float('nan')):18,.3f} in a folder of files")
    found = {key: round(value, 3) for key, value in ours.items()}
    finish(
        "registry_disk",
        found,
        "bytes on the disk, and a second",
        BARS,
        found["stored_share"] <= BARS["stored_share"],
        [options.seed],
        trial=shortfall(concepts=(count, COUNT)),
        count=count,
        beside={key: round(value, 3) for key, value in beside.items()},
        sqlite=sqlite3.sqlite_version,
    )


if __name__ == "__main__":
    sys.exit(main())
