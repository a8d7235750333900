"""A merge that is stored as its recipe: a header without numbers, which is built from its parts by name.

    format 4, the fields of other headers, and "built": [sha256, bytes] of the whole merge

The parts must stay: nothing removes them while a recipe here needs them.
"""

import json
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptkit.registry import compact_header
from conceptkit.registry.errors import ConceptError
from conceptkit.registry.sources import is_digest

if TYPE_CHECKING:
    from conceptkit.registry.store import Entry, Registry

FORMAT = 4
AS_RECIPE = "as_recipe"
"""The field of an entry's summary that says so."""
MISSING = f"""select v.name || '@' || v.version, p.name || '@' || p.version
    from parents p join versions v on v.id = p.version_id
    where json_extract(v.summary, '$.{AS_RECIPE}')
    and (p.hash is null or p.hash not in (select hash from versions))"""
"""(recipe, part) of every part of a recipe that is not here."""
_NEEDING = f"""select v.name, v.version from parents p join versions v on v.id = p.version_id
    where p.hash = ? and json_extract(v.summary, '$.{AS_RECIPE}') order by v.name, v.version"""


def is_recipe(about: Mapping[str, Any]) -> bool:
    """Whether a header is that of a recipe."""
    return about.get("format") == FORMAT and "built" in about


def to_bytes(**fields: object) -> bytes:
    """Safetensors bytes without tensors; `fields` as in other headers, with `rank` and `built`."""
    about = {"format": FORMAT, "needs": compact_header.NEEDS, **fields}
    text = json.dumps(about, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    header = json.dumps({"__metadata__": {"conceptkit": text}}, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def built_of(about: Mapping[str, Any]) -> str:
    """The sha256 of the whole merge. Raises ValueError where a recipe does not say it."""
    digest, size = about["built"]
    if not is_digest(digest) or type(size) is not int:
        raise ValueError("it does not say what it is when it is built")
    return str(digest)


def check_unneeded(registry: "Registry", leaving: "list[Entry]") -> None:
    """Raises ConceptError when a recipe that stays needs one of these versions, which are about to go."""
    going = {(entry.name, entry.version) for entry in leaving}
    for entry in leaving:
        rows = registry.index.query("select name, version from versions where hash = ?", [entry.hash])
        if any((name, version) not in going for name, version in rows):
            continue
        needing = registry.index.query(_NEEDING, [entry.hash])
        if left := [f"{name}@{version}" for name, version in needing if (name, version) not in going]:
            raise ConceptError(
                f"{entry.ref} is a part of {left[0]}, which is stored as its recipe: remove {left[0]} first, "
                f"or store it whole with `conceptkit shrink {left[0]} --size full` and then remove it."
            )


def check_parts(registry: "Registry", entry: "Entry") -> None:
    """Raises ConceptError when a part of a recipe is not here."""
    for recipe, part in registry.index.query(f"{MISSING} and v.hash = ?", [entry.hash]):
        raise ConceptError(
            f"{recipe} is stored as its recipe, and its part {part} is not here: add {part} again, or take "
            f"it back with `conceptkit rm --undo {part}`."
        )
