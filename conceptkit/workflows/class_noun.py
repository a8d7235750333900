"""What kind of thing a concept is: the class noun that a user gave, or that the names suggest."""

from __future__ import annotations

from pathlib import Path

from conceptkit.base import pipeline as bases
from conceptkit.data import class_noun as pictures
from conceptkit.errors import BadRecipe
from conceptkit.registry.names import choose

_COMMON = """
    dog cat bird horse fish rabbit bear duck car bike boat house gate chair table lamp teapot cup bowl vase
    candle clock flower tree plant toy doll robot backpack bag shoe boot sneaker hat glasses sunglasses shirt
    watch camera guitar person man woman boy girl face baby can bottle book statue castle bridge
"""
COMMON_NOUNS = tuple(_COMMON.split())


def noun_of(
    name: str,
    noun: str | None,
    folder: Path | None,
    base: bases.Base,
    notices: list[str],
) -> str:
    """The class noun, with a notice when it was guessed. Raises BadRecipe when there is none."""
    known = base.family.class_nouns
    if noun is None:
        noun = pictures.suggest_noun(name, folder, known or COMMON_NOUNS)
        if noun is None:
            listed = f": {', '.join(known)}" if known else ""
            raise BadRecipe(
                f"Neither {name!r} nor its folder says what kind of thing it is; give --class NOUN{listed}"
            )
        notices.append(f"{name} was taken to be a {noun}; give --class NOUN if it is something else.")
    if known and noun not in known:
        raise BadRecipe(f"The base {base.name} does not know the class {noun!r}; {choose(noun, known)}")
    return noun
