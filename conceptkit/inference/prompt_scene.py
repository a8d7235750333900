"""What stands in a prompt, for its layout: each thing's words, its class noun, and who is where to whom.

"my_dog in front of a moongate" has the things my_dog (a dog) and moongate (a gate), my_dog in front; with
class nouns it is "dog in front of a gate".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise

from conceptkit.concepts import prompt_rewriting
from conceptkit.inference.split_prompt import clause_of_each, things

_LEFT = re.compile(r"(?<!\w)left of(?!\w)")
_RIGHT = re.compile(r"(?<!\w)right of(?!\w)")
_ARTICLE = r"\s+(?:an?\s+|the\s+|my\s+)?$"
_OVER = re.compile(rf"(?<!\w)(?:in front of|on top of|on|riding|before){_ARTICLE}")
_UNDER = re.compile(rf"(?<!\w)(?:behind|under|underneath|below|beneath){_ARTICLE}")
_PLURAL = re.compile(r"(?:e?s)?$")

_PHRASE = re.compile(
    r"(?<!\w)(?:an?|the|my|one|two|three|some|several)\s+"
    r"(?:(?!(?:in|on|at|of|to|by|and|with|near|next|under|behind|before|over|an?|the)\s)[\w-]+\s+){0,3}$",
    re.IGNORECASE,
)
"""An article and what may stand between it and a noun."""


@dataclass(frozen=True)
class Thing:
    """One mention of a thing.

    noun: its class noun as the prompt has it. name: of the concept; None for a plain noun. plural: whether it
    is several, "two my_dogs". start: where the noun begins in the prompt of class nouns.
    """

    noun: str
    name: str | None
    start: int
    plural: bool = False

    @property
    def end(self) -> int:
        """Where its noun ends in the prompt of class nouns."""
        return self.start + len(self.noun)

    @property
    def called(self) -> str:
        """For sentences."""
        return self.name or self.noun


@dataclass(frozen=True)
class PromptScene:
    """A prompt of several things.

    plain: the prompt with class nouns for the concepts that are things; styles stay. things: in their order.
    left_of: pairs of their numbers, the first to the left of the second. over: the first in front of the
    second.
    """

    prompt: str
    plain: str
    things: tuple[Thing, ...]
    styles: tuple[str, ...] = ()
    left_of: tuple[tuple[int, int], ...] = ()
    over: tuple[tuple[int, int], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts among the things, each once."""
        return tuple(dict.fromkeys(thing.name for thing in self.things if thing.name))

    def back_to_front(self) -> tuple[int, ...]:
        """The numbers of the things, each after all that it is over."""
        under = {i: [back for front, back in self.over if front == i] for i in range(len(self.things))}
        return tuple(TopologicalSorter(under).static_order())

    def behind(self, i: int) -> set[int]:
        """The numbers of the things behind thing `i`, those behind others of these too."""
        found = {back for front, back in self.over if front == i}
        return found.union(*(self.behind(back) for back in found))

    def before(self, i: int) -> set[int]:
        """The numbers of the things in front of thing `i`, those in front of others of these too."""
        return {j for j in range(len(self.things)) if i in self.behind(j)}


def read_scene(prompt: str, words: Mapping[str, str], nouns: Collection[str] = ()) -> PromptScene:
    """The things of a prompt: concepts of `words` (name -> "<token> noun"), and plain `nouns`."""
    own = things(words)
    plain, found, end = "", [], 0
    for name, (start, stop), plural in _mentions(prompt, own):
        plain += prompt[end:start]
        noun = _noun(own[name]) + plural
        found.append(Thing(noun, name, len(plain), bool(plural)))
        plain += noun
        end = stop
    plain += prompt[end:]
    found += _plain(plain, found, nouns)
    found.sort(key=lambda thing: thing.start)
    styles = tuple(name for name in prompt_rewriting.mentioned(prompt, words) if name not in own)
    left, over = _relations(plain, found)
    return PromptScene(prompt, plain, tuple(found), styles, left, over)


def with_concept(prompt: str, words: Mapping[str, str], kept: Collection[str]) -> str:
    """The prompt with the concepts of `kept` written out, and class nouns for all others that are things."""
    own = things(words)
    text, end = "", 0
    for name, (start, stop), plural in _mentions(prompt, own):
        text += prompt[end:start] + (own[name] if name in kept else _noun(own[name])) + plural
        end = stop
    return prompt_rewriting.replace(text + prompt[end:], {n: t for n, t in words.items() if n not in own})


def without(scene: PromptScene, i: int) -> str:
    """The prompt of class nouns from which thing `i` is left out, with its article and what describes it."""
    thing = scene.things[i]
    before, after = scene.plain[: thing.start], scene.plain[thing.end :]
    if phrase := _PHRASE.search(before):
        before = before[: phrase.start()]
    return re.sub(r" {2,}", " ", before + after).strip()


def alone(scene: PromptScene, i: int, words: Mapping[str, str]) -> str:
    """What the prompt says of thing `i`, a concept of `words`, without the other things; with its name."""
    keys = [f"thing_{k}" for k in range(len(scene.things))]
    text, end = "", 0
    for key, thing in zip(keys, scene.things, strict=True):
        text += scene.plain[end : thing.start] + key
        end = thing.end
    text += scene.plain[end:]
    each = {key: f"<{key}> {thing.noun}" for key, thing in zip(keys, scene.things, strict=True)}
    told = clause_of_each(text, each | {style: words[style] for style in scene.styles}).get(keys[i], text)
    name, noun = scene.things[i].name or "", scene.things[i].noun
    ending = noun[len(_noun(words[name])) :] if scene.things[i].plural else ""
    return re.sub(rf"{keys[i]}(?!\d)", lambda _: name + ending, told)


def _mentions(prompt: str, own: Mapping[str, str]) -> list[tuple[str, tuple[int, int], str]]:
    """Each use of a thing's words: name, where they begin and end, and the ending of a plural."""
    found = []
    for name, (start, stop) in prompt_rewriting.mentions(prompt, own):
        said, noun = prompt[start:stop], _noun(own[name])
        single = any(said.endswith(end) for end in (name, noun))
        ending = "" if single or said.endswith(">") else said[_end_of_plural(said) :]
        found.append((name, (start, stop), ending))
    return found


def _end_of_plural(said: str) -> int:
    """Where the ending of a plural begins, at the end where there is none."""
    found = _PLURAL.search(said)
    return found.start() if found else len(said)


def _noun(text: str) -> str:
    return prompt_rewriting.TOKEN.sub("", text).strip()


def _plain(text: str, found: Sequence[Thing], nouns: Collection[str]) -> list[Thing]:
    """Class nouns that stand in the text beside those of the concepts."""
    if not nouns:
        return []
    spelt = "|".join(re.escape(noun) for noun in sorted(nouns, key=len, reverse=True))
    taken = [(thing.start, thing.end) for thing in found]
    return [
        Thing(match[0], None, match.start(), match["more"] != "")
        for match in re.finditer(rf"(?<!\w)(?:{spelt})(?P<more>s?)(?!\w)", text)
        if not any(match.start() < end and start < match.end() for start, end in taken)
    ]


def _relations(
    text: str, found: Sequence[Thing]
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Who is left of whom, and who is over whom, by what stands between two neighbours."""
    left, over = [], []
    for i, (one, other) in enumerate(pairwise(found)):
        between = text[one.end : other.start].lower()
        if _LEFT.search(between):
            left.append((i, i + 1))
        elif _RIGHT.search(between):
            left.append((i + 1, i))
        if _OVER.search(between):
            over.append((i, i + 1))
        elif _UNDER.search(between):
            over.append((i + 1, i))
    return tuple(left), tuple(over)
