"""Files of other programs, each spoiled in one way; some ways leave it whole."""

import json
import random


def spoil_file(data: bytes, dice: random.Random) -> bytes:
    """A mutation of a file's bytes: cut, overwritten, or with another header where it has one."""
    ways = [_cut, _flip, _zero, _swap]
    if data[8:9] == b"{":
        ways += [_rename, _reshape, _drop, _metadata, _dtype]
    return dice.choice(ways)(data, dice)


def _cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))]


def _flip(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(min(len(data), 4096) if dice.random() < 0.7 else len(data))
    return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]


def _zero(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]


def _swap(data: bytes, dice: random.Random) -> bytes:
    a, b = sorted(dice.randrange(len(data)) for _ in "ab")
    return data[:a] + data[b : b + 16] + data[a + 16 :]


def _header(data: bytes) -> tuple[dict, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _joined(header: dict, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def _rename(data: bytes, dice: random.Random) -> bytes:
    header, body = _header(data)
    key = dice.choice([key for key in header if key != "__metadata__"])
    other = dice.choice(
        ["x", f"{key}.more", key.replace("down", "up"), key.replace("_", "."), "emb_params", ""]
    )
    header[other] = header.pop(key)
    return _joined(header, body)


def _reshape(data: bytes, dice: random.Random) -> bytes:
    header, body = _header(data)
    about = header[dice.choice([key for key in header if key != "__metadata__"])]
    shape = about["shape"]
    about["shape"] = dice.choice([shape[::-1], [*shape, 1], [1, *shape], [-1, *shape[1:]], []])
    return _joined(header, body)


def _drop(data: bytes, dice: random.Random) -> bytes:
    """One tensor less; the others close up."""
    header, body = _header(data)
    gone = dice.choice([key for key in header if key != "__metadata__"])
    begin, end = header.pop(gone)["data_offsets"]
    for key, about in header.items():
        if key != "__metadata__" and about["data_offsets"][0] >= end:
            about["data_offsets"] = [at - (end - begin) for at in about["data_offsets"]]
    return _joined(header, body[:begin] + body[end:])


def _metadata(data: bytes, dice: random.Random) -> bytes:
    header, body = _header(data)
    odd = [
        "",
        "{",
        "[]",
        "{}",
        '{"base": 1}',
        "\x1b[2J",
        "<script>",
        "null",
        '{"name": 1, "words": {}}',
        "9" * 5000,
    ]
    key = dice.choice(["conceptkit", "modelspec.trigger_phrase", "ss_tag_frequency", "lora_adapter_metadata"])
    header["__metadata__"] = {**header.get("__metadata__", {}), key: dice.choice(odd)}
    return _joined(header, body)


def _dtype(data: bytes, dice: random.Random) -> bytes:
    header, body = _header(data)
    about = header[dice.choice([key for key in header if key != "__metadata__"])]
    about["dtype"] = dice.choice(["F16", "I32", "BOOL", "F8_E4M3", "X"])
    return _joined(header, body)
