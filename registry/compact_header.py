"""The header of a concept whose numbers are coded, which are not looked at here: formats 3 and 5."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

FORMAT = 5
"""What is written."""
BEFORE = 3
"""The same header, with numbers that were coded in another way: it is read, and not written."""
READ = (BEFORE, FORMAT)
CODED = "coded"
"""The name of its only tensor, uint8 (1, n)."""
FIELDS = {
    *("format", "needs", "name", "kind", "noun", "base", "base_name", "tokens", "words", "recipe", "rank"),
    *("provenance", "crc32"),
}
NEEDS = "0.1"
"""The version of conceptkit from which on this format is read."""
MOST_RANK = 1 << 20


def public_fields(**fields: object) -> dict[str, object]:
    """The header with these fields, without its checksum."""
    return {"format": FORMAT, "needs": NEEDS, **fields}


def checksum(about: Mapping[str, Any], body: bytes) -> int:
    """CRC-32 of the header's other fields and of the coded bytes behind it."""
    fields = {key: value for key, value in about.items() if key != "crc32"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return zlib.crc32(body, zlib.crc32(text.encode()))


def newer(about: Mapping[str, Any]) -> str | None:
    """Why a header of a format that nobody here knows cannot be read; None where the format is no newer."""
    form = about.get("format")
    if type(form) is not int or form <= FORMAT:
        return None
    needs = about.get("needs")
    known = isinstance(needs, str) and len(needs) < 20 and needs.replace(".", "").isalnum()
    by = f"conceptkit {needs} or newer" if known else "a newer conceptkit"
    return f"their format is {form}, which {by} reads, and this one reads 1 to {FORMAT}"
