"""Formats 1 and 2, lossless but for half precision: a tensor for every factor, and one header."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from conceptkit.base.fingerprint import Fingerprint
from conceptkit.concepts import reference as references
from conceptkit.concepts.delta import READS_TEXT, Delta, Factors
from conceptkit.errors import BadBlob
from conceptkit.registry import private_names
from conceptkit.safetensors_header import KEY, read_metadata

if TYPE_CHECKING:
    from conceptkit.concepts.concept import Concept

KINDS = ("subject", "style", "merge")
FORMAT = 1
WITH_REFERENCE = 2
"""The format of a concept that carries a reference photo, which programs that know none must not take for
damaged; all others are of the first."""
HALF_ERROR = 1e-3


def to_bytes(concept: "Concept") -> bytes:
    """Safetensors bytes, the same for the same concept: float16 wherever that is accurate to 0.1 %.

    Where its base lies on this machine and what its photos are called is not in them, but in `summary`.
    All metadata is one header key, because safetensors writes several in random order.
    """
    tensors, layout = _packed(concept.delta)
    for i, (_, rows) in enumerate(sorted(concept.tokens.items())):
        tensors |= {f"token.{i}.{encoder}": _plain(row) for encoder, row in enumerate(rows)}
    if concept.rows is not None:
        tensors["rows"] = _compact(concept.rows)
    header: dict[str, Any] = {
        "format": FORMAT,
        "name": concept.name,
        "kind": concept.kind,
        "noun": concept.noun,
        "base": concept.base.to_json(),
        "base_name": private_names.public_base(concept.base_name),
        "tokens": sorted(concept.tokens),
        "words": dict(concept.words),
        "delta": layout,
        "recipe": dict(concept.recipe),
        "provenance": private_names.public_provenance(concept.provenance),
    }
    if concept.reference is not None:
        more, maps = _packed(concept.reference.maps, references.PREFIX)
        tensors |= {**more, references.LATENT: concept.reference.flat()}
        size = list(concept.reference.latent.shape[1:])
        header |= {"format": WITH_REFERENCE, "reference": {"maps": maps, "size": size}}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return safetensors.torch.save(tensors, {KEY: text})


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
    layout: dict[str, int | None] = {}
    for name, factors in sorted(delta.items()):
        kind = "weight" if factors.down is None else "up"
        tensors[f"{prefix}{kind}.{name}"] = _compact(factors.first)
        layout[name] = None
    plain = Delta({name: f.map(_plain) for name, f in sorted(delta.items()) if f.down is not None})
    numbers = {key: number for number, key in enumerate(dict.fromkeys(plain.shared.values()))}
    layout |= {name: numbers[key] for name, key in plain.shared.items()}
    store = _compact if len(numbers) > 1 else _plain
    tensors |= {f"{prefix}down.{number}": store(down) for number, down in enumerate(plain.downs)}
    return tensors, layout


def damaged(what: str) -> str:
    """The sentence for bytes that cannot be read, because of `what`."""
    return f"These bytes are not a concept ({what}); import or learn it again"


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise BadBlob(damaged(what))


def parse(data: bytes) -> dict[str, Any]:
    """The fields of the concept in these bytes, tensors as float32 (`Concept.from_bytes` catches errors)."""
    tensors = {name: tensor.float() for name, tensor in safetensors.torch.load(data).items()}
    for name, tensor in tensors.items():
        _expect(tensor.ndim == 2 and tensor.numel() > 0, f"{name} is no matrix")
        _expect(bool(tensor.isfinite().all()), f"{name} is not finite")
    header = read_metadata(data, finite=True)
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
            held = [take(prefix + part) for part in parts]
            _expect(down is None or held[0].shape[1] == len(held[1]), f"the factors of {name} do not fit")
            found[name] = Factors.of(held)
        return Delta(found, {name: int(down) for name, down in layout.items() if down is not None})

    delta = factors(header["delta"])
    tokens = {token: _encoders(tensors, f"token.{i}.", take) for i, token in enumerate(header["tokens"])}
    rows = take("rows") if "rows" in tensors else None
    reference = None
    if form == WITH_REFERENCE:
        about = header["reference"]
        maps = factors(about["maps"], references.PREFIX)
        reference = references.reference_of(about, maps, take)
    _expect(used == set(tensors), "it holds tensors that nothing names")
    check_shapes(delta, tokens, rows)
    check_texts(header)
    return dict(
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


def _encoders(
    tensors: Mapping[str, Tensor], prefix: str, take: Callable[[str], Tensor]
) -> tuple[Tensor, ...]:
    count = sum(name.startswith(prefix) for name in tensors)
    return tuple(take(f"{prefix}{encoder}") for encoder in range(count))


def check_shapes(delta: Delta, tokens: Mapping[str, tuple[Tensor, ...]], rows: Tensor | None) -> None:
    """Raises BadBlob where tensors do not fit together."""
    widths = {factors.shape[1] for name, factors in delta.items() if name.endswith(READS_TEXT)}
    widths |= set() if rows is None else {rows.shape[1]}
    _expect(len(widths) <= 1, "its maps read features of different widths")
    _expect(len({len(vectors) for vectors in tokens.values()}) <= 1, "its tokens are for different encoders")
    for token, vectors in tokens.items():
        _expect(len({len(vector) for vector in vectors}) == 1, f"the token {token} has uneven vectors")


def check_texts(header: Mapping[str, Any]) -> None:
    """Raises BadBlob where what a header says is not what it should be."""
    _expect(header["kind"] in KINDS, f"its kind is {header['kind']!r}")
    _expect(header["noun"] is None or isinstance(header["noun"], str), "its noun is no text")
    texts = [header["name"], header["base_name"], *header["tokens"], *header["words"].values()]
    _expect(all(isinstance(text, str) for text in texts), "its names and words are no texts")
    _expect(
        isinstance(header["recipe"], dict) and isinstance(header["provenance"], dict), "it has no history"
    )
