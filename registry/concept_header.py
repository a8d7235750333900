"""What the header of a stored concept says: safetensors' JSON, read within bounds and without its tensors."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptkit.registry import compact_header, merge_recipe
from conceptkit.registry.errors import BadBlob
from conceptkit.registry.sources import Reader, Source, is_digest

LONGEST = 4 << 20
"""Bytes of a header; one of a concept on SDXL takes 40 kB."""


@dataclass(frozen=True)
class Header:
    """What a concept says of itself. Its version, and whatever was said about it later, are not in here."""

    name: str
    summary: dict[str, Any]  # as far as the header knows it, in the form of `Entry.summary`
    words: tuple[str, ...]  # that stand for it in a prompt
    parents: tuple[tuple[str, str | None], ...]  # (ref, sha256) of what a merge was made of


def take(reader: Reader) -> bytes:
    """The JSON text of a safetensors header, from a reader at its start, which is at the tensors afterwards.

    At most LONGEST bytes are read. Raises BadBlob.
    """
    length = int.from_bytes(reader.read(8), "little")
    if not 2 <= length <= LONGEST:
        raise BadBlob("they do not begin with a header that fits")
    if length > reader.left:
        raise BadBlob("they end before their header does")
    return reader.read(length)


def read(data: bytes | Source) -> Header:
    """The header in these bytes, whose tensors are not read. Raises BadBlob when they are no concept."""
    source = Source.of(data)
    try:
        with source.open() as reader:
            return parsed(json.loads(take(reader)), source.size)
    except (ValueError, RecursionError) as error:
        raise BadBlob(f"These bytes are not a concept ({type(error).__name__} in their header).") from error
    except BadBlob as error:
        raise BadBlob(f"These bytes are not a concept: {str(error).rstrip('.')}.") from error


def read_file(file: Path) -> Header:
    """The header of a file. Raises BadBlob, and OSError."""
    return read(Source.in_file(file))


def read_if_any(data: bytes | Source) -> Header | None:
    """The header in these bytes, or None when they are no concept."""
    try:
        return read(data)
    except BadBlob:
        return None


def parsed(outer: dict[str, Any], size: int) -> Header:
    """The header whose JSON that is, of so many bytes in all. Raises BadBlob."""
    try:
        inner = json.loads(outer["__metadata__"]["conceptkit"])
        name, provenance = inner["name"], inner["provenance"]
        base, recipe, tokens, words = inner["base"], inner["recipe"], inner["tokens"], inner["words"]
        if not (isinstance(name, str) and isinstance(provenance, dict) and isinstance(recipe, dict)):
            raise ValueError("its header is incomplete")
        refs = [str(ref) for ref in provenance.get("parents", [])]
        weights = [float(value) for value in provenance.get("weights", [])]
        if not all(map(math.isfinite, weights)):
            raise ValueError("its weights are no numbers")
        shown = inner.get("reference") or {}
        hashes = [_hash(value) for value in provenance.get("parent_sha256", [])]
        summary = {
            "kind": str(inner["kind"]),
            "noun": None if inner["noun"] is None else str(inner["noun"]),
            "base": {"architecture": str(base["architecture"]), "exact": str(base["exact"])},
            "base_name": str(inner["base_name"]),
            "method": recipe.get("method"),
            "rank": _rank_of(inner, outer),
            "bytes": size,
            "tokens": sorted(str(token) for token in tokens),
            "parents": refs,
            "weights": weights,
            **({"reference": True} if shown else {}),
            **({"rounded": True} if inner.get("format") in compact_header.READ else {}),
            **({merge_recipe.AS_RECIPE: True} if merge_recipe.is_recipe(inner) else {}),
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BadBlob(f"{type(error).__name__} in their header") from error
    padded = [*hashes, *[None] * len(refs)][: len(refs)]
    return Header(name, summary, tuple(map(str, words)), tuple(zip(refs, padded, strict=True)))


def _rank_of(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> int:
    """The largest rank among all maps; a coded concept or a recipe says it."""
    if inner.get("format") in compact_header.READ or merge_recipe.is_recipe(inner):
        return int(inner["rank"])
    shown = inner.get("reference") or {}
    return max(_rank(inner["delta"], outer), _rank(shown.get("maps", {}), outer, "reference."))


def _rank(layout: Mapping[str, Any], tensors: Mapping[str, Any], prefix: str = "") -> int:
    """The largest rank among the maps, from the shapes that the header declares."""
    shapes = [
        tensors[f"{prefix}{'weight' if down is None else 'up'}.{name}"]["shape"]
        for name, down in layout.items()
    ]
    return max((min(int(size) for size in shape) for shape in shapes), default=0)


def _hash(value: Any) -> str | None:
    text = str(value)
    return text if is_digest(text) else None
