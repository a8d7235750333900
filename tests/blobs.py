"""Concept blobs made without torch, as small as they can be."""

import json
import random
import re
import struct

PNG = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU"
    b"\0\0\0\nIDATx\x9cc`\0\0\0\x02\0\x01H\xaf\xa4q\0\0\0\0IEND\xaeB`\x82"
)
WIDTH = 4


def about(name: str = "my_dog", seed: int = 0, **changes):
    """The metadata of a concept with one full map, one low-rank map and one token."""
    token = f"<{name}>"
    return {
        "format": 1,
        "name": name,
        "kind": "subject",
        "noun": "dog",
        "base": {"architecture": "0" * 16, "exact": "1" * 16, "sketch": [0.125] * 64},
        "base_name": "storybook",
        "tokens": [token],
        "words": {name: f"{token} dog"},
        "delta": {"a.to_k": None, "a.to_v": 0},
        "recipe": {"method": "custom"},
        "provenance": {"seed": seed},
    } | changes


def tensors(seed: int = 0) -> dict[str, tuple[str, tuple[int, int], bytes]]:
    """name -> (dtype, shape, bytes)."""
    dice = random.Random(seed)

    def floats(count: int, code: str) -> bytes:
        return struct.pack(f"<{count}{code}", *(dice.gauss(0, 1) for _ in range(count)))

    return {
        "down.0": ("F32", (1, WIDTH), floats(WIDTH, "f")),
        "rows": ("F16", (2, WIDTH), floats(2 * WIDTH, "e")),
        "token.0.0": ("F32", (1, WIDTH), floats(WIDTH, "f")),
        "up.a.to_v": ("F16", (3, 1), floats(3, "e")),
        "weight.a.to_k": ("F16", (3, WIDTH), floats(3 * WIDTH, "e")),
    }


def pack(metadata: object, parts: dict[str, tuple[str, tuple[int, int], bytes]], **changes: object) -> bytes:
    """Safetensors bytes; `changes` are put into the header as they are."""
    header: dict[str, object] = {"__metadata__": {"conceptkit": json.dumps(metadata)}}
    body = b""
    for name, (dtype, shape, data) in parts.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header | changes).encode()
    return struct.pack("<Q", len(text)) + text + body


def blob(name: str = "my_dog", seed: int = 0, **changes: object) -> bytes:
    """A whole concept; another seed, other bytes."""
    return pack(about(name, seed, **changes), tensors(seed))


def sentence(error: BaseException) -> None:
    """One sentence on one line, not longer than a person reads."""
    assert re.fullmatch(r"[^\n]+[.?]", str(error)), str(error)
    assert len(str(error)) < 500 and not any(ord(letter) < 32 for letter in str(error))
