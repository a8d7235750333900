"""What is ordered: concepts by name, each as strong as it was asked for, and a way of merging them.

No torch here, so that a command finds a mistake before it loads anything.
"""

import math
from collections.abc import Sequence

from conceptkit.errors import BadRecipe, BadRegion, ConceptError

WAYS = {
    "soft": "least squares over everybody's prompts and ordinary captions, each gives way a little",
    "constrained": "each is exact on its own words, ordinary captions move least beside that",
    "routed": "each token reads its own concept's delta alone",
    "sum": "the deltas added up",
    "average": "their mean",
    "svd": "their sum, cut to the largest of their ranks",
    "ties": "TIES: the strongest entries, by majority of signs",
    "joint": "a concept that was learned of all of them together",
}
HOW = "soft"
"""Unless told otherwise: of several concepts in one delta it keeps more on prompts that nothing was fitted on
than exact rows or a sum do, and moves ordinary captions less."""
SHARED = ("sum", "average", "drop")
"""What end of text and padding read in a routed merge: the sum or the mean of the deltas of the concepts that
the prompt names, or none. The first is the default, by what is left of two concepts in one picture."""
STRONGEST = 10.0
"""A delta ten times as strong as it was learned gives noise on any base."""


def split_weight(order: str) -> tuple[str, float]:
    """`"my_dog:0.8"` is my_dog at 0.8 of its strength, `"my_dog"` at 1. Raises BadRecipe on other weights."""
    name, colon, written = order.partition(":")
    if not colon:
        return name, 1.0
    try:
        weight = float(written)
    except ValueError:
        raise BadRecipe(
            f"{written[:40]!r} is no weight for {name[:64]}; give a number, as in {name[:64]}:0.8"
        ) from None
    return name, check_weight(name, weight)


def check_weight(name: str, weight: float) -> float:
    """The weight itself. Raises BadRecipe unless 0 < weight <= STRONGEST."""
    if math.isfinite(weight) and 0 < weight <= STRONGEST:
        return weight
    advice = "leave it out to do without it" if weight == 0 else f"give one above 0 and up to {STRONGEST:g}"
    raise BadRecipe(f"The weight of {name[:64]} is {weight:g}; {advice}")


def read(orders: Sequence[str]) -> dict[str, float]:
    """Name -> weight, in order. Raises BadRecipe on bad weights, ConceptError when a name comes twice."""
    found: dict[str, float] = {}
    versions: dict[str, str] = {}
    for order in orders:
        name, weight = split_weight(order)
        bare = name.partition("@")[0]
        if bare in versions:
            raise ConceptError(
                f"{bare} is named twice; name it once, and stronger as {bare}:1.5 if that was meant"
                if versions[bare] == name
                else f"{versions[bare]} and {name} are both {bare}; choose one of them"
            )
        versions[bare], found[name] = name, weight
    return found


def check_way(how: str) -> None:
    """Raises BadRecipe when there is no such way of merging."""
    if how not in WAYS:
        raise BadRecipe(f"There is no way of composing called {how!r}; use one of {', '.join(WAYS)}")


def check_one_way_apart(regions: Sequence[str], separate: bool, side_by_side: bool | None) -> None:
    """Raises BadRegion when concepts are to be kept apart in more than one way."""
    if bool(regions) + separate + bool(side_by_side) > 1:
        raise BadRegion(
            "Regions, separation and side by side each keep concepts apart in their own way, not together; "
            "choose one of them"
        )
