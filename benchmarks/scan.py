"""A folder of other programs' files is scanned once and again: files per second, memory, the second scan.

    python -m benchmarks.scan [--files 5000] [--megabytes 10]

The files are sparse where the disk can: a header, a little noise, and zeros. Each has noise of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import finish
from conceptkit.registry.library.files import Library

SECOND = 0.05
"""Share of the first scan that the second may take."""


def fill(folder: Path, count: int, size: int) -> None:
    """Write so many files of that size, a hundred in a folder."""
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    columns = size // 4 // 768
    noise = np.random.default_rng(0)
    for number in range(count):
        header = {
            "__metadata__": {"modelspec.trigger_phrase": f"word{number}"},
            f"{key}.lora_down.weight": {
                "dtype": "F32",
                "shape": [columns, 768],
                "data_offsets": [0, columns * 768 * 4],
            },
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        place = folder / f"{number // 100:03}"
        place.mkdir(exist_ok=True)
        with (place / f"lora{number:05}.safetensors").open("wb") as handle:
            handle.write(len(text).to_bytes(8, "little") + text + noise.bytes(4096))
            handle.truncate(8 + len(text) + columns * 768 * 4)


def main() -> None:
    """Scan twice and print the figures."""
    parser = argparse.ArgumentParser(description="Scan a folder of other programs' files.")
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--megabytes", type=int, default=10)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "loras"
        folder.mkdir()
        fill(folder, asked.files, asked.megabytes << 20)
        times = []
        with Library(Path(place) / "home") as library:
            for _ in "12":
                begun = time.perf_counter()
                done = library.scan(folder)
                times.append(time.perf_counter() - begun)
                assert done.files == asked.files and not done.problems
            found = library.search(["word7"])
            assert found and all(one.about.family == "sd1" for one in found)
    whole = asked.files >= 5000 and asked.megabytes >= 10
    finish(
        "scan",
        round(times[1] / times[0], 4),
        "second scan by the first",
        SECOND,
        times[1] <= SECOND * times[0],
        [0],
        trial="" if whole else f"{asked.files} files of {asked.megabytes} MB",
        files_per_second=round(asked.files / times[0], 1),
        first_seconds=round(times[0], 2),
        second_seconds=round(times[1], 3),
        peak_megabytes=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )


if __name__ == "__main__":
    main()
