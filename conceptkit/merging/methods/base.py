"""What a merge method is given, and what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from conceptkit.base.pipeline import Base
from conceptkit.concepts.delta import Delta, Factors
from conceptkit.concepts.routing import PADDING_DELTAS, Routing
from conceptkit.features.caption_statistics import CaptionStatistics
from conceptkit.merging import gated_lora
from conceptkit.merging.gated_lora import BesideText
from conceptkit.merging.merge_inputs import Prepared
from conceptkit.merging.parts import Part
from conceptkit.merging.report import NO_CONSTRAINTS, Solved

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry


@dataclass(frozen=True, eq=False)
class MergeContext:
    """All that a merge method may look at.

    parts: the concepts at their strengths. inputs: what each brings, in the same order.
    ordinary: what the base reads in captions without them. sizes: the key and value maps that some part
    changes, map -> o. padding_delta: see `PADDING_DELTAS`.
    """

    parts: Sequence[Part]
    inputs: Sequence[Prepared]
    base: Base
    ordinary: CaptionStatistics
    registry: "Registry"
    sizes: Mapping[str, int]
    padding_delta: str = PADDING_DELTAS[0]

    @property
    def wide(self) -> BesideText:
        """What the parts change beside keys and values of cross-attention: all of it, whatever the method."""
        return gated_lora.joined(self.parts, self.base.sizes)


@dataclass(frozen=True, eq=False)
class MergeResult:
    """What a merge method makes of the parts.

    shares: what each part contributes to the delta. rows: constraint rows (s, d) that the merge carries.
    solved: how constraints were met. recipe: what the stored recipe says besides the method and the weights.
    routing: whose the ranks are, where each token reads its own concept's.
    """

    delta: Delta
    shares: Sequence[Delta]
    rows: Tensor | None = None
    solved: Solved = NO_CONSTRAINTS
    recipe: Mapping[str, object] = field(default_factory=dict)
    routing: Routing | None = None


def blocks(delta: Delta, counts: Sequence[int]) -> list[Delta]:
    """Each concept's share of a merge whose maps all have one down: its columns of up, its rows of down."""
    (whole,) = delta.downs
    columns = {name: factors.first.split(list(counts), dim=1) for name, factors in delta.items()}
    return [
        Delta({name: Factors(columns[name][i], down) for name in delta}, dict.fromkeys(delta, 0))
        for i, down in enumerate(whole.split(list(counts)))
    ]


def equal(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    """Whether two tokens have the same rows in every encoder."""
    return len(some) == len(others) and all(map(torch.equal, some, others))
