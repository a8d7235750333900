"""What a concept brings into any merge on a base, worked out once and kept in the registry."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor

from conceptkit import contexts, metric
from conceptkit.base import Base
from conceptkit.compose import MAX_CONDITION
from conceptkit.concept import Concept, Factors, apply
from conceptkit.contexts import constraint_rows, word_features
from conceptkit.metric import Metric

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Prepared:
    """A concept's constraint rows and what it does there; the prompts on which its fate is measured.

    rows: C (s, d). white: C L^-T (s, d), from which C G^-1 is one triangular solve for all concepts at once.
    targets: map -> R (s, o), of the key and value maps that it changes.
    own, end, rest: features X (k, d) of held-out prompts with it, at its own words, from the end of text on,
    and elsewhere; k features that stand for all of them in every norm.
    """

    rows: Tensor
    white: Tensor
    targets: dict[str, Tensor]
    own: Tensor
    end: Tensor
    rest: Tensor

    def to_bytes(self) -> bytes:
        stacked = torch.cat([*self.targets.values(), self.rows.new_zeros(len(self.rows), 0)], dim=1)
        tensors = {"targets": stacked, "own": self.own, "end": self.end, "rest": self.rest}
        tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
        tensors |= {"rows": self.rows.double().contiguous(), "white": self.white.double().contiguous()}
        sizes = json.dumps([[name, block.shape[1]] for name, block in self.targets.items()])
        return safetensors.torch.save(tensors, {"conceptkit": sizes})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Prepared":
        held = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        sizes = dict(json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["conceptkit"]))
        blocks = held["targets"].split(list(sizes.values()), dim=1) if sizes else ()
        targets = dict(zip(sizes, blocks, strict=True))
        own, end, rest = (held[name].double() for name in ("own", "end", "rest"))
        return cls(held["rows"], held["white"], targets, own, end, rest)


def prepare(
    concept: Concept, base: Base, ordinary: Metric, registry: "Registry | None" = None, digest: str = ""
) -> Prepared:
    """What `concept`, whose bytes have this sha256, brings into merges on `base`, made on the first call."""
    digest = digest or hashlib.sha256(concept.to_bytes()).hexdigest()
    key = f"prepared/{digest[:32]}/{_circumstances(ordinary)}"
    stored = registry.get_asset(key) if registry else None
    if stored is None:
        stored = _work_out(concept, base, ordinary).to_bytes()
        if registry:
            registry.put_asset(key, stored)
    return Prepared.from_bytes(stored)


def _work_out(concept: Concept, base: Base, ordinary: Metric) -> Prepared:
    rows = constraint_rows(concept, base, ordinary.factor)
    features, own = word_features(concept, base, "held-out")
    place = torch.arange(features.ids.shape[1]).expand_as(features.ids)
    end = (place >= features.eot.unsqueeze(1)) & ~own
    return Prepared(
        rows=rows,
        white=ordinary.factor.whiten(rows),
        targets={name: apply(concept.delta[name], rows) for name in base.sizes if name in concept.delta},
        own=_stand_in(features.hidden[own]),
        end=_stand_in(features.hidden[end]),
        rest=_stand_in(features.hidden[~own & ~end]),
    )


def _stand_in(rows: Tensor) -> Tensor:
    """At most d features with the same x x^T in sum."""
    rows = rows.double()
    return rows if len(rows) <= rows.shape[1] else metric.root(rows.T @ rows)


def _circumstances(ordinary: Metric) -> str:
    """A digest of all that these numbers depend on beside the concept."""
    templates = [contexts.SUBJECTS, contexts.STYLES, contexts.MOST_ROWS, contexts.ENERGY, MAX_CONDITION]
    told = json.dumps([FORMAT, ordinary.key, templates], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def joined(
    prepared: Sequence[Prepared], weights: Sequence[float], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """The targets of all parts at their strength, one under the other: map -> R (s, o), absent ones 0."""
    result = {}
    for name, o in sizes.items():
        blocks = [p.targets.get(name) for p in prepared]
        if any(block is not None for block in blocks):
            result[name] = torch.cat(
                [
                    torch.zeros(len(p.rows), o) if block is None else weight * block
                    for p, block, weight in zip(prepared, blocks, weights, strict=True)
                ]
            )
    return result


def factors_of(targets: dict[str, Tensor], down: Tensor) -> dict[str, Factors]:
    """Map -> (up, down), all sharing one `down` (s, d), brought into the range of half precision."""
    size = torch.stack([block.abs().amax(dim=1) for block in targets.values()]).amax(dim=0).double()
    scale = torch.where(size > 0, size, 1.0).log2().floor().exp2()
    shared = (down * scale.unsqueeze(1)).float()
    return {name: ((block / scale.unsqueeze(1)).float().T, shared) for name, block in targets.items()}
