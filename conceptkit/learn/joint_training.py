"""Subjects that were learned in one run: each as a concept of its own, and all of them as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from conceptkit.base.pipeline import Base
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta, Factors
from conceptkit.features.closed_form import Factor, balanced, closed_form
from conceptkit.learn.methods.base import Adapter
from conceptkit.learn.methods.table import adapter_of
from conceptkit.learn.train_config import TrainConfig


def split_joint(concepts: Sequence[Concept], delta: Delta, keys: Factor, base: Base) -> list[Concept]:
    """Each concept with its part of what was learned.

    Alone it is all of the delta. Of several, each keeps what the delta adds at its own rows, and among all
    changes that do so the one that moves ordinary captions least. What goes beyond keys and values cannot be
    parted so, and every concept has the whole of it; where the adapter is not about keys and values in the
    first place, the whole delta.
    """
    beyond = delta.without(base.sizes)
    parted = all(_adapter(concept).split_by_rows for concept in concepts)
    if len(concepts) == 1 or (beyond and not parted):
        return [replace(concept, delta=delta) for concept in concepts]
    return [replace(c, delta=_own(c, delta, keys, base) | beyond) for c in concepts]


def join_concepts(
    concepts: Sequence[Concept], delta: Delta, name: str | None, recipe: TrainConfig, seed: int
) -> Concept:
    """The joint concept; one alone is itself."""
    if len(concepts) == 1:
        return concepts[0]
    first = concepts[0]
    rows = [concept.rows for concept in concepts if concept.rows is not None]
    return Concept(
        name=name or "-".join(concept.name for concept in concepts)[:64],
        kind="merge",
        noun=None,
        base=first.base,
        base_name=first.base_name,
        tokens={token: value for concept in concepts for token, value in concept.tokens.items()},
        words={word: text for concept in concepts for word, text in concept.words.items()},
        delta=delta,
        recipe={**recipe.to_json(), "joint": True, "rows": [len(own) for own in rows]},
        provenance={
            "parents": [concept.name for concept in concepts],
            "photos": {c.name: list(c.provenance["photos"]) for c in concepts},
            "photos_sha256": {c.name: c.provenance["photos_sha256"] for c in concepts},
            "seed": seed,
        },
        rows=torch.cat(rows) if len(rows) == len(concepts) else None,
    )


def _adapter(concept: Concept) -> Adapter:
    return adapter_of(TrainConfig.from_json(concept.recipe))


def _own(concept: Concept, delta: Delta, keys: Factor, base: Base) -> Delta:
    assert concept.rows is not None
    rows = concept.rows.double()
    sizes = {name: o for name, o in base.sizes.items() if name in delta}
    solution = closed_form(rows, delta.map(torch.Tensor.cpu).rows(sizes, rows), keys)
    down, up = balanced(solution.down, solution.up)
    shared = down.float()
    blocks = up.split(list(sizes.values()))
    own = {name: Factors(block.float(), shared) for name, block in zip(sizes, blocks, strict=True)}
    return Delta(own, dict.fromkeys(own, 0))
