"""Where an exported file came from, in its metadata."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

from conceptkit.concepts.concept import Concept
from conceptkit.safetensors_header import split


def provenance(concept: Concept) -> str:
    """What these tensors are and where they came from, as JSON for the file's header."""
    return json.dumps(
        {
            "name": concept.name,
            "kind": concept.kind,
            "noun": concept.noun,
            "base": concept.base.to_json(),
            "base_name": concept.base_name,
            "words": dict(concept.words),
            "recipe": dict(concept.recipe),
            "provenance": dict(concept.provenance),
        },
        sort_keys=True,
    )


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Safetensors bytes, the same on every call: the library writes several header keys in random order."""
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = save(owned)
    own, body = split(data)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}, **own}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body
