"""The header of safetensors bytes: JSON behind eight bytes of its length, and one key of conceptkit's in it.

The layout is that of https://github.com/huggingface/safetensors. The registry has a reader of its own, which
trusts nobody's bytes; this one is for bytes that safetensors has loaded, or that were just written.
"""

import json
from typing import Any

KEY = "conceptkit"
"""Metadata are one key, because safetensors writes several in random order."""


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header as JSON, and the bytes of the tensors behind it. Raises ValueError for other bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def read_metadata(data: bytes, finite: bool = False) -> Any:
    """The JSON that conceptkit keeps in the header.

    finite: refuse NaN and infinities, which JSON has not. Raises ValueError or LookupError for other bytes.
    """
    header, _ = split(data)
    return json.loads(header["__metadata__"][KEY], parse_constant=_no_constant if finite else None)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
