"""Which maps of a base learn: presets by name, as a table of patterns."""

from __future__ import annotations

import re
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

_ATTENTION = r"\battn[12]\.to_(?:q|k|v|out\.0)"
PRESETS = {
    "kv": r"\battn2\.to_[kv]",
    "cross": r"\battn2\.to_(?:q|k|v|out\.0)",
    "attn": _ATTENTION,
    "attn+ff": rf"(?:{_ATTENTION}|\bff\.net\.(?:0\.proj|2))",
    "linear": r"",
    "text": r"\bself_attn\.(?:q|k|v|out)_proj",
}
READS_TEXT = re.compile(PRESETS["kv"] + "$")


def find(module: nn.Module, name: str) -> dict[str, Any]:
    """Linear maps of a module that a preset names; one under a tuner is its tuner layer."""
    pattern = re.compile(f".*{PRESETS[name]}")
    found: dict[str, Any] = {}
    tuned: tuple[str, ...] = ()
    for path, layer in module.named_modules():
        if tuned and path.startswith(tuned):
            continue
        linear = layer
        if isinstance(layer, BaseTunerLayer):
            tuned, linear = (*tuned, f"{path}."), layer.get_base_layer()
        if isinstance(linear, nn.Linear) and pattern.fullmatch(path):
            found[path] = layer
    return found
