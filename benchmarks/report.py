"""The one line that every benchmark ends with."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import torch


def machine() -> str:
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return f"{platform.machine()}, {cores} cores, torch {torch.__version__}, {threads} threads"


def finish(name: str, value: Any, unit: str, bar: Any, holds: bool | None, seeds: Any, **more: Any) -> None:
    """Print the result as one JSON object, as the last line."""
    figures = {"name": name, "value": value, "unit": unit, "bar": bar, "holds": holds, "seeds": seeds}
    print(json.dumps({**figures, **more, "machine": machine()}))
