"""What a base reads in ordinary captions: the metric of merges, and the measure of their side effects."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor

from conceptkit.base.fingerprint import Fingerprint, features_digest
from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import BEGIN, PADDING, UNREAD, WORD, TextFeatures, encode
from conceptkit.features.captions import captions
from conceptkit.features.closed_form import RIDGE, Factor, factor, gram
from conceptkit.features.prompt_sample import (
    NEAR,
    NEAR_SHARE,
    WHOLE,
    SampledFeatures,
    read_prompts,
    samples_padding,
)
from conceptkit.safetensors_header import KEY, read_metadata

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry


WORD_WEIGHT = 1.0
"""Of the feature of a word, and of the end-of-text token after the last one."""
BOS_WEIGHT = 8.0
"""The first feature, equal in all prompts, draws most of the attention: it counts as much as the words."""
PADDING_WEIGHT = 0.25
"""There are dozens of padding features in a prompt: together again about as much as its words."""
EMPTY_SHARE = 0.1
"""The empty prompt is half of every guided step: it counts as one caption in ten."""
MOST_CAPTIONS = 500
HELD_OUT = 10
"""One caption in so many is kept back for measuring what a merge does to captions it was not fitted on."""
AUDITED = 32
"""As many of the captions kept back are also watched one by one."""
FORMAT = 2
RECENT_BYTES = 64 * 2**20
"""Of statistics that a process holds on to beside the registry; always the last one."""
_RECENT: dict[str, bytes] = {}


@dataclass(frozen=True, eq=False)
class Audit:
    """Some held-out captions one by one: features of their words (m, d), the caption of each (m,), and
    ||W0 Y|| of each caption."""

    texts: tuple[str, ...]
    rows: Tensor
    caption: Tensor
    sizes: Tensor

    def total(self, squares: Tensor) -> Tensor:
        """Squares of every row (m,) summed up caption by caption, as lengths (n,)."""
        return torch.zeros(len(self.texts)).double().index_add(0, self.caption, squares.double()).sqrt()


@dataclass(frozen=True, eq=False)
class CaptionStatistics:
    """Statistics of a base over captions without any concept.

    gram: G (d, d), weighted mean of x x^T over the fit captions' features, with the weights above.
    factor: the Cholesky factor of G and its ridge, in which merges compute.
    held_out: Y (d, d) with Y^T Y the plain mean of y y^T over all positions of the held-out captions.
    size: ||W0 Y||, what the base's own maps make of them. key: names these numbers, for what is made of them.
    """

    gram: Tensor
    factor: Factor
    held_out: Tensor
    size: float
    audit: Audit
    key: str = ""

    def to_bytes(self) -> bytes:
        """All of it as safetensors."""
        half = {"gram": self.gram, "held_out": self.held_out, "audit": self.audit.rows}
        tensors = {name: tensor.float().contiguous() for name, tensor in half.items()}
        tensors |= {
            "lower": torch.from_numpy(self.factor.lower),
            "caption": self.audit.caption,
            "sizes": self.audit.sizes.double(),
            "scale": torch.tensor([self.size, self.factor.ridge], dtype=torch.float64),
        }
        about = json.dumps({"texts": self.audit.texts, "key": self.key}, sort_keys=True)
        return safetensors.torch.save(tensors, {KEY: about})

    @classmethod
    def from_bytes(cls, data: bytes) -> "CaptionStatistics":
        """What `to_bytes` wrote."""
        held = safetensors.torch.load(data)
        about = read_metadata(data)
        size, ridge = held["scale"].tolist()
        audit = Audit(tuple(about["texts"]), held["audit"].double(), held["caption"], held["sizes"])
        shape = Factor(held["lower"].numpy(), ridge)
        return cls(held["gram"].double(), shape, held["held_out"].double(), size, audit, about["key"])


def statistics_of(
    base: Base,
    registry: "Registry | None" = None,
    texts: list[str] | None = None,
    now: Fingerprint | None = None,
) -> CaptionStatistics:
    """The base's metric over its captions (or `texts`), made once and kept in the registry.

    now: what the base is now, with attached concepts; None: worked out here.
    """
    texts = captions(base.family.name) if texts is None else texts
    sampled = f"/{WHOLE}-{NEAR}-{NEAR_SHARE}" if samples_padding(base.pipe) else ""
    key = f"gram/{features_digest(base.pipe, now)}/{_digest(texts)}{sampled}"
    stored = registry.get_asset(key) if registry else None
    if stored is None:
        stored = _RECENT.get(key) or replace(measure(base, texts), key=key).to_bytes()
        if registry:
            registry.put_asset(key, stored)
    _remember(key, stored)
    # Read back even when new, so that the first merge and the hundredth compute with the same numbers.
    return CaptionStatistics.from_bytes(stored)


def _remember(key: str, stored: bytes) -> None:
    """For the next registry, or for callers without one; the oldest go first."""
    _RECENT.pop(key, None)
    _RECENT[key] = stored
    while len(_RECENT) > 1 and sum(map(len, _RECENT.values())) > RECENT_BYTES:
        del _RECENT[next(iter(_RECENT))]


def measure(base: Base, texts: list[str]) -> CaptionStatistics:
    """Encode the captions and sum up: seconds, on two cores about ten at Stable Diffusion 1.5's size."""
    fit, held_out_texts = split(texts)
    empty = encode(base.pipe, [""])
    of_fit, _ = _mean(base, fit)
    moment = (1 - EMPTY_SHARE) * of_fit + EMPTY_SHARE * gram(empty.hidden, position_weights(empty))
    moment = moment.float().double()  # as it is stored, so that the factor is that of what is stored
    mean, first = _mean(base, held_out_texts, even=True)
    held_out = root(mean)
    audit = _audit(base, held_out_texts[:AUDITED], first)
    return CaptionStatistics(moment, factor(moment), held_out, _size(base, held_out), audit)


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Captions that a metric is fitted on, and those held out; where there are too few, the same ones."""
    fit = [text for i, text in enumerate(texts) if text and i % HELD_OUT != HELD_OUT - 1][:MOST_CAPTIONS]
    return fit, [text for text in texts[HELD_OUT - 1 :: HELD_OUT] if text] or fit


def position_weights(features: TextFeatures | SampledFeatures) -> Tensor:
    """How much each position counts in G, by itself or for all those that it stands for: (n, T)."""
    weights = torch.full(features.ids.shape, WORD_WEIGHT)
    weights[features.roles == PADDING] = PADDING_WEIGHT
    weights[features.roles == BEGIN] = BOS_WEIGHT
    weights[features.roles == UNREAD] = 0.0
    return weights * features.counts if isinstance(features, SampledFeatures) else weights


def _mean(
    base: Base, texts: list[str], even: bool = False, batch: int = AUDITED
) -> tuple[Tensor, SampledFeatures]:
    """The mean of x x^T, batch by batch: all features of a real base at once would fill a laptop.

    With it come the features of the first batch, which are those of `AUDITED` texts at least.
    """
    first: SampledFeatures | None = None
    moment, total = torch.zeros(base.width, base.width, dtype=torch.float64), 0.0
    batch = len(texts) if samples_padding(base.pipe) else batch  # of which few positions are kept
    for start in range(0, len(texts), batch):
        features = read_prompts(base.pipe, texts[start : start + batch], WHOLE)
        first = first or features
        weights = features.counts if even else position_weights(features)
        moment += float(weights.sum()) * gram(features.hidden, weights)
        total += float(weights.sum())
    assert first is not None
    return moment / total, first


def root(moment: Tensor) -> Tensor:
    """Y (d, d) with Y^T Y = the moment: d features that stand for any number of them in every norm."""
    values, vectors = torch.linalg.eigh(moment)
    return values.clamp(min=0).sqrt().unsqueeze(1) * vectors.T


def _audit(base: Base, texts: list[str], features: SampledFeatures) -> Audit:
    """The features of each caption's words; those of its beginning and padding are much the same in all.

    features: of these texts and perhaps of more behind them.
    """
    spoken = features.roles[: len(texts)] == WORD
    rows, caption = features.hidden[: len(texts)][spoken], spoken.nonzero()[:, 0]
    squares = torch.stack(
        [_read(linear, rows).square().sum(dim=1) for linear in base.text_site.values()]
    ).sum(dim=0)
    sizes = torch.zeros(len(texts)).double().index_add(0, caption, squares.cpu().double()).sqrt()
    return Audit(tuple(texts), rows, caption, sizes)


def _size(base: Base, rows: Tensor) -> float:
    """||W0 Y|| over all maps, where the base is."""
    return sum(float(_read(linear, rows).square().sum()) for linear in base.text_site.values()) ** 0.5


def _read(linear: torch.nn.Linear, rows: Tensor) -> Tensor:
    weight = linear.weight.detach().float()
    return rows.to(weight) @ weight.T


def _digest(texts: list[str]) -> str:
    weights = [WORD_WEIGHT, BOS_WEIGHT, PADDING_WEIGHT, EMPTY_SHARE, MOST_CAPTIONS, HELD_OUT]
    weights += [RIDGE, AUDITED, FORMAT]
    return hashlib.sha256(json.dumps([weights, texts]).encode()).hexdigest()[:16]
