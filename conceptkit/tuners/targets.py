"""Which maps of a part of a base learn."""

from __future__ import annotations

import re
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

TEXT_ENCODER = r"\bself_attn\.(?:q|k|v|out)_proj"
"""Maps of a CLIP encoder's attention. Those of a denoiser are in `base.architectures`."""


def find(module: nn.Module, pattern: str) -> dict[str, Any]:
    """Linear maps of a module whose names end with a pattern; one under a tuner is its tuner layer."""
    whole = re.compile(f".*{pattern}")
    found: dict[str, Any] = {}
    tuned: tuple[str, ...] = ()
    for path, layer in module.named_modules():
        if tuned and path.startswith(tuned):
            continue
        linear = layer
        if isinstance(layer, BaseTunerLayer):
            tuned, linear = (*tuned, f"{path}."), layer.get_base_layer()
        if isinstance(linear, nn.Linear) and whole.fullmatch(path):
            found[path] = layer
    return found
