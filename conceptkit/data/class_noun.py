"""A class noun that the names of a concept and of its folder suggest."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any


def suggest_noun(name: str, folder: Path | str | None, nouns: Collection[str]) -> str | None:
    """The class noun that a concept's name or its photos' folder speaks of, or None.

    "my_dog" and "dogs" give "dog", "my_dog_house" gives "house" (the last word is what a thing is), and
    "moongate" gives "gate".
    """
    texts = [_words(name)] + ([_words(Path(os.path.realpath(folder)).name)] if folder is not None else [])
    known = {" ".join(_words(noun)): noun for noun in nouns}
    for words in texts:
        for end in range(len(words), 0, -1):
            for start in range(end):
                for last in _singulars(words[end - 1]):
                    phrase = " ".join([*words[start : end - 1], last])
                    if phrase in known:
                        return known[phrase]
    for words in texts:
        for word in reversed(words):
            for phrase in sorted(known, key=len, reverse=True):
                rest = [single.removesuffix(phrase) for single in _singulars(word) if single.endswith(phrase)]
                # A short noun inside a longer word is mostly chance: a scar is no car, but mydog is a dog.
                if rest and (len(phrase) >= 4 or rest[0] in ("my", "our", "the", "her", "his")):
                    return known[phrase]
    return None


def _words(text: str) -> list[str]:
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", text))
    return re.findall(r"[^\W\d_]+", parted.lower())


def _singulars(word: str) -> list[str]:
    """The word, then what it may be the plural of: "puppies" gives "puppies", "puppy"."""
    single = _english().singular_noun(word)
    return [word, single] if single else [word]


@cache
def _english() -> Any:
    import inflect  # takes a second, and most commands need no plurals

    return inflect.engine()
