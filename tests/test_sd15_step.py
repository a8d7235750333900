"""One real step of learning at Stable Diffusion 1.5's full shape, 512x512 pixels, in 9 GB of memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOM = 9e9  # bytes; weights of 4.2 GB, activations, and what is learned with its moments
ATTENTION_MAPS, TEXT_MAPS = 16 * 2 * 4, 12 * 4
"""Of 16 blocks of the UNet and 12 layers of the text encoder."""


def available() -> float:
    told = Path("/proc/meminfo")
    if not told.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    line = next(line for line in told.read_text().splitlines() if line.startswith("MemAvailable"))
    return float(line.split()[1]) * 1024


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "maps"),
    [
        ("dreambooth", ATTENTION_MAPS + TEXT_MAPS),
        ("custom-diffusion", ATTENTION_MAPS // 2),
        ("custom", ATTENTION_MAPS),
    ],
)
def test_one_step_at_full_size(method, maps):
    if available() < ROOM:
        pytest.skip(f"{available() / 1e9:.1f} GB of memory are free, and this takes up to {ROOM / 1e9:.0f}")
    threads = {"OMP_NUM_THREADS": str(os.cpu_count()), "MKL_NUM_THREADS": str(os.cpu_count())}
    command = [sys.executable, "-m", "benchmarks.sd15", "--method", method, "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["learned"] and told["base_untouched"] and told["maps"] == maps
    assert told["steps"] == 1
    assert told["peak_gb"] < ROOM / 1e9
    assert 1.5 < told["tflop_per_step"] < 3.5, "three times 0.8 TFLOP"
