"""Routes of a merge: whose the ranks of its delta are, so that a token reads its own concept's alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conceptkit.errors import BadBlob

ROUTED = "routed"
"""The method that a stored recipe names where ranks are read along routes."""
PADDING_DELTAS = ("sum", "average", "drop")
"""What end of text and padding read in a routed merge: the sum or the mean of the deltas of the concepts that
the prompt names, or none. The first is the default, by what is left of two concepts in one picture."""


@dataclass(frozen=True)
class Routing:
    """Whose the ranks of a routed merge's delta are.

    ranks: how many belong to each part, in turn. part_of: a word of a prompt -> the number of its part.
    padding_delta: what end of text and padding read, one of `PADDING_DELTAS`.
    """

    ranks: tuple[int, ...]
    part_of: Mapping[str, int]
    padding_delta: str = PADDING_DELTAS[0]

    def to_recipe(self) -> dict[str, Any]:
        """The fields of a stored recipe."""
        return {"ranks": list(self.ranks), "routes": dict(self.part_of), "shared": self.padding_delta}

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any], name: str = "This concept") -> Routing | None:
        """The routes in a stored recipe, None where it is not of a routed merge.

        name: of the concept, for the sentence. Raises BadBlob when what the recipe says makes no sense.
        """
        if recipe.get("method") != ROUTED:
            return None
        try:
            ranks = tuple(int(rank) for rank in recipe["ranks"])
            part_of = {str(word): int(part) for word, part in recipe["routes"].items()}
            padding = str(recipe["shared"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BadBlob(f"The routes of {name} are damaged; import or compose it again") from error
        known = set(part_of.values()) <= set(range(len(ranks)))
        if not known or min(ranks, default=0) < 0 or padding not in PADDING_DELTAS:
            raise BadBlob(f"The routes of {name} do not fit its parts; import or compose it again")
        return cls(ranks, part_of, padding)
