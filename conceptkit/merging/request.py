"""What is ordered: concepts by name, each as strong as it was asked for, and a way of merging them.

No torch here, so that a command finds a mistake before it loads anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from conceptkit.concepts.routing import PADDING_DELTAS
from conceptkit.errors import BadRecipe, BadRegion, ConceptError
from conceptkit.merging.method_table import MERGE_METHODS
from conceptkit.registry.names import choose
from conceptkit.renamed import MERGE_METHODS as OLD_NAMES

MERGE_METHOD = "regmean"
"""Unless told otherwise: of several concepts in one delta it keeps more on prompts that nothing was fitted on
than exact rows or a sum do, and moves ordinary captions less."""
PADDING_DELTA = PADDING_DELTAS[0]
STRONGEST = 10.0
"""A delta ten times as strong as it was learned gives noise on any base."""


@dataclass(frozen=True)
class Order:
    """One concept that is ordered: what was given for it, its name, its strength."""

    given: Any
    name: str
    weight: float


@dataclass(frozen=True, eq=False)
class ComposeRequest:
    """What a merge is asked for, checked where it enters.

    concepts: names in the registry, each with a strength if wanted, "my_dog:0.8"; or concepts and merges.
    weights: a strength for each; a name that carries one of its own may not be given two.
    merge_method: a row of `MERGE_METHODS`. padding_delta: see `PADDING_DELTAS`; for the method "routed".
    name: of the merge; None: those of its parts.

    Raises BadRecipe on bad strengths, and for a method or padding delta that is not there; ConceptError when
    a name comes twice, and when there is no concept.
    """

    concepts: tuple[Any, ...]
    weights: tuple[float, ...] | None = None
    merge_method: str = MERGE_METHOD
    padding_delta: str = PADDING_DELTA
    name: str | None = None
    orders: tuple[Order, ...] = field(init=False)

    def __post_init__(self) -> None:
        check_merge_method(self.merge_method)
        if self.padding_delta not in PADDING_DELTAS:
            raise BadRecipe(
                f"There is no padding delta {self.padding_delta!r}; use one of {', '.join(PADDING_DELTAS)}"
            )
        read([given for given in self.concepts if isinstance(given, str)])
        if not self.concepts:
            raise ConceptError("There is nothing to compose; name at least one concept")
        if self.weights is not None and len(self.weights) != len(self.concepts):
            raise BadRecipe(f"{len(self.concepts)} concepts need as many weights, not {len(self.weights)}")
        orders = tuple(self._order(i, given) for i, given in enumerate(self.concepts))
        object.__setattr__(self, "orders", orders)

    def _order(self, i: int, given: Any) -> Order:
        if isinstance(given, str):
            name, weight = split_weight(given)
        else:
            name, weight = str(getattr(given, "concept", given).name), 1.0
        if self.weights is None:
            return Order(given, name, weight)
        wanted = self.weights[i]
        if weight != 1:
            raise BadRecipe(f"{name} has two weights, {weight:g} and {wanted:g}; give one")
        return Order(given, name, check_weight(name, _number(name, wanted)))


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


def check_merge_method(name: str) -> str:
    """The name itself. Raises BadRecipe when there is no such merge method, and for one of before."""
    if name in OLD_NAMES:
        raise BadRecipe(f"The merge method {name!r} is called {OLD_NAMES[name]!r} now; give that name")
    if name not in MERGE_METHODS:
        raise BadRecipe(f"There is no merge method {name!r}; {choose(name, list(MERGE_METHODS))}")
    return name


def stored_name(method: str) -> str:
    """What the recipe of a stored merge calls a merge method."""
    return next((old for old, name in OLD_NAMES.items() if name == method), method)


def method_of(stored: str) -> str:
    """The merge method that a stored recipe names. Raises BadRecipe when it is not there."""
    return check_merge_method(OLD_NAMES.get(stored, stored))


def check_one_way_apart(
    regions: Sequence[str], separate: bool, side_by_side: bool | None, confine: bool | None = None
) -> None:
    """Raises BadRegion when concepts are to be kept apart in more than one way."""
    if bool(regions) + separate + bool(side_by_side) > 1:
        raise BadRegion(
            "Regions, separation and side by side each keep concepts apart in their own way, not together; "
            "choose one of them"
        )
    if confine and (separate or side_by_side):
        raise BadRegion(
            "Confining concepts to their parts of one frame goes with regions, and with no other way to keep "
            "them apart; leave auto_regions and side_by_side out, or confine"
        )


def _number(name: str, weight: object) -> float:
    try:
        return float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadRecipe(f"{weight!r} is no weight for {name}; give a number") from None
