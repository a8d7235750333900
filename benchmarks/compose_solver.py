"""Merging at Stable Diffusion 1.5's size: seconds against the reference formula, growth, memory.

The reference is written from its mathematics alone: for each layer, with what is asked for at the rows, an LU
of the captions' second moment, and a dense update of the layer's matrix (Custom Diffusion, eq. 5).
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks.report import finish
from conceptkit.features.closed_form import Factor, factor, merge_rows

D = 768
MAPS = [320] * 10 + [640] * 10 + [1280] * 12
OUTPUTS = sum(MAPS)
BAR, MEMORY_BAR = 20.0, 3.0
ROWS = 6
"""Of each concept: its word, its noun and what follows in two prompts, about what the reference takes."""
REPEATS, SLOW_REPEATS = 5, 2


def problem(concepts: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Captions (4000, d), rows C (s, d) float64 and targets R (s, O) float32 of an uneven spectrum."""
    make = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(0, -2, D, dtype=torch.float64)
    captions = torch.randn(4000, D, generator=make, dtype=torch.float64) * sizes
    c = torch.randn(concepts * rows, D, generator=make, dtype=torch.float64) * sizes
    return captions, c, torch.randn(concepts * rows, OUTPUTS, generator=make)


def reference(weights: list[Tensor], captions: Tensor, c: Tensor, targets: Tensor) -> list[Tensor]:
    """W + (V - W C^T) (C G^-1 C^T)^-1 C G^-1 for each map (o, d) in float32, as the formula stands."""
    moment = (captions.T @ captions).float() / len(captions)
    moment += 1e-4 * moment.trace() / D * torch.eye(D)
    rows, result = c.float(), []
    for weight, wanted in zip(weights, targets.split(MAPS, dim=1), strict=True):
        values = weight @ rows.T + wanted.T
        lu = torch.linalg.lu_factor(moment)
        solved = torch.linalg.lu_solve(*lu, rows.T)
        inner = torch.linalg.solve(rows @ solved, solved.T)
        result.append(weight + (values - weight @ rows.T) @ inner)
    return result


def merged(metric: Factor, white: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(down, up): what the kit keeps of a merge, the maps' own rows being views of `up`."""
    solution = merge_rows(white, targets, metric)
    return solution.down, solution.up


def seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """CPU seconds of the fastest of a few calls."""
    best = float("inf")
    for _ in range(repeats):
        gc.collect()
        begun = time.process_time()
        call()
        best = min(best, time.process_time() - begun)
    return best


def peak(concepts: int) -> float:
    """Peak memory of a merge by the size of its inputs (rows and targets), in a process of its own."""
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.compose_solver", "--measure", str(concepts)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(out.stdout.splitlines()[-1])["ratio"])


def measure(concepts: int) -> None:
    captions, c, targets = problem(concepts, ROWS)
    metric = factor(captions.T @ captions / len(captions))
    white = metric.whiten(c)
    merged(metric, white[:2], targets[:2])  # what the libraries themselves take
    inputs = (c.nbytes + white.nbytes + targets.nbytes) / 2**20
    del captions, c
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the high water mark so far
    before = memory("VmRSS")
    held = [merged(metric, white, targets)]
    print(json.dumps({"ratio": (inputs + memory("VmHWM") - before) / inputs, "kept": len(held)}))


def memory(what: str) -> float:
    """MiB of this process as Linux counts them: "VmRSS" now, "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 2**10


@click.command()
@click.option("--measure", "only", type=int, help="Only print what so many concepts take in memory.")
def main(only: int | None) -> None:
    if only:
        measure(only)
        return
    captions, c, targets = problem(2, ROWS)
    weights = [torch.randn(o, D) * 0.02 for o in MAPS]
    moment = captions.T @ captions / len(captions)
    metric = factor(moment)
    white = metric.whiten(c)
    slow = seconds(lambda: reference(weights, captions, c, targets), SLOW_REPEATS)
    cached = seconds(lambda: merged(metric, white, targets))

    def uncached() -> object:
        fresh = factor(captions.T @ captions / len(captions))
        return merged(fresh, fresh.whiten(c), targets)

    whole = seconds(uncached)
    found = reference(weights, captions, c, targets)
    down, up = merged(metric, white, targets)
    apart = max(
        float((block - weight - (part @ down.float())).norm() / (block - weight).norm())
        for block, weight, part in zip(found, weights, up.split(MAPS), strict=True)
    )
    print(f"2 concepts: reference {slow:.3f} s, cached {cached:.4f} s, uncached {whole:.3f} s CPU")
    print(f"the two agree to {apart:.1e} of the change")
    times, held = {}, {}
    for concepts in (2, 10, 50, 100):
        _, c, targets = problem(concepts, ROWS)
        white = metric.whiten(c)
        times[concepts] = seconds(lambda white=white, targets=targets: merged(metric, white, targets))  # type: ignore[misc]
        held[concepts] = peak(concepts)
        s = concepts * ROWS
        work = s * s * D + s**3
        print(
            f"{concepts:4d} concepts, s = {s:3d}, s/d = {s / D:.2f}: {times[concepts]:.4f} s, "
            f"{times[concepts] / work * 1e9:.2f} ns by s^2 d + s^3, memory {held[concepts]:.2f} x inputs"
        )
    holds = slow / cached >= BAR and max(held.values()) <= MEMORY_BAR
    finish(
        "compose_solver",
        slow / cached,
        "times faster than the reference formula, factor cached",
        BAR,
        holds,
        0,
        uncached=slow / whole,
        seconds={"reference": slow, "cached": cached, "uncached": whole},
        by_concepts=times,
        memory_by_inputs=held,
        memory_bar=MEMORY_BAR,
        agreement=apart,
    )


if __name__ == "__main__":
    main()
