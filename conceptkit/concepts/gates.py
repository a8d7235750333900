"""Whose the ranks of a LoRA are: each gate lets its ranks act only on prompts that say its words."""

from dataclasses import dataclass
from typing import Any

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import ENCODERS, READS_TEXT, Delta
from conceptkit.concepts.recipe_fields import recipe_field
from conceptkit.errors import BadBlob

RANK_GATES = "voices"
"""The field of a stored recipe: [ranks, words] of each gate in turn; without words it is always open."""


@dataclass(frozen=True)
class RankGate:
    """`ranks` of the maps beside keys and values, and the words that let them act; None: they always do."""

    ranks: int
    words: tuple[str, ...] | None

    def to_recipe(self) -> list[Any]:
        """As a stored recipe has it: [ranks, words]."""
        return [self.ranks, None if self.words is None else list(self.words)]


def reads_text(name: str) -> bool:
    """Whether a map belongs to the reading of prompts: keys and values of cross-attention, text encoders."""
    return name.endswith(READS_TEXT) or name.partition(".")[0] in ENCODERS


def maps_without_text(delta: Delta) -> Delta:
    """The part of a delta on maps of the UNet that read no text."""
    return delta.without([name for name in delta if reads_text(name)])


def rank_gates(concept: Concept) -> tuple[RankGate, ...]:
    """Whose the ranks of a concept's wide maps are, in turn; () where they act on every picture.

    Raises BadBlob when a merge says so in a way that does not fit its maps.
    """
    found = list(maps_without_text(concept.delta).values())
    if not found:
        return ()
    sizes = {0 if factors.down is None else factors.down.shape[0] for factors in found}
    if RANK_GATES not in concept.recipe:
        own = bool(recipe_field(concept.recipe, "gated_lora_rank")) and 0 not in sizes
        return (RankGate(max(sizes), tuple(concept.words)),) if own else ()
    try:
        gates = tuple(
            RankGate(int(ranks), None if words is None else tuple(map(str, words)))
            for ranks, words in concept.recipe[RANK_GATES]
        )
    except (TypeError, ValueError) as error:
        raise BadBlob(f"The rank gates of {concept.name} are damaged; import or compose it again") from error
    known = all(word in concept.words for gate in gates for word in gate.words or ())
    if not known or any(gate.ranks < 0 for gate in gates) or sizes != {sum(gate.ranks for gate in gates)}:
        raise BadBlob(f"The rank gates of {concept.name} do not fit its maps; import or compose it again")
    return gates
