"""What a concept may say of the machine it was learned on: hashes; no paths, and no names of files.

A concept's bytes leave for bundles and remotes as they are, signed and known by their hash, so nothing can be
taken out of them later. Paths and names of files stay in the index of the machine that they belong to.
"""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from conceptkit.registry import concept_header
from conceptkit.registry.errors import BadBlob
from conceptkit.registry.sources import Source

PHOTOS = "photos"
"""The key, in a concept's provenance, of the names of its photos; it is in no bytes written today."""


OF_PHOTOS = "the names of its photos"
"""What `held` calls them."""


def is_path(base_name: str) -> bool:
    """Whether a base is named by a place on a machine, not by an id that everybody knows."""
    windows = PureWindowsPath(base_name)
    return base_name.startswith(("/", "~", ".", "\\")) or bool(windows.drive) or "\\" in base_name


def public_base(base_name: str) -> str:
    """The name of a base as others may read it: of a folder its own name alone, and not where it lies."""
    if not is_path(base_name):
        return base_name
    kind = PureWindowsPath if "\\" in base_name or PureWindowsPath(base_name).drive else PurePosixPath
    return kind(base_name).name or "base"


def public_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance without the names of files; the hashes of the photos stay."""
    return {key: value for key, value in provenance.items() if key != PHOTOS}


def held(data: bytes | Source) -> list[str]:
    """What a stored concept says of its machine: "the path of its base", "the names of its photos"."""
    try:
        with Source.of(data).open() as reader:
            inner = json.loads(json.loads(concept_header.take(reader))["__metadata__"]["conceptkit"])
        path, photos = is_path(str(inner["base_name"])), bool(inner["provenance"].get(PHOTOS))
    except (BadBlob, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
    return ["the path of its base"] * path + [OF_PHOTOS] * photos


def sentence(refs: Mapping[str, list[str]]) -> str:
    """One sentence about versions that tell of the machine they were learned on."""
    names = list(refs)
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    what = " and ".join(dict.fromkeys(what for told in refs.values() for what in told))
    return (
        f"{shown} was learned by an older conceptkit and takes {what} along: "
        "learn it again to leave them here."
    )
