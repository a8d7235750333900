"""Damaged concepts, bundles, records and index files: each is refused in one sentence or read correctly.

    python -m benchmarks.registry_fuzz [--count 100000] [--seed 0]

Damage comes before hashing, so that it is not the hash that refuses it. Counted as failures: any exception
but ConceptError, any case over 10 s, any file opened for writing, made or renamed outside of the home.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import finish
from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadBlob, ConceptError
from conceptkit.registry import concept_validation
from conceptkit.registry.catalogue import history, labels, search
from conceptkit.registry.sharing import exchange, incoming, records, sync
from conceptkit.registry.store import Registry
from tests.blobs import PNG, blob
from tests.mutate import spoil_blob, spoil_bundle, spoil_bytes, spoil_json, spoil_pages

LONGEST = 10.0
"""Seconds that one case may take."""
SHARES = {"blob": 0.6, "bundle": 0.27, "record": 0.1, "index": 0.03}


class Fuzz:
    """The cases of each kind, in a home of their own; each method returns what became of one case."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.dice, self.home = random.Random(seed), folder / "home"
        with Registry(folder / "seed") as registry:
            for number, name in enumerate(("my_dog", "my_dog", "moongate")):
                data = blob(name, number)
                registry.add(name, data, concept_validation.check(data).summary, new_version=True)
            registry.set_preview("my_dog", 2, PNG)
            labels.tag(registry, "my_dog", ["teal"])
            labels.note(registry, "my_dog", "good")
            entries = exchange.chosen(registry, ["my_dog", "moongate"], every=True)
            exchange.export(registry, entries, folder / "whole.bundle")
            self.record = sync._record(registry, registry.get("my_dog@2")).to_bytes()
            registry.index.conn.execute("pragma wal_checkpoint(truncate)")
        self.seed = folder / "seed"
        self.bundled = (folder / "whole.bundle").read_bytes()
        self.blobs = [blob("my_dog", number) for number in range(8)]
        self.index = (folder / "seed" / "index.db").read_bytes()

    def blob(self) -> str:
        data = spoil_blob(self.dice, self.dice.choice(self.blobs))
        try:
            header = concept_validation.check(data)
        except BadBlob as error:
            self.sentence(error)
            return "refused"
        concept = Concept.from_bytes(data)  # may still refuse maps that do not fit together
        if concept.name != header.name or sorted(concept.tokens) != header.summary["tokens"]:
            raise AssertionError("read as another concept")
        return "read"

    def bundle(self) -> str:
        found = exchange.from_bytes(spoil_bundle(self.dice, self.bundled), self.home)
        with Registry(self.home) as registry:
            arrivals = incoming.receive(registry, found, "import")
            for parcel, arrival in zip(found, arrivals, strict=True):
                if registry.read(arrival.entry) != parcel.data:
                    raise AssertionError("stored as other bytes")
            for name in {arrival.entry.name for arrival in arrivals if arrival.new}:
                registry.remove(name)
        return "read"

    def record_(self) -> str:
        if self.dice.randrange(2):
            data = spoil_bytes(self.dice, self.record)
        else:
            import json

            data = json.dumps(spoil_json(self.dice, json.loads(self.record))).encode()
        record = records.parse_record(data, "my_dog")
        if record.name.lower() != "my_dog" or ".." in record.hash or record.bytes < 0:
            raise AssertionError("believed")
        return "read"

    def index_(self) -> str:
        home = self.home / "indexed"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        shutil.copytree(self.seed / "blobs", home / "blobs")
        (home / "index.db").write_bytes(spoil_pages(self.dice, self.index))
        with Registry(home) as registry:
            for entry in registry.list():
                registry.get(entry.name)
                registry.versions(entry.name)
                if registry.read(entry) not in (blob("my_dog", 0), blob("my_dog", 1), blob("moongate", 2)):
                    raise AssertionError("handed out other bytes")
                registry.preview(entry)
                labels.tag(registry, entry.name)
                labels.notes(registry, entry.name)
                history.history(registry, entry.name)
            search.search(registry, "my_dog")
            registry.add("new", blob("new"), {}, new_version=True)
            registry.remove("new")
        return "read"

    def sentence(self, error: ConceptError) -> None:
        if "\n" in str(error) or not str(error).endswith((".", "?", "!")) or len(str(error)) > 600:
            raise AssertionError(f"no sentence: {str(error)!r}")

    def one(self, kind: str) -> str:
        case: Callable[[], str] = {
            "blob": self.blob,
            "bundle": self.bundle,
            "record": self.record_,
            "index": self.index_,
        }[kind]
        try:
            return case()
        except ConceptError as error:
            if kind != "record":  # those become part of a sentence
                self.sentence(error)
            return "refused"


def watch(home: Path) -> list[str]:
    """What is written, made, renamed or deleted outside of `home` from now on, as far as Python sees it."""
    seen: list[str] = []
    inside = str(home.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            written = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            paths = [path] if written else []
        elif event in ("os.remove", "os.rmdir"):
            path, folder = arguments
            paths = [path if folder in (None, -1) else f"{os.readlink(f'/proc/self/fd/{folder}')}/{path}"]
        elif event in ("os.mkdir", "os.truncate", "os.chmod"):
            paths = [arguments[0]]
        elif event in ("os.rename", "os.link", "os.symlink", "shutil.move"):
            paths = list(arguments[:2])
        else:
            return
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                full = os.path.abspath(os.fsdecode(path))
                if not full.startswith(inside) and full != os.devnull:
                    seen.append(f"{event} {full}")

    sys.addaudithook(hook)
    return seen


def too_long(*_: object) -> None:
    raise TimeoutError(f"over {LONGEST} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the homes are; a memory disk is quickest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name).resolve()
        fuzz = Fuzz(folder, options.seed)
        outside = watch(folder)
        signal.signal(signal.SIGALRM, too_long)
        outcomes: Counter[str] = Counter()
        failures: list[str] = []
        slowest, began = 0.0, time.process_time()
        for kind, share_ in SHARES.items():
            for number in range(round(options.count * share_)):
                start = time.perf_counter()
                signal.setitimer(signal.ITIMER_REAL, LONGEST)
                try:
                    outcomes[f"{kind} {fuzz.one(kind)}"] += 1
                except Exception:
                    outcomes[f"{kind} failed"] += 1
                    if len(failures) < 20:
                        failures.append(f"{kind} {number}: {traceback.format_exc()}")
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                slowest = max(slowest, time.perf_counter() - start)
            told = {key: count for key, count in outcomes.items() if key.startswith(kind)}
            print(f"{told}  {time.process_time() - began:.0f} s of CPU", flush=True)
    for text in [*failures, *outside[:20]]:
        print(text)
    failed = sum(count for key, count in outcomes.items() if key.endswith("failed")) + len(outside)
    finish(
        "registry_fuzz",
        failed,
        "failures",
        0,
        failed == 0,
        [options.seed],
        cases=sum(outcomes.values()),
        outcomes=dict(outcomes),
        outside=len(outside),
        slowest_seconds=round(slowest, 3),
        cpu_seconds=round(time.process_time() - began),
    )


if __name__ == "__main__":
    main()
