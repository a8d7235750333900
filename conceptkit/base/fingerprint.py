"""What a base is, whatever device or precision it is loaded in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conceptkit.base.adapters import own_parameters
from conceptkit.base.architectures import denoiser_of, text_site
from conceptkit.base.fingerprint_memo import remembered
from conceptkit.base.text_features import depth, encoders
from conceptkit.errors import BadBlob

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def fingerprint_of(pipe: DiffusionPipeline, own: bool = False) -> Fingerprint:
    """What this base is, with the adapters that others have put on it; tokens added to it do not count.

    own: whether to count what attached concepts change in its text encoders too.

    Worked out again where a weight has changed since the last call; to see that takes a tenth of the time.
    """
    return remembered(pipe, ("fingerprint", own), lambda: _fingerprint(pipe, own))


def _fingerprint(pipe: DiffusionPipeline, own: bool) -> Fingerprint:
    exact = hashlib.sha256()
    sketch, energy = torch.zeros(SKETCH_SIZE), 0.0
    effective = {name: (value, more) for name, value, more in own_parameters(denoiser_of(pipe))}
    for name in text_site(pipe):
        value, more = effective[f"{name}.weight"]
        weight = value.to("cpu", torch.float16)
        exact.update(name.encode())
        exact.update(weight.numpy().tobytes() + more)
        sketch += _projected(name, weight.float(), SKETCH_SIZE)
        energy += float(weight.float().square().sum())
    for tokenizer, encoder in encoders(pipe):
        table = encoder.get_input_embeddings().weight.detach()[: tokenizer.vocab_size]
        exact.update(table.to("cpu", torch.float16).numpy().tobytes())
    scale = (SKETCH_SIZE * max(energy, 1e-30)) ** 0.5
    maps = tuple((sketch / scale).tolist())
    return Fingerprint(architecture(pipe), exact.hexdigest()[:16], maps, *_text_encoders(pipe, own))


def features_digest(pipe: DiffusionPipeline, now: Fingerprint | None = None) -> str:
    """16 hex digits over all that text features and the maps that read them depend on, as they are now: maps,
    text encoders, the adapters at work on them, those of attached concepts too, and the tokenizers.

    now: `fingerprint_of(pipe, own=True)`, where it is known.
    """
    now = now or fingerprint_of(pipe, own=True)
    told = [now.exact, now.text_exact]
    for tokenizer, encoder in encoders(pipe):
        config = [str(getattr(encoder.config, name, "")) for name in READING]
        backend = getattr(tokenizer, "backend_tokenizer", None)
        text = _vocabulary(tokenizer) if backend is None else _spelling(_Backend(backend))
        told += [*config, str(tokenizer.model_max_length), text]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


class _Backend:
    """A tokenizer's backend, equal to itself while it has the same parts; a vocabulary has no other way to
    change than to be replaced."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        size = backend.get_vocab_size(with_added_tokens=False)
        model = [repr(getattr(backend.model, name, None)) for name in SPELLING]
        self._parts = size, *model, repr(backend.normalizer), repr(backend.pre_tokenizer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Backend) and other.backend is self.backend and other._parts == self._parts

    def __hash__(self) -> int:
        return hash(self._parts)


@lru_cache(maxsize=4)
def _spelling(of: _Backend) -> str:
    """JSON of how ordinary text is spelt; tokens that were added are no part of it."""
    whole = json.loads(of.backend.to_str())
    parts = {name: whole[name] for name in ("model", "normalizer", "pre_tokenizer")}
    return json.dumps(parts, sort_keys=True)


def _vocabulary(tokenizer: Any) -> str:
    """JSON of the entries of a tokenizer in Python, as Kolors' is, without tokens that were added."""
    added = tokenizer.get_added_vocab()
    entries = {entry: k for entry, k in tokenizer.get_vocab().items() if entry not in added}
    return json.dumps(entries, sort_keys=True)


def _text_encoders(pipe: DiffusionPipeline, own: bool) -> tuple[str, tuple[float, ...]]:
    """A digest of the text encoders, and random projections of them divided by their size."""
    exact = hashlib.sha256()
    sketch, energy = torch.zeros(TEXT_SKETCH_SIZE, dtype=torch.float64), 0.0
    for i, (tokenizer, encoder) in enumerate(encoders(pipe)):
        table, counted = encoder.get_input_embeddings(), False
        for name, value, more in _known_parameters(encoder, own):
            if is_table := value.data_ptr() == table.weight.data_ptr():
                if counted:
                    continue  # T5 has it in two places, and in one while tokens are on it
                counted = True
            rows = value[: tokenizer.vocab_size] if is_table else value
            weight = rows.to("cpu", torch.float16).contiguous()
            exact.update(name.encode())
            exact.update(weight.numpy().data)
            exact.update(more)
            projected, squares = _precisely_projected(f"{i} {name}", weight, TEXT_SKETCH_SIZE)
            sketch += projected
            energy += squares
    scale = (TEXT_SKETCH_SIZE * max(energy, 1e-30)) ** 0.5
    return exact.hexdigest()[:16], tuple(round(x, 6) for x in (sketch / scale).tolist())


def _known_parameters(encoder: Any, own: bool) -> Iterator[tuple[str, Tensor, bytes]]:
    """Those of a text encoder without the rows of tokens that were added."""
    for name, value, more in own_parameters(encoder, own):
        if not (name.endswith(".rows") and name.split(".")[-2] in TOKEN_TABLES):
            yield name, value, more


def _projected(label: str, weight: Tensor, count: int) -> Tensor:
    """(count,): projections of a weight onto random signs, which depend on its name alone."""
    flat = weight.reshape(weight.shape[0], -1)
    left, right = _signs_of(label, flat, count)
    return ((left @ flat) * right).sum(dim=1)


def _precisely_projected(label: str, weight: Tensor, count: int) -> tuple[Tensor, float]:
    """The same (count,), and the square of the weight's length, in double precision, some rows at a time.

    In single precision the sixth digit depends on the processor.
    """
    flat = weight.reshape(weight.shape[0], -1)
    left, right = _signs_of(label, flat, count)
    total, squares = torch.zeros(right.shape, dtype=torch.float64), 0.0
    for signs, rows in zip(left.split(ROWS_AT_ONCE, dim=1), flat.split(ROWS_AT_ONCE), strict=True):
        total += signs.double() @ rows.double()
        squares += float(rows.double().square().sum())
    return (total * right.double()).sum(dim=1), squares


def _signs_of(label: str, flat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Signs for the outputs and the inputs of a matrix."""
    outputs, inputs = flat.shape
    return _signs(f"{label} outputs", outputs, count), _signs(f"{label} inputs", inputs, count)


def architecture(pipe: DiffusionPipeline) -> str:
    """16 hex digits over map names, shapes and text encoder sizes; works on the meta device."""
    value = {
        "maps": [[name, *linear.weight.shape] for name, linear in text_site(pipe).items()],
        "encoders": [
            [tokenizer.vocab_size, config.hidden_size, depth(config)]
            for tokenizer, encoder in encoders(pipe)
            for config in [getattr(encoder.config, "text_config", encoder.config)]
        ],
    }
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _signs(label: str, size: int, count: int) -> Tensor:
    """(count, size) of +1 and -1, from a hash: the same on every machine and with every library version."""
    octets = hashlib.shake_256(label.encode()).digest(count * size // 8)
    bits = np.unpackbits(np.frombuffer(octets, np.uint8)).reshape(count, size)
    return torch.from_numpy(bits).float() * 2 - 1


SKETCH_SIZE = 64
TEXT_SKETCH_SIZE = 16
ROWS_AT_ONCE = 4096
TOKEN_TABLES = ("token_embedding", "shared", "embed_tokens", "word_embeddings")
"""What text encoders call their token tables, on which new tokens have rows."""
SPELLING = (
    *("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
    *("fuse_unk", "byte_fallback", "ignore_merges"),
)
"""What can be set on a tokenizer's vocabulary."""
READING = ("hidden_act", "num_attention_heads", "layer_norm_eps")
"""What a text encoder's configuration says of how it computes."""


@dataclass(frozen=True)
class Fingerprint:
    """What a base is, whatever device or precision it is loaded in.

    architecture: 16 hex digits over map names, shapes and text encoder sizes.
    exact: 16 hex digits over the maps and the token table, rounded to float16.
    sketch: 64 random projections of the stacked maps W, divided by ||W||.
    text_exact: 16 hex digits over the text encoders; "" where that is not known, as in early concepts.
    text_sketch: 16 random projections of the text encoders' parameters, divided by their length; or ().
    """

    architecture: str
    exact: str
    sketch: tuple[float, ...]
    text_exact: str = ""
    text_sketch: tuple[float, ...] = ()

    def distance(self, other: Fingerprint) -> float:
        """An estimate of ||W - W'|| / ||W||; 0 for the same base, infinity for another architecture."""
        if self.architecture != other.architecture:
            return math.inf
        return 0.0 if self.exact == other.exact else math.dist(self.sketch, other.sketch)

    def text_distance(self, other: Fingerprint) -> float:
        """The same of the text encoders; 0 where one of them is not known."""
        if self.text_exact == other.text_exact or not (self.text_sketch and other.text_sketch):
            return 0.0
        return math.dist(self.text_sketch, other.text_sketch)

    def same(self, other: Fingerprint) -> bool:
        """Whether both have the same maps and, as far as is known, read text in the same way."""
        known = self.text_exact and other.text_exact
        return self.exact == other.exact and (not known or self.text_exact == other.text_exact)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        told = {"architecture": self.architecture, "exact": self.exact, "sketch": list(self.sketch)}
        text = {"text_exact": self.text_exact, "text_sketch": list(self.text_sketch)}
        return told | text if self.text_exact else told

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fingerprint:
        """Raises BadBlob when the value is not what `to_json` writes."""
        architecture, exact, sketch = (value[key] for key in ("architecture", "exact", "sketch"))
        if not (isinstance(architecture, str) and isinstance(exact, str)):
            raise BadBlob(
                "These bytes are not a concept (its base has no fingerprint); import or learn it again"
            )
        if len(sketch) != SKETCH_SIZE or not all(type(x) is float for x in sketch):
            raise BadBlob("These bytes are not a concept (its sketch is damaged); import or learn it again")
        text, projections = value.get("text_exact", ""), value.get("text_sketch", [])
        whole = isinstance(text, str) and isinstance(projections, list)
        sizes = (TEXT_SKETCH_SIZE,) if text else (0, TEXT_SKETCH_SIZE)
        if not whole or len(projections) not in sizes or not all(type(x) is float for x in projections):
            raise BadBlob("These bytes are not a concept (its sketch is damaged); import or learn it again")
        return cls(architecture, exact, tuple(sketch), text, tuple(projections))
