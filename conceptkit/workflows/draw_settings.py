"""Settings of drawings in a TOML file, for those that are given again and again."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from conceptkit.base.load_options import LoadOptions
from conceptkit.errors import BadRecipe
from conceptkit.registry.names import choose
from conceptkit.registry.paths import expanded
from conceptkit.workflows.draw_request import DrawRequest

ON_THE_COMMAND_LINE = ("concepts", "weights", "save")
"""Fields that are of one drawing alone."""


def known_settings() -> dict[str, str]:
    """Name -> annotation of all that a file may set: how to draw, and how to load the base."""
    found = {f.name: str(f.type) for kind in (DrawRequest, LoadOptions) for f in fields(kind)}
    return {"base": "str", "device": "str"} | {n: t for n, t in found.items() if n not in ON_THE_COMMAND_LINE}


def read_settings(file: Path | str) -> dict[str, Any]:
    """The settings in a file, field = value. Raises BadRecipe that names the file and the field."""
    path = expanded(file)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadRecipe(f"{path} cannot be read ({error.strerror}); name a TOML file of settings") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRecipe(f"{path} is no TOML ({error}); write one field = value a line") from error
    known = known_settings()
    for name, value in found.items():
        if name not in known:
            raise BadRecipe(f"{path}: a drawing has no setting {name!r}; {choose(name, known)}")
        if not _fits(value, known[name]):
            raise BadRecipe(f"{path}: {name} = {value!r} makes no sense; give {_wanted(known[name])}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _fits(value: Any, annotation: str) -> bool:
    if isinstance(value, bool) or "bool" in annotation:
        return isinstance(value, bool) and "bool" in annotation
    if "tuple" in annotation:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if "float" in annotation:
        return isinstance(value, int | float)
    return isinstance(value, int if "int" in annotation else str)


def _wanted(annotation: str) -> str:
    kinds = {
        "bool": "true or false",
        "tuple": "a list of texts",
        "float": "a number",
        "int": "a whole number",
    }
    return next((text for kind, text in kinds.items() if kind in annotation), "a text in quotes")
