"""What a prompt says of each of the concepts in it: one prompt of several things becomes one of each.

"photo of a my_dog wearing a hat next to a moongate in the snow" is "photo of a my_dog wearing a hat in the
snow" and "photo of a moongate in the snow". The words that link things are English; prompts in other
languages are cut at the names alone.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from conceptkit.concepts import prompt_rewriting

LINKS = (
    "in front of",
    "to the left of",
    "to the right of",
    "on the left of",
    "on the right of",
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
OVERLAPPING = (
    "in front of",
    "on top of",
    "sitting on",
    "underneath",
    "behind",
    "holding",
    "riding",
    "through",
    "inside",
    "under",
)
"""Those that say that one thing is before, upon or within the other."""
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
_WORN = "hat|cap|scarf|sunglasses|glasses|coat|jacket|shirt|dress|sweater|boots|shoes|costume|suit"
_THERE = re.compile(_WORD.format("in|at") + rf"(?!\s+(?:an?\s+|the\s+)?(?:\w+\s+)?(?:{_WORN})(?!\w))")
_MANNER = re.compile(r"(?:,|(?<!\w)in the style of(?!\w)).*", re.DOTALL | re.IGNORECASE)
_SIDE = r"(?:on|to|at) (?:the|its|my) (left|right)(?: side)?(?!\w)(?! of)"
_STANDS_AT = re.compile(rf"^(\s*(?:is |\w+ing )?){_SIDE}", re.IGNORECASE)
_SIDE_BEFORE = re.compile(rf"{_SIDE}[,:]?(\s*(?:is )?(?:an?|the|my)?\s*)$", re.IGNORECASE)
_RIGHT_OF = re.compile(_WORD.format("right of"), re.IGNORECASE)
_ARTICLE = re.compile(r"\s(?:a|an|the|my|our|another|one)(?:\s[\w-]+)*\s*$")


def overlap_in(prompt: str) -> str | None:
    """The first words of a prompt that put one thing before, upon or within another; None without any."""
    found = re.search(rf"\b(?:{'|'.join(OVERLAPPING)})\b", prompt)
    return found[0] if found else None


def things(words: Mapping[str, str]) -> dict[str, str]:
    """Those names that stand for a thing: with a class noun after the token, which a style has not."""
    return {name: text for name, text in words.items() if prompt_rewriting.TOKEN.sub("", text).strip()}


def clause_of_each(prompt: str, words: Mapping[str, str]) -> dict[str, str]:
    """Name -> what a prompt says of that thing, from left to right; `words` as in `prompt_rewriting.replace`.

    From left to right is the order of first mention, unless the prompt says otherwise ("my_dog to the right
    of a moongate", "moongate on the left"). Fewer than two things: nothing to take apart, so an empty
    dictionary.
    """
    prompt, sides = _without_sides(prompt, words)
    found = prompt_rewriting.mentions(prompt, things(words))
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
        elsewhere = any(_is_placed(said[k]) for k, (other, _) in enumerate(found) if other == name)
        tail = everywhere
        if elsewhere:  # who has a place of its own shares the manner alone
            tail = match[0] if (match := _MANNER.search(everywhere)) else ""
        told[name] = _tidy(f"{frame} {' '.join(clauses)} {'' if tail.strip() in clauses[-1] else tail}")
    return {name: told[name] for name in _left_to_right(prompt, found, names, sides)}


def _is_placed(text: str) -> bool:
    """Whether what is said of a thing says where it is, not only what it wears or looks at."""
    return _THERE.search(text.replace("looking at", "")) is not None


def _without_sides(prompt: str, words: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The prompt without "on the left" and "on the right", as windows are there already; and who is where."""
    sides: dict[str, str] = {}
    for k in range(len(prompt_rewriting.mentions(prompt, things(words)))):
        name, (start, end) = prompt_rewriting.mentions(prompt, things(words))[k]
        if after := _STANDS_AT.search(prompt[end:]):
            sides[name] = after[2].lower()
            prompt = prompt[:end] + after[1].rstrip() + prompt[end:][after.end() :]
        elif before := _SIDE_BEFORE.search(prompt[:start]):
            sides[name] = before[1].lower()
            prompt = prompt[: before.start()] + before[2].lstrip() + prompt[start:]
    return prompt, sides


def _left_to_right(
    prompt: str,
    found: Sequence[tuple[str, tuple[int, int]]],
    names: Sequence[str],
    sides: Mapping[str, str],
) -> list[str]:
    order = list(names)
    for (one, (_, end)), (other, (start, _)) in pairwise(found):
        if one != other and _RIGHT_OF.search(prompt[end:start]):
            order.remove(one)
            order.insert(order.index(other) + 1, one)
    return sorted(order, key=lambda name: {"left": -1, "right": 1}.get(sides.get(name, ""), 0))


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
