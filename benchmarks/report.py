"""The one line that every benchmark ends with."""

from __future__ import annotations

import json
import math
import os
import platform
from typing import Any

import torch


def use_own_cores() -> None:
    """A thread for each core that this process may use: two benchmarks at once each keep to their own."""
    torch.set_num_threads(_cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    cores, threads = _cores(), torch.get_num_threads()
    return f"{platform.machine()}, {cores} cores, torch {torch.__version__}, {threads} threads"


def shortfall(steps: int | None = None, **counts: tuple[int, int]) -> str:
    """What a run lacks of a full one, "2 subjects of 10, 5 learning steps"; "" when it lacks nothing.

    counts: what was asked for and what a full run has. steps: learning steps, where the user cut them.
    """
    lacks = [f"{got} {name} of {full}" for name, (got, full) in counts.items() if got < full]
    return ", ".join([*lacks, *([f"{steps} learning steps"] if steps else [])])


def finish(
    name: str,
    value: Any,
    unit: str,
    bar: Any,
    holds: bool | None,
    seeds: Any,
    *,
    trial: str = "",
    **more: Any,
) -> None:
    """Print the result as one JSON object, as the last line.

    trial: what the run lacks of a full one, if anything; then it holds nothing, whatever came out.
    """
    if trial:
        print(f"A trial, which says nothing about the bar: {trial}.")
        holds, more = None, {**more, "trial": trial}
    figures = {"name": name, "value": value, "unit": unit, "bar": bar, "holds": holds, "seeds": seeds}
    print(json.dumps(_plain({**figures, **more, "machine": machine()}), allow_nan=False))


def _plain(value: Any) -> Any:
    """What has no value is null: NaN is no JSON."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
