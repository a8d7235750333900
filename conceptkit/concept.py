"""A concept: a name, its tokens, what it adds to a base, where it came from. Immutable; safe bytes both ways.

A delta maps the name of a linear map of the UNet to the factors whose product (o, d) is added to that map:
`(weight,)` is the full matrix, `(up, down)` are (o, r) and (r, d). Maps that share one `down` store it once.
Deltas lie on keys and values of cross-attention, and some on other maps too; those of a text encoder have its
name in front, "text_encoder.encoder.layers.0.self_attn.q_proj".
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from conceptkit.errors import BadBlob
from conceptkit.vico import photo as references
from conceptkit.vico.photo import Reference

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry

Factors = tuple[Tensor, ...]
Delta = Mapping[str, Factors]

KINDS = ("subject", "style", "merge")
FORMAT = 1
WITH_REFERENCE = 2
"""The format of a concept that carries a reference photo, which programs that know none must not take for
damaged; all others are of the first."""
SKETCH_SIZE = 64
HALF_ERROR = 1e-3
READS_TEXT = ("attn2.to_k", "attn2.to_v")
"""Endings of the maps that read text features; the others of a wide delta read what the layer before made."""


@dataclass(frozen=True)
class Fingerprint:
    """What a base is, whatever device or precision it is loaded in.

    architecture: 16 hex digits over map names, shapes and text encoder sizes.
    exact: 16 hex digits over the maps and the token table, rounded to float16.
    sketch: 64 random projections of the stacked maps W, divided by ||W||.
    """

    architecture: str
    exact: str
    sketch: tuple[float, ...]

    def distance(self, other: "Fingerprint") -> float:
        """An estimate of ||W - W'|| / ||W||; 0 for the same base, infinity for another architecture."""
        if self.architecture != other.architecture:
            return math.inf
        return 0.0 if self.exact == other.exact else math.dist(self.sketch, other.sketch)

    def to_json(self) -> dict[str, Any]:
        return {"architecture": self.architecture, "exact": self.exact, "sketch": list(self.sketch)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Fingerprint":
        """Raises BadBlob when the value is not what `to_json` writes."""
        architecture, exact, sketch = (value[key] for key in ("architecture", "exact", "sketch"))
        _expect(isinstance(architecture, str) and isinstance(exact, str), "its base has no fingerprint")
        _expect(len(sketch) == SKETCH_SIZE and all(type(x) is float for x in sketch), "its sketch is damaged")
        return cls(architecture, exact, tuple(sketch))


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept, or a merge of several.

    tokens: "<my_dog>" -> per text encoder its embedding rows (k, width of that encoder).
    words: a name in a prompt -> the text it stands for: {"my_dog": "<my_dog> dog"}.
    rows: (s, d) text features of its own words over many contexts, and of its class noun where it leaves that
        alone, so that composing encodes no prompt.
    recipe, provenance: JSON without timestamps, so that the same seed gives the same bytes.
    reference: a photo that is looked at in every step of drawing, and how; None for most.
    """

    name: str
    kind: str
    noun: str | None
    base: Fingerprint
    base_name: str
    tokens: Mapping[str, Factors]
    words: Mapping[str, str]
    delta: Delta
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    rows: Tensor | None = None
    reference: Reference | None = None

    def to_bytes(self) -> bytes:
        """Safetensors bytes, the same for the same concept: float16 wherever that is accurate to 0.1 %.

        All metadata is one header key, because safetensors writes several in random order.
        """
        tensors, layout = _packed(self.delta)
        for i, (_, rows) in enumerate(sorted(self.tokens.items())):
            tensors |= {f"token.{i}.{encoder}": _plain(row) for encoder, row in enumerate(rows)}
        if self.rows is not None:
            tensors["rows"] = _compact(self.rows)
        header: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "kind": self.kind,
            "noun": self.noun,
            "base": self.base.to_json(),
            "base_name": self.base_name,
            "tokens": sorted(self.tokens),
            "words": dict(self.words),
            "delta": layout,
            "recipe": dict(self.recipe),
            "provenance": dict(self.provenance),
        }
        if self.reference is not None:
            more, maps = _packed(self.reference.maps, references.PREFIX)
            tensors |= {**more, references.LATENT: self.reference.flat()}
            size = list(self.reference.latent.shape[1:])
            header |= {"format": WITH_REFERENCE, "reference": {"maps": maps, "size": size}}
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return safetensors.torch.save(tensors, {"conceptkit": text})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Concept":
        """The concept in these bytes, as float32. Raises BadBlob when they are anything else."""
        try:
            return _parse(data)
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise BadBlob(_damaged(f"{type(error).__name__} while reading it")) from error
        except (RuntimeError, OverflowError, MemoryError) as error:
            raise BadBlob(_damaged("its sizes do not fit together")) from error

    def summary(self) -> dict[str, Any]:
        """What the registry's index shows without opening the concept."""
        shown = {} if self.reference is None else {"reference": True}
        maps = {} if self.reference is None else self.reference.maps
        return {
            "kind": self.kind,
            "noun": self.noun,
            "base": {"architecture": self.base.architecture, "exact": self.base.exact},
            "base_name": self.base_name,
            "method": self.recipe.get("method"),
            "rank": max(delta_rank(self.delta), delta_rank(maps)),
            "bytes": len(self.to_bytes()),
            "tokens": sorted(self.tokens),
            "parents": list(self.provenance.get("parents", [])),
            "weights": list(self.provenance.get("weights", [])),
            **shown,
        }

    def called(self, name: str) -> "Concept":
        """The same under another name, its word in prompts from then on; a merge keeps its parts' words."""
        if name == self.name or set(self.words) != {self.name}:
            return self
        return replace(self, name=name, words={name: self.words[self.name]})


def apply(factors: Factors, rows: Tensor) -> Tensor:
    """What one map's factors add at the features `rows` (s, d): (s, o), in the precision of the rows."""
    for factor in reversed(factors):
        rows = rows @ factor.to(rows).T
    return rows


def delta_rows(delta: Delta, sizes: Mapping[str, int], rows: Tensor) -> Tensor:
    """C D^T (s, O) for features `rows` C (s, d), stacked as `sizes` (map -> o) says; absent maps add 0."""
    absent = {name: rows.new_zeros(len(rows), o) for name, o in sizes.items() if name not in delta}
    return torch.cat([absent[name] if name in absent else apply(delta[name], rows) for name in sizes], dim=1)


def delta_rank(delta: Delta) -> int:
    """The largest rank among the maps; 0 when nothing is added."""
    return max((min(min(factor.shape) for factor in factors) for factors in delta.values()), default=0)


def delta_dense(factors: Factors) -> Tensor:
    """The (o, d) matrix itself, for one map: tests and full-matrix formats need it, composing does not."""
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1]


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _compact(tensor: Tensor) -> Tensor:
    """Float16, unless its range would cost more than HALF_ERROR of the norm."""
    full = _plain(tensor)
    half = full.half()
    return half if (half.float() - full).norm() <= HALF_ERROR * full.norm() else full


def _packed(delta: Delta, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, int | None]]:
    """Tensors by the names they are stored under, and for each map the number of its down, if it has one."""
    tensors: dict[str, Tensor] = {}
    downs: dict[tuple[object, bytes], int] = {}
    layout: dict[str, int | None] = {}
    for name, factors in sorted(delta.items()):
        kind = "up" if len(factors) == 2 else "weight"
        tensors[f"{prefix}{kind}.{name}"] = _compact(factors[0])
        layout[name] = None
        if len(factors) == 2:
            down = _plain(factors[1])
            key = (down.shape, down.numpy().tobytes())
            layout[name] = downs.setdefault(key, len(downs))
            tensors[f"{prefix}down.{layout[name]}"] = down
    if len(downs) > 1:
        own = [f"{prefix}down.{i}" for i in range(len(downs))]
        tensors |= {name: _compact(tensors[name]) for name in own}
    return tensors, layout


def read(registry: "Registry", name: str) -> Concept:
    """What the registry holds under that name. Raises UnknownConcept, and BadBlob when it cannot be read."""
    entry = registry.get(name)
    data = registry.read(entry)
    try:
        return Concept.from_bytes(data).called(entry.name)
    except BadBlob as error:
        again = f"remove it with `conceptkit rm {entry.ref}` and learn it again"
        raise BadBlob(f"{entry.ref} is stored as bytes that are not a concept; {again}") from error


def _damaged(what: str) -> str:
    return f"These bytes are not a concept ({what}); import or learn it again"


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise BadBlob(_damaged(what))


def _parse(data: bytes) -> Concept:
    tensors = {name: tensor.float() for name, tensor in safetensors.torch.load(data).items()}
    for name, tensor in tensors.items():
        _expect(tensor.ndim == 2 and tensor.numel() > 0, f"{name} is no matrix")
        _expect(bool(tensor.isfinite().all()), f"{name} is not finite")
    size = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + size])["__metadata__"]
    header = json.loads(outer["conceptkit"], parse_constant=_no_constant, parse_float=_finite)
    form = header["format"]
    _expect(form in (FORMAT, WITH_REFERENCE), f"its format is {form!r}, not {FORMAT} or {WITH_REFERENCE}")

    used: set[str] = set()

    def take(name: str) -> Tensor:
        used.add(name)
        return tensors[name]

    def factors(layout: Mapping[str, int | None], prefix: str = "") -> Delta:
        found: dict[str, Factors] = {}
        for name, down in layout.items():
            parts = [f"weight.{name}"] if down is None else [f"up.{name}", f"down.{int(down)}"]
            found[name] = tuple(take(prefix + part) for part in parts)
        return found

    delta = factors(header["delta"])
    tokens = {token: _encoders(tensors, f"token.{i}.", take) for i, token in enumerate(header["tokens"])}
    rows = take("rows") if "rows" in tensors else None
    reference = None
    if form == WITH_REFERENCE:
        about = header["reference"]
        maps = factors(about["maps"], references.PREFIX)
        reference = references.parse(about, maps, take)
        _check_factors(maps)
    _expect(used == set(tensors), "it holds tensors that nothing names")
    _check_shapes(delta, tokens, rows)
    _check_texts(header)
    return Concept(
        name=header["name"],
        kind=header["kind"],
        noun=header["noun"],
        base=Fingerprint.from_json(header["base"]),
        base_name=header["base_name"],
        tokens=tokens,
        words=header["words"],
        delta=delta,
        recipe=header["recipe"],
        provenance=header["provenance"],
        rows=rows,
        reference=reference,
    )


def _encoders(tensors: Mapping[str, Tensor], prefix: str, take: Callable[[str], Tensor]) -> Factors:
    count = sum(name.startswith(prefix) for name in tensors)
    return tuple(take(f"{prefix}{encoder}") for encoder in range(count))


def _check_shapes(delta: Delta, tokens: Mapping[str, Factors], rows: Tensor | None) -> None:
    widths = {factors[-1].shape[1] for name, factors in delta.items() if name.endswith(READS_TEXT)}
    widths |= set() if rows is None else {rows.shape[1]}
    _expect(len(widths) <= 1, "its maps read features of different widths")
    _check_factors(delta)
    _expect(len({len(vectors) for vectors in tokens.values()}) <= 1, "its tokens are for different encoders")
    for token, vectors in tokens.items():
        _expect(len({len(vector) for vector in vectors}) == 1, f"the token {token} has uneven vectors")


def _check_factors(delta: Delta) -> None:
    for name, factors in delta.items():
        inner = {factors[0].shape[1], factors[-1].shape[0]} if len(factors) == 2 else set()
        _expect(len(inner) <= 1, f"the factors of {name} do not fit")


def _check_texts(header: Mapping[str, Any]) -> None:
    _expect(header["kind"] in KINDS, f"its kind is {header['kind']!r}")
    _expect(header["noun"] is None or isinstance(header["noun"], str), "its noun is no text")
    texts = [header["name"], header["base_name"], *header["tokens"], *header["words"].values()]
    _expect(all(isinstance(text, str) for text in texts), "its names and words are no texts")
    _expect(
        isinstance(header["recipe"], dict) and isinstance(header["provenance"], dict), "it has no history"
    )


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is beyond every number")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
