"""What a base is, whatever device or precision it is loaded in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conceptkit.base.attention import kv_maps
from conceptkit.base.text_features import encoders
from conceptkit.errors import BadBlob


def fingerprint_of(pipe: Any) -> Fingerprint:
    """What this base is; tokens added to it and adapters put on it do not count."""
    exact = hashlib.sha256()
    sketch, energy = torch.zeros(SKETCH_SIZE), 0.0
    for name, linear in kv_maps(pipe.unet).items():
        weight = linear.weight.detach().to("cpu", torch.float16)
        exact.update(name.encode())
        exact.update(weight.numpy().tobytes())
        weight = weight.float()
        left = _signs(f"{name} outputs", weight.shape[0])
        right = _signs(f"{name} inputs", weight.shape[1])
        sketch += ((left @ weight) * right).sum(dim=1)
        energy += float(weight.square().sum())
    for tokenizer, encoder in encoders(pipe):
        table = encoder.get_input_embeddings().weight.detach()[: tokenizer.vocab_size]
        exact.update(table.to("cpu", torch.float16).numpy().tobytes())
    scale = (SKETCH_SIZE * max(energy, 1e-30)) ** 0.5
    return Fingerprint(architecture(pipe), exact.hexdigest()[:16], tuple((sketch / scale).tolist()))


def architecture(pipe: Any) -> str:
    """16 hex digits over map names, shapes and text encoder sizes; works on the meta device."""
    value = {
        "maps": [[name, *linear.weight.shape] for name, linear in kv_maps(pipe.unet).items()],
        "encoders": [
            [tokenizer.vocab_size, encoder.config.hidden_size, encoder.config.num_hidden_layers]
            for tokenizer, encoder in encoders(pipe)
        ],
    }
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _signs(label: str, size: int) -> Tensor:
    """(64, size) of +1 and -1, from a hash: the same on every machine and with every library version."""
    octets = hashlib.shake_256(label.encode()).digest(SKETCH_SIZE * size // 8)
    bits = np.unpackbits(np.frombuffer(octets, np.uint8)).reshape(SKETCH_SIZE, size)
    return torch.from_numpy(bits).float() * 2 - 1


SKETCH_SIZE = 64


@dataclass(frozen=True)
class Fingerprint:
    """What a base is, whatever device or precision it is loaded in.

    architecture: 16 hex digits over map names, shapes and text encoder sizes.
    exact: 16 hex digits over the maps and the token table, rounded to float16.
    sketch: 64 random projections of the stacked maps W, divided by ||W||.
    """

    architecture: str
    exact: str
    sketch: tuple[float, ...]

    def distance(self, other: Fingerprint) -> float:
        """An estimate of ||W - W'|| / ||W||; 0 for the same base, infinity for another architecture."""
        if self.architecture != other.architecture:
            return math.inf
        return 0.0 if self.exact == other.exact else math.dist(self.sketch, other.sketch)

    def to_json(self) -> dict[str, Any]:
        return {"architecture": self.architecture, "exact": self.exact, "sketch": list(self.sketch)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fingerprint:
        """Raises BadBlob when the value is not what `to_json` writes."""
        architecture, exact, sketch = (value[key] for key in ("architecture", "exact", "sketch"))
        if not (isinstance(architecture, str) and isinstance(exact, str)):
            raise BadBlob(
                "These bytes are not a concept (its base has no fingerprint); import or learn it again"
            )
        if len(sketch) != SKETCH_SIZE or not all(type(x) is float for x in sketch):
            raise BadBlob("These bytes are not a concept (its sketch is damaged); import or learn it again")
        return cls(architecture, exact, tuple(sketch))
