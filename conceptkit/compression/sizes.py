"""How small a concept is to be: a preset, so many bytes, or the share of its effect that must be left."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from conceptkit.base.pipeline import Base
from conceptkit.compression import sensitivity
from conceptkit.compression.quantizer import Quantizer, low_rank
from conceptkit.concepts.codec.compact import Coded
from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadRecipe
from conceptkit.features.captions import captions

FULL = "full"
PRESETS: dict[str, float | None] = {"tiny": 0.98, "small": 0.995, FULL: None}
"""Name -> the share of its effect on what the base predicts that a concept keeps; None: stored as learned."""
RECIPE = "recipe"
"""The size of a merge of which nothing is stored but how it is made of its parts."""
SHRUNK = "shrunk"
"""The field of a stored recipe that says how much is left."""
UNKNOWN_SHARE, SPARE = 0.9753, 3
"""Stands for a share that is not measured yet where bytes are counted, and the bytes it may be short by."""
HELD_OUT_SEED = 7
MOVED_MORE, LEAST_MOVED = 1.2, 0.01
"""It is said that ordinary captions move more from so many times as much on, and if by so much at least."""
FINEST, COARSEST = 48, -16
"""Steps are 2^(-k/4) for k from COARSEST to FINEST, in units in which a concept's whole effect is 1."""
_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1_000_000, "kib": 1024, "mib": 1 << 20}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


@dataclass(frozen=True)
class SizeRequest:
    """One of three: a preset, a number of bytes of the whole file, or a share to keep in (0, 1).

    Raises BadRecipe unless exactly one is given and makes sense.
    """

    size: str | None = None
    bytes: int | str | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        if [self.size, self.bytes, self.keep].count(None) != 2:
            raise BadRecipe("Give one of a size, a number of bytes, or a share to keep")
        if self.size is not None and self.size not in (*PRESETS, RECIPE):
            raise BadRecipe(f"There is no size {self.size!r}; choose of {', '.join((*PRESETS, RECIPE))}")
        if self.keep is not None and not 0 < self.keep < 1:
            raise BadRecipe(f"No concept can keep {self.keep:g} of its effect; give a share between 0 and 1")
        if self.bytes is not None:
            object.__setattr__(self, "bytes", bytes_of(self.bytes))

    @property
    def share(self) -> float | None:
        """The share that must be left; None where bytes are given, or where nothing may be lost."""
        return PRESETS.get(self.size) if self.size is not None else self.keep


@dataclass(frozen=True, eq=False)
class Smaller:
    """A concept in fewer bytes, and the share of its effect that is left, on pictures not rounded by.

    captions: what it does to ordinary captions as it was, and now; see `sensitivity.captions_moved`.
    """

    concept: Concept
    kept: float
    bytes: int
    captions: tuple[float, float]

    @property
    def notice(self) -> str | None:
        """A sentence where ordinary captions move more than they did."""
        before, now = (math.sqrt(share) for share in self.captions)
        if now < MOVED_MORE * before or now < LEAST_MOVED:
            return None
        return (
            f"Ordinary captions now move by {now:.1%} of what the base predicts, and did by {before:.1%}; a "
            "larger size moves them less."
        )


def bytes_of(amount: int | str) -> int:
    """A number of bytes from 8000, "8kB" or "8 KiB". Raises BadRecipe."""
    found = _AMOUNT.fullmatch(str(amount))
    if (
        not found
        or found[2].lower() not in _UNITS
        or not (count := int(float(found[1]) * _UNITS[found[2].lower()]))
    ):
        raise BadRecipe(f"{amount!r} is no number of bytes; write one like 8kB or 12000")
    return count


def compress(concept: Concept, base: Base, wish: SizeRequest) -> Smaller:
    """The concept as wished: the smallest file that keeps the share, or the best one of so many bytes.

    Raises BadRecipe when nothing rounded is left to choose: fewer bytes than its texts take, a larger share
    than the finest step keeps, a concept with a reference photo, or nothing to lose (`full`).
    """
    if wish.share is None and wish.bytes is None:
        raise BadRecipe(f"The size {FULL} keeps every number as it is; give another to make it smaller")
    small = low_rank(concept)
    asked = sensitivity.probes(base, small)
    quantizer = Quantizer(small, sensitivity.measure(base, small, asked))
    held_out = sensitivity.probes(base, concept, seed=HELD_OUT_SEED)
    made: dict[int, Concept] = {}

    def at(fineness: int) -> Concept:
        if fineness not in made:
            made[fineness] = with_numbers(small, quantizer.at(2 ** (-fineness / 4)))
        return made[fineness]

    def kept(fineness: int) -> float:
        return sensitivity.kept(base, at(fineness), held_out)

    if isinstance(wish.bytes, int):
        chosen = _within(
            wish.bytes, concept.name, lambda k: len(_noted(at(k), UNKNOWN_SHARE).to_bytes()) + SPARE
        )
    else:
        assert wish.share is not None
        chosen = _keeping(wish.share, concept.name, kept)
    share = kept(chosen)
    result = _noted(at(chosen), share)
    ordinary = captions(base.family.name)
    moved = [sensitivity.captions_moved(base, one, held_out, ordinary) for one in (concept, result)]
    return Smaller(result, share, len(result.to_bytes()), (moved[0], moved[1]))


def _noted(concept: Concept, share: float) -> Concept:
    """The concept with what is left of it in its recipe."""
    earlier = concept.recipe.get(SHRUNK)
    before = earlier.get("kept", 1.0) if isinstance(earlier, dict) else 1.0
    return replace(concept, recipe={**concept.recipe, SHRUNK: {"kept": round(share * float(before), 4)}})


def with_numbers(concept: Concept, numbers: Coded) -> Concept:
    """The concept with these numbers for its own."""
    return replace(concept, delta=numbers.delta, tokens=dict(numbers.tokens), coded=numbers)


def _within(limit: int, name: str, size: Callable[[int], int]) -> int:
    """The finest step at which the file has at most so many bytes."""
    if (least := size(COARSEST)) > limit:
        raise BadRecipe(
            f"{name} cannot be stored in {limit:,} bytes: what it says of itself takes {least:,}; ask for "
            "more"
        )
    low, high = COARSEST, FINEST + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    return low


def _keeping(share: float, name: str, kept: Callable[[int], float]) -> int:
    """The coarsest step at which so much is left."""
    if (most := kept(FINEST)) < share:
        raise BadRecipe(
            f"{name} keeps at most {math.floor(most * 1e4) / 1e4:.2%} of its effect when its numbers are "
            f"rounded; ask for less, or leave it as it is (--size {FULL})"
        )
    low, high = COARSEST - 1, FINEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if kept(middle) >= share else (middle, high)
    return high
