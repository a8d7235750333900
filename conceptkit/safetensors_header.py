"""The header of safetensors bytes: JSON behind eight bytes of its length, and one key of conceptkit's in it.

The layout is that of https://github.com/huggingface/safetensors. The registry has a reader of its own, which
trusts nobody's bytes; this one is for bytes that safetensors has loaded, or that were just written.
"""

import json
import math
from typing import Any

KEY = "conceptkit"
"""Metadata are one key, because safetensors writes several in random order."""


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header as JSON, and the bytes of the tensors behind it. Raises ValueError for other bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def read_metadata(data: bytes, finite: bool = False) -> Any:
    """The JSON that conceptkit keeps in the header.

    finite: refuse NaN, which JSON has not, and numbers beyond the range of a float.
    Raises ValueError or LookupError for other bytes.
    """
    header, _ = split(data)
    text = header["__metadata__"][KEY]
    return json.loads(text, parse_constant=_no_constant, parse_float=_finite) if finite else json.loads(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is beyond every number")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
