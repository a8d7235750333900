"""What a concept brings into any merge on a base, worked out once and kept in the registry."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor

from conceptkit.base.added_tokens import add_tokens
from conceptkit.base.fingerprint import Fingerprint, fingerprint_of
from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import END, PADDING
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta, Factors
from conceptkit.features import caption_statistics, concept_rows, prompt_templates
from conceptkit.features.caption_statistics import CaptionStatistics
from conceptkit.features.closed_form import MAX_CONDITION
from conceptkit.features.concept_rows import WordFeatures, constraint_rows, word_features_of_all
from conceptkit.features.prompt_sample import SampledFeatures
from conceptkit.merging import delta_norms
from conceptkit.safetensors_header import KEY, read_metadata

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry


FORMAT = 2
OTHER_WEIGHT = 0.1
"""Of the positions of its prompts that are not its words, in what a concept asks of a merge by regmean."""
NOTHING = 1e-6
"""Share of what features hold, and of what a concept does to them, that is not worth a row."""
READ_TOGETHER = 12
"""As many new concepts go through a large text encoder together."""
MOST_ASKED = 16
"""Directions in which a concept, under each of its names, asks for something in a merge by regmean."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A concept's constraint rows and what it does there; the prompts on which its fate is measured.

    rows: C (s, d). white: C L^-T (s, d), from which C G^-1 is one triangular solve for all concepts at once.
    targets: map -> R (s, o), of the key and value maps that it changes.
    seen: X L^-T (m, d), features of prompts to fit it on, its words above all, and its rows among them.
    asked, given: Q^T X L^-T (r, d) and map -> Z (r, o) with X D^T = Q Z, see `closed_form.soft_form`.
    own, end, rest: features X (k, d) of held-out prompts with it, at its own words, from the end of text on,
    and elsewhere; k features that stand for all of them in every norm.
    """

    rows: Tensor
    white: Tensor
    targets: dict[str, Tensor]
    seen: Tensor
    asked: Tensor
    given: dict[str, Tensor]
    own: Tensor
    end: Tensor
    rest: Tensor

    def to_bytes(self) -> bytes:
        """All of it as safetensors."""
        half = {"own": self.own, "end": self.end, "rest": self.rest}
        half |= {"targets": _stacked(self.targets, self.rows), "given": _stacked(self.given, self.asked)}
        tensors = {name: tensor.float().contiguous() for name, tensor in half.items()}
        whole = {"rows": self.rows, "white": self.white, "seen": self.seen, "asked": self.asked}
        tensors |= {name: tensor.double().contiguous() for name, tensor in whole.items()}
        sizes = json.dumps([[name, block.shape[1]] for name, block in self.targets.items()])
        return safetensors.torch.save(tensors, {KEY: sizes})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Prepared":
        """What `to_bytes` wrote."""
        held = safetensors.torch.load(data)
        sizes = dict(read_metadata(data))
        targets, given = (
            dict(zip(sizes, held[name].split(list(sizes.values()), dim=1), strict=True)) if sizes else {}
            for name in ("targets", "given")
        )
        own, end, rest = (held[name].double() for name in ("own", "end", "rest"))
        return cls(held["rows"], held["white"], targets, held["seen"], held["asked"], given, own, end, rest)


def _stacked(blocks: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Blocks (k, o) of all maps beside one another; (k, 0) of none."""
    return torch.cat([*blocks.values(), like.new_zeros(len(like), 0)], dim=1)


def prepare(
    concept: Concept,
    base: Base,
    ordinary: CaptionStatistics,
    registry: "Registry | None" = None,
    digest: str = "",
) -> Prepared:
    """What `concept`, whose bytes have this sha256, brings into merges on `base`, made on the first call."""
    (one,) = prepare_all([(concept, digest)], base, ordinary, registry)
    return one


def prepare_all(
    concepts: Sequence[tuple[Concept, str]],
    base: Base,
    ordinary: CaptionStatistics,
    registry: "Registry | None" = None,
    now: Fingerprint | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> list[Prepared]:
    """The same of several concepts, each with its digest; new ones are read READ_TOGETHER at a time.

    now: what the base is now, with attached concepts; None: worked out here.
    """
    keys = [
        f"prepared/{(digest or hashlib.sha256(c.to_bytes()).hexdigest())[:32]}/{_circumstances(ordinary)}"
        for c, digest in concepts
    ]
    stored = [registry.get_asset(key) if registry else None for key in keys]
    new = [i for i, data in enumerate(stored) if data is None]
    read: dict[int, tuple[WordFeatures, WordFeatures]] = {}
    found, now = [], now or (fingerprint_of(base.pipe, own=True) if new else None)
    for i, ((concept, _), key, data) in enumerate(zip(concepts, keys, stored, strict=True)):
        progress(i, len(concepts), f"reading {concept.name}")
        if data is None:
            if i not in read:
                next_ones = [k for k in new if k >= i][:READ_TOGETHER]
                read = dict(zip(next_ones, _read([concepts[k][0] for k in next_ones], base), strict=True))
            data = _work_out(concept, base, ordinary, now, read[i]).to_bytes()
            if registry:
                registry.put_asset(key, data)
        found.append(Prepared.from_bytes(data))
    return found


def _read(concepts: Sequence[Concept], base: Base) -> list[tuple[WordFeatures, WordFeatures]]:
    """The features of concepts' words, their tokens on the pipeline meanwhile and no others: what a prompt
    costs to spell grows with the tokens that are there."""
    tokens = {token: rows for concept in concepts for token, rows in concept.tokens.items()}
    with add_tokens(base.pipe, tokens) if tokens else nullcontext():
        return word_features_of_all(concepts, base)


def _work_out(
    concept: Concept,
    base: Base,
    ordinary: CaptionStatistics,
    now: Fingerprint | None,
    read: tuple[WordFeatures, WordFeatures],
) -> Prepared:
    fit, (features, own) = read
    rows = constraint_rows(concept, base, ordinary.factor, now, fit)
    end = ((features.roles == END) | (features.roles == PADDING)) & ~own
    delta = Delta({name: concept.delta[name] for name in base.sizes if name in concept.delta})
    seen = _seen(fit, ordinary, rows)
    chosen, given = _asked(delta, ordinary.factor.colour(seen), MOST_ASKED * max(1, len(concept.words)))
    return Prepared(
        rows=rows,
        white=ordinary.factor.whiten(rows),
        targets={name: factors.apply(rows) for name, factors in delta.items()},
        seen=seen,
        asked=chosen @ seen,
        given=given,
        own=_stand_in(features, own),
        end=_stand_in(features, end),
        rest=_stand_in(features, ~own & ~end),
    )


def _seen(read: WordFeatures, ordinary: CaptionStatistics, rows: Tensor) -> Tensor:
    """X L^-T (m, d): X^T X is the mean over its words in the prompts to fit, with a share of what is around
    them, and over its rows, whose last ones may be those of its class noun."""
    features, own = read
    weight = torch.where(own, 1.0, OTHER_WEIGHT * caption_statistics.position_weights(features)) / own.sum()
    heard = (features.hidden.double() * weight.double().sqrt().unsqueeze(2))[features.counts > 0]
    white = ordinary.factor.whiten(torch.cat([heard, rows.double() / len(rows) ** 0.5]))
    return _principal(white)


def _principal(rows: Tensor) -> Tensor:
    """Orthogonal rows (r, d) with the same X^T X as rows X (m, d), without what is as good as nothing."""
    if len(rows) < rows.shape[1]:  # the moment on the other side is the smaller one
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        return vectors[:, values > NOTHING * values[-1]].T @ rows
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    there = values > NOTHING * values[-1]
    return values[there].sqrt().unsqueeze(1) * vectors[:, there].T


def _asked(delta: Delta, seen: Tensor, most: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Q^T (r, m) and Z (r, o) of every map: the principal directions of all of X D^T."""
    if not delta:
        return seen.new_zeros(0, len(seen)), {}
    exact = delta.map(Tensor.double)
    moment = torch.stack([pairing.moment(seen) for pairing in delta_norms.pair(exact, exact)]).sum(dim=0)
    values, vectors = torch.linalg.eigh(moment)
    count = min(int((values > NOTHING * values[-1]).sum()), most)
    chosen = vectors.flip(1)[:, :count].T
    return chosen, {name: factors.apply(chosen @ seen) for name, factors in exact.items()}


def _stand_in(features: SampledFeatures, places: Tensor) -> Tensor:
    """At most d features with the same x x^T in sum as all that those at some places (n, T) stand for."""
    there = places & (features.counts > 0)
    rows = features.hidden[there].double() * features.counts[there].double().sqrt().unsqueeze(1)
    return rows if len(rows) <= rows.shape[1] else caption_statistics.root(rows.T @ rows)


def _circumstances(ordinary: CaptionStatistics) -> str:
    """A digest of all that these numbers depend on beside the concept."""
    templates = [
        prompt_templates.SUBJECTS,
        prompt_templates.STYLES,
        concept_rows.MOST_ROWS,
        concept_rows.ENERGY,
        MAX_CONDITION,
        concept_rows.TEMPLATE_STEP,
    ]
    asked = [OTHER_WEIGHT, NOTHING, MOST_ASKED]
    written = json.dumps([FORMAT, ordinary.key, templates, asked], sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()[:32]


def joined(
    blocks: Sequence[Mapping[str, Tensor]],
    counts: Sequence[int],
    weights: Sequence[float],
    sizes: Mapping[str, int],
) -> dict[str, Tensor]:
    """What all parts ask for at their strength, one under the other: map -> (sum of counts, o), or zeros."""
    result = {}
    for name, o in sizes.items():
        if any(name in block for block in blocks):
            result[name] = torch.cat(
                [
                    weight * block[name] if name in block else torch.zeros(count, o)
                    for block, count, weight in zip(blocks, counts, weights, strict=True)
                ]
            )
    return result


def factors_of(targets: dict[str, Tensor], down: Tensor) -> Delta:
    """Map -> (up, down), all sharing one `down` (s, d), brought into the range of half precision."""
    size = torch.stack([block.abs().amax(dim=1) for block in targets.values()]).amax(dim=0).double()
    scale = torch.where(size > 0, size, 1.0).log2().floor().exp2()
    shared = (down * scale.unsqueeze(1)).float()
    ups = {name: (block / scale.unsqueeze(1)).float().T for name, block in targets.items()}
    return Delta({name: Factors(up, shared) for name, up in ups.items()}, dict.fromkeys(ups, 0))
