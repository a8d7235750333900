"""Small damage to bytes and to JSON, drawn by dice, in files that are right in everything else."""

import hashlib
import io
import json
import random
import struct
from collections.abc import Callable
from typing import Any

from conceptkit.registry import sources
from conceptkit.registry.sharing import bundle

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**62, 2**64, 10**40, 0.5, -0.0, 1e308),
    *("", "../../x", "/etc/passwd", "a\nb", "\x1b[2J", "\u202e", "\ud800", "x" * 5000, "0" * 64, "my_dog"),
    *([], {}, [[]], [None], {"": 0}, [0, 0], [-1, 5], ["F32"], {"format": 1}),
)
WORDS = (
    b"\0" * 8,
    b"\xff" * 8,
    b"[" * 2000,
    b'{"a":' * 500,
    b"__metadata__",
    b"NaN",
    b"1e999",
    b"\xed\xa0\x80",
)


def spoil_bytes(dice: random.Random, data: bytes) -> bytes:
    """One to four small changes: bits, bytes, pieces lost, doubled, moved or put in, an end cut off."""
    spoiled = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4))):
        if not spoiled:
            return bytes(spoiled)
        place, length = dice.randrange(len(spoiled)), dice.choice((1, 2, 8, 64, 512))
        how = dice.randrange(7)
        if how == 0:
            spoiled[place] ^= 1 << dice.randrange(8)
        elif how == 1:
            spoiled[place] = dice.randrange(256)
        elif how == 2:
            del spoiled[place : place + length]
        elif how == 3:
            spoiled[place:place] = spoiled[place : place + length]
        elif how == 4:
            spoiled[place : place + dice.choice((0, length))] = dice.choice(WORDS)
        elif how == 5:
            del spoiled[place:]
        else:
            other = dice.randrange(len(spoiled))
            spoiled[place : place + length] = spoiled[other : other + length]
    return bytes(spoiled)


def spoil_pages(dice: random.Random, data: bytes) -> bytes:
    """A database with changes where something is written, since most of it is empty; or anywhere."""
    if dice.randrange(4) == 0:
        return spoil_bytes(dice, data)
    spoiled = bytearray(data)
    for _ in range(dice.choice((1, 1, 3, 20))):
        place = dice.randrange(len(spoiled))
        while not spoiled[place]:
            place = dice.randrange(len(spoiled))
        spoiled[place] = dice.choice((spoiled[place] ^ 1 << dice.randrange(8), dice.randrange(256)))
    return bytes(spoiled)


def spoil_json(dice: random.Random, value: Any) -> Any:
    """One value somewhere in it replaced, dropped, doubled, wrapped or counted up."""
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for key in part if isinstance(part, dict) else range(len(part)):
            places.append((part, key))
            if isinstance(part[key], dict | list):
                walk(part[key])

    box = [json.loads(json.dumps(value))]
    walk(box)
    part, key = dice.choice(places)
    how = dice.randrange(6)
    if how == 0 and len(places) > 1:
        del part[key]
    elif how == 1 and isinstance(part, dict):
        part[dice.choice([*part, "more", "", "\x00"])] = part.pop(key)
    elif how == 2 and isinstance(part, list):
        part.insert(key, part[key])
    elif how == 3 and isinstance(part[key], int):
        part[key] += dice.choice((-1, 1, 2**31, -(2**63)))
    elif how == 4:
        part[key] = [part[key]]
    else:
        part[key] = dice.choice(ODD)
    return box[0] if box else {}


def spoil_blob(dice: random.Random, data: bytes) -> bytes:
    """A concept with damage in its bytes, in its header, or in what conceptkit wrote into its header."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    how = dice.randrange(4)
    if how == 0:
        return spoil_bytes(dice, data)
    if how == 1:
        return data[: 8 + length] + spoil_bytes(dice, data[8 + length :])
    if how == 2:
        header = spoil_json(dice, header)
    else:
        inner = spoil_json(dice, json.loads(header["__metadata__"]["conceptkit"]))
        header["__metadata__"]["conceptkit"] = json.dumps(inner)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def spoil_bundle(dice: random.Random, data: bytes) -> bytes:
    """A bundle with damage in its bytes, or in its manifest or a blob with all else made to fit."""
    if dice.randrange(3) == 0:
        return spoil_bytes(dice, data)

    def change(manifest: Any, blobs: dict[str, bytes]) -> Any:
        if dice.randrange(2):
            return spoil_json(dice, manifest)
        old = dice.choice(sorted(blobs))
        new = spoil_blob(dice, blobs[old]) if blobs[old][:1] != b"\x89" else spoil_bytes(dice, blobs[old])
        digest = hashlib.sha256(new).hexdigest()
        blobs[digest] = new
        text = json.dumps(manifest).replace(old, digest)
        manifest = json.loads(text)
        manifest["blobs"] = sorted([h, len(blobs[h])] for h, _ in manifest["blobs"])
        return manifest

    return remade(data, change)


def remade(data: bytes, change: Callable[[Any, dict[str, bytes]], Any]) -> bytes:
    """A bundle whose manifest is what `change` returns, all headers right for that as far as they can be."""
    file = io.BytesIO(data)
    announced = bundle.read(file)
    blobs = {digest: part.read() for digest, part in bundle.parts(file, announced).items()}
    manifest = change(json.loads(announced.manifest), blobs)
    out = io.BytesIO()
    bundle._put(out, bundle.MANIFEST, json.dumps(manifest).encode())
    listed = manifest.get("blobs") if isinstance(manifest, dict) else None
    for row in listed if isinstance(listed, list) else []:
        digest = row[0] if isinstance(row, list) and row and sources.is_digest(row[0]) else "0" * 64
        bundle._put(out, bundle._path(digest), blobs.get(digest, b""))
    out.write(bytes(2 * bundle.BLOCK))
    return out.getvalue()
