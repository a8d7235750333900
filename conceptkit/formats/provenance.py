"""Where an exported file came from, in its metadata."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

from conceptkit.concepts.concept import Concept
from conceptkit.registry import private_names


def provenance(concept: Concept, with_names: bool = False) -> str:
    """What these tensors are and where they came from, as JSON for the file's header.

    with_names: also where the base lies on this machine and what the photos are called.
    """
    told = concept.provenance
    return json.dumps(
        {
            "name": concept.name,
            "kind": concept.kind,
            "noun": concept.noun,
            "base": concept.base.to_json(),
            "base_name": concept.base_name if with_names else private_names.public_base(concept.base_name),
            "words": dict(concept.words),
            "recipe": dict(concept.recipe),
            "provenance": dict(told) if with_names else private_names.public_provenance(told),
        },
        sort_keys=True,
    )


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Safetensors bytes, the same on every call: the library writes several header keys in random order."""
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = save(owned)
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}, **json.loads(data[8 : 8 + size])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
