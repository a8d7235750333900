"""Names in prompts: where concepts are attached, "my_dog at night" reads as "<my_dog> dog at night"."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import overload

TOKEN = re.compile(r"<[^\s<>]+>")


@overload
def replace(prompt: str, words: Mapping[str, str]) -> str: ...
@overload
def replace(prompt: None, words: Mapping[str, str]) -> None: ...
@overload
def replace(prompt: list[str] | tuple[str, ...], words: Mapping[str, str]) -> list[str]: ...
def replace(prompt, words):
    """The prompt with every name replaced by the text it stands for, e.g. {"my_dog": "<my_dog> dog"}.

    Whole words only, the longest name first, upper and lower case distinct; "two my_dogs" are two "<my_dog>
    dogs". A noun that already follows is not said twice, a token that is already written stays, a second call
    changes nothing. Lists give lists.
    """
    if prompt is None or not words:
        return prompt
    if not isinstance(prompt, str):
        return [replace(text, words) for text in prompt]
    return _pattern(words).sub(
        lambda found: words[_name(found)] + found["plural"] if found["bare"] else found[0], prompt
    )


def mentioned(prompt: str | Sequence[str] | None, words: Mapping[str, str]) -> set[str]:
    """The names that a prompt, or any prompt of a list, uses: as words or through their tokens."""
    if not prompt or not words:
        return set()
    if not isinstance(prompt, str):
        return set().union(*(mentioned(text, words) for text in prompt))
    return {name for name, _ in mentions(prompt, words)}


def mentions(prompt: str, words: Mapping[str, str]) -> list[tuple[str, tuple[int, int]]]:
    """Each use of a concept in a prompt, in order: its name, and where the words for it begin and end."""
    places = []
    for found in _pattern(words).finditer(prompt) if words else ():
        if found["bare"]:
            places.append((_name(found), found.span()))
            continue
        tokens = TOKEN.findall(found[0])
        said = (n for n, text in words.items() if text == found[0] or any(t in text for t in tokens))
        places += [(n, found.span()) for n in said]
    return places


def nearest(name: str, names: Collection[str]) -> str | None:
    """The known name that a misspelt one probably means."""
    folded = {known.casefold(): known for known in sorted(names)}
    return next((folded[found] for found in difflib.get_close_matches(name.casefold(), folded, n=1)), None)


def _name(found: re.Match[str]) -> str:
    return found["bare"].split()[0]


def _pattern(words: Mapping[str, str]) -> re.Pattern[str]:
    """Matches what must stay (replacements already made, tokens), then `bare` names and a noun after them.

    A hyphen joins: "my_dog" is no word of "my_dog-like".
    """
    done = _any(words.values())
    bare = "|".join(
        rf"{re.escape(name)}{_noun(words[name])}" for name in sorted(words, key=len, reverse=True)
    )
    bare = rf"(?P<bare>{bare})(?P<plural>(?:e?s)?)"
    return re.compile(rf"(?:{done})(?:e?s)?(?!\w)|{TOKEN.pattern}|(?<![\w<])(?<!\w-){bare}(?!\w)(?!-\w)")


def _noun(text: str) -> str:
    """What follows the token in a replacement, as an optional pattern."""
    token = TOKEN.match(text)
    noun = text[token.end() :].split() if token else []
    return "(?:" + "".join(rf"\s+{re.escape(word)}" for word in noun) + ")?"


def _any(texts: Collection[str]) -> str:
    """Any of the texts; one that begins with a letter is no end of another word."""
    longest = sorted(texts, key=len, reverse=True)
    return "|".join((r"(?<![\w<])" if text[:1].isalnum() else "") + re.escape(text) for text in longest)
