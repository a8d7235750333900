"""What a merge method is given, and what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from conceptkit.base.pipeline import Base
from conceptkit.concepts.delta import Delta, Factors
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
    """All that a way of merging may look at; `sizes` are the key and value maps that some part changes."""

    parts: Sequence[Part]
    prepared: Sequence[Prepared]
    base: Base
    ordinary: CaptionStatistics
    registry: "Registry"
    sizes: Mapping[str, int]

    @property
    def wide(self) -> BesideText:
        """What the parts change beside keys and values of cross-attention: all of it, whatever the way."""
        return gated_lora.joined(self.parts, self.base.sizes)


@dataclass(frozen=True, eq=False)
class MergeResult:
    """What a way of merging makes of the parts, and the share of each in it."""

    delta: Delta
    shares: Sequence[Delta]
    rows: Tensor | None = None
    solved: Solved = NO_CONSTRAINTS
    recipe: Mapping[str, object] = field(default_factory=dict)


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
