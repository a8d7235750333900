"""What a prompt says of each of the concepts in it: one prompt of several things becomes one of each.

"photo of a my_dog wearing a hat next to a moongate in the snow" is "photo of a my_dog wearing a hat in the
snow" and "photo of a moongate in the snow". The words that link things are English; prompts in other
languages are cut at the names alone.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from conceptkit import prompts

LINKS = (
    "in front of",
    "to the left of",
    "to the right of",
    "left of",
    "right of",
    "on top of",
    "next to",
    "close to",
    "along with",
    "together with",
    "looking at",
    "sitting on",
    "alongside",
    "underneath",
    "opposite",
    "beside",
    "behind",
    "facing",
    "beyond",
    "chasing",
    "holding",
    "riding",
    "meeting",
    "watching",
    "through",
    "towards",
    "toward",
    "inside",
    "under",
    "above",
    "below",
    "near",
    "past",
    "over",
    "with",
    "and",
    "or",
    "on",
    "in",
    "at",
    "by",
    "&",
    ",",
)
"""Words between two things; the last of them before a thing ends what is said of the one before it."""
BESIDE = LINKS[: LINKS.index("alongside")]
"""Those that are about where things stand to each other, and can begin a prompt."""
PLACES = (
    "in",
    "on",
    "at",
    "under",
    "inside",
    "outside",
    "during",
    "against",
    "by",
    "near",
    "before",
    "among",
)
"""Words with which a place or time begins, which is that of all things in the picture."""

_WORD = r"(?<!\w)(?:{})(?!\w)"
_LINK = re.compile("|".join(r"\s*,\s*" if w == "," else _WORD.format(re.escape(w)) for w in LINKS))
_PLACE = re.compile(_WORD.format("|".join(PLACES)) + r"|,")
_FRONTED = re.compile(rf"^\s*(?:{'|'.join(map(re.escape, BESIDE))})(?!\w)", re.IGNORECASE)
_PICTURES = (
    "photo|photograph|picture|image|painting|drawing|sketch|portrait|watercolou?r|illustration|render|view"
)
_FRAME = re.compile(rf"^.*(?:\b(?:{_PICTURES})s?\s+of(?=\s)|,)", re.DOTALL | re.IGNORECASE)
_THERE = re.compile(_WORD.format("in|at"))
_ARTICLE = re.compile(r"\s(?:a|an|the|my|our|another|one)(?:\s[\w-]+)*\s*$")


def things(words: Mapping[str, str]) -> dict[str, str]:
    """Those names that stand for a thing: with a class noun after the token, which a style has not."""
    return {name: text for name, text in words.items() if prompts.TOKEN.sub("", text).strip()}


def clause_of_each(prompt: str, words: Mapping[str, str]) -> dict[str, str]:
    """Name -> what a prompt says of that thing, in the order of their first mention; `words` as in
    `prompts.replace`. Fewer than two things: nothing to take apart, so an empty dictionary."""
    found = prompts.mentions(prompt, things(words))
    names = list(dict.fromkeys(name for name, _ in found))
    if len(names) < 2:
        return {}
    spans = [span for _, span in found]
    before, after = prompt[: spans[0][0]], prompt[spans[-1][1] :]
    before = _FRONTED.sub("", before)
    frame = match[0] if (match := _FRAME.match(before)) else ""
    rest, everywhere = _split(after, _PLACE.search(after))
    opening, said = [before[len(frame) :]], []
    for (_, end), (start, _) in pairwise(spans):
        own, of_next = _between(prompt[end:start])
        said.append(own)
        opening.append(of_next)
    said.append(rest)
    if not everywhere.strip():
        everywhere = _told_once(said)
    told: dict[str, str] = {}
    for name in names:
        clauses = [
            f"{opening[k]}{prompt[slice(*spans[k])]}{said[k]}"
            for k, (other, _) in enumerate(found)
            if other == name
        ]
        elsewhere = any(_THERE.search(said[k]) for k, (other, _) in enumerate(found) if other == name)
        tail = "" if elsewhere or everywhere.strip() in clauses[-1] else everywhere
        told[name] = _tidy(f"{frame} {' '.join(clauses)} {tail}")
    return told


def _between(text: str) -> tuple[str, str]:
    """What is said of the thing before, and the words that begin the next one."""
    links = list(_LINK.finditer(text))
    if not links:
        return _split(text, _ARTICLE.search(text))
    return _before_last(text, links), text[links[-1].end() :]


def _before_last(text: str, links: Sequence[re.Match[str]]) -> str:
    """Links that stand side by side (", and") are one."""
    last = links[-1].start()
    for link in reversed(links[:-1]):
        if text[link.end() : last].strip():
            break
        last = link.start()
    return text[:last]


def _told_once(said: Sequence[str]) -> str:
    """The place that is told in the middle, where the end tells none."""
    for text in said:
        places = [place for place in _PLACE.finditer(text) if place[0] != ","]
        if places:
            return text[places[-1].start() :]
    return ""


def _split(text: str, at: re.Match[str] | None) -> tuple[str, str]:
    return (text, "") if at is None else (text[: at.start()], text[at.start() :])


def _tidy(text: str) -> str:
    return re.sub(r"\s+([,.;:])", r"\1", " ".join(text.split()))
