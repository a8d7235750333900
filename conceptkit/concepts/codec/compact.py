"""Format 5, a concept in kilobytes: its numbers rounded and range coded, its texts deflated, in one tensor.

    header   what a list shows, and CRC-32 of everything, as JSON under the key of all formats
    "coded"  uint8 (1, n): [length of the texts] [texts, deflated] [numbers, see `symbols`]

The numbers are vectors, each a column of an `up`, a row of a `down` or a row of a token, with a step of its
own. What they are worth is their whole number times that step, the same on every machine.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conceptkit.base.fingerprint import SKETCH_SIZE, TEXT_SKETCH_SIZE, Fingerprint
from conceptkit.concepts.codec import symbols, symbols_before
from conceptkit.concepts.codec.symbols import Vector
from conceptkit.concepts.delta import ENCODERS, READS_TEXT, Delta, Factors
from conceptkit.registry import private_names
from conceptkit.registry.compact_header import BEFORE, CODED, READ, checksum, public_fields

if TYPE_CHECKING:
    from conceptkit.concepts.concept import Concept

PARTS = "bits"
"""The field of an entry's summary with what `parts_of` says."""
MOST_TEXT = 4 << 20
"""Bytes of texts when they are inflated."""
_BLOCK = re.compile(r"(.*\b(?:transformer_blocks|layers)\.\d+)\.(.+)")
_KNOWN = (
    b'"caption_preservation_weight":0.0,"class_image_guidance_scale":3.0,"class_image_steps":15,'
    b'"class_noun_rows":2,"full_learning_rate":0.0002,"gated_lora_learning_rate":0.004,"gated_lora_rank":2,'
    b'"key_learning_rate":0.002,"learning_rate":0.02,"max_timestep_fraction":0.8,"max_train_steps":170,'
    b'"method":"custom-diffusion","method":"dreambooth","method":"textual-inversion","method":"custom",'
    b'"num_vectors":3,"prior_loss_weight":0.0,"rank":3,"sude_prompts":"states","text_encoder_rank":0,'
    b'"token_init":"noun","token_init_noise":1.0,"token_learning_rate":0.005,"token_train_steps":80,'
    b'"train_batch_size":4,"auto_caption":true,"photos_sha256":"","how":"shrink","parents":[""],'
    b'"parent_sha256":[""],"seed":0,"text_encoder.text_model.encoder.layers.0","self_attn.q_proj",'
    b'"up_blocks.1.attentions.0.transformer_blocks.0","down_blocks.1.attentions.0.transformer_blocks.0",'
    b'"mid_block.attentions.0.transformer_blocks.0","attn1.to_k","attn1.to_out.0","attn1.to_q","attn1.to_v",'
    b'"attn2.to_k","attn2.to_out.0","attn2.to_q","attn2.to_v","ff.net.0.proj","ff.net.2"'
)
"""What such texts are likely to say, from which deflate begins; a part of the format, it never changes."""


@dataclass(frozen=True)
class MapShape:
    """The factors of a map, (o, r) and (r, d), and the number of its `down`, which others may share."""

    name: str
    outputs: int
    inputs: int
    rank: int
    down: int


@dataclass(frozen=True)
class Layout:
    """Which numbers there are: maps in turn, and of each token its rows (k, width) for each encoder."""

    maps: tuple[MapShape, ...]
    tokens: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]

    def lengths(self) -> list[int]:
        """Of all vectors: the downs in turn, row by row, the ups, column by column, the tokens' rows."""
        found = [shape.inputs for shape in self.downs() for _ in range(shape.rank)]
        found += [shape.outputs for shape in self.maps for _ in range(shape.rank)]
        found += [width for _, encoders in self.tokens for rows, width in encoders for _ in range(rows)]
        return found

    def downs(self) -> list[MapShape]:
        """The first map of each down. Raises ValueError where maps that share one do not fit each other."""
        first: dict[int, MapShape] = {}
        for shape in self.maps:
            known = first.setdefault(shape.down, shape)
            if (known.inputs, known.rank) != (shape.inputs, shape.rank):
                raise ValueError("maps that share a factor have other shapes")
        return list(first.values())

    @classmethod
    def of(cls, delta: Delta, tokens: Mapping[str, Sequence[Tensor]]) -> Layout:
        """The layout of a delta whose maps all have low rank."""
        numbers: dict[Hashable, int] = {}
        maps = []
        for name, factors in sorted(delta.items()):
            up, down = factors
            key = numbers.setdefault(delta.shared[name], len(numbers))
            maps.append(MapShape(name, len(up), down.shape[1], len(down), key))
        shapes = [
            (token, tuple((int(row.shape[0]), int(row.shape[1])) for row in rows))
            for token, rows in sorted(tokens.items())
        ]
        return cls(tuple(maps), tuple(shapes))

    def to_json(self) -> dict[str, Any]:
        """Maps by the block that they are in: blocks of a kind say once what is in them."""
        blocks: dict[str, list[list[Any]]] = {}
        for shape in self.maps:
            found = _BLOCK.fullmatch(shape.name)
            block, name = (found[1], found[2]) if found else ("", shape.name)
            blocks.setdefault(block, []).append([name, shape.outputs, shape.inputs, shape.rank, shape.down])
        shared = [
            number for number in {s.down for s in self.maps} if sum(s.down == number for s in self.maps) > 1
        ]
        kinds: list[list[list[Any]]] = []
        for rows in blocks.values():
            for row in rows:
                row[4] = shared.index(row[4]) if row[4] in shared else -1
            if rows not in kinds:
                kinds.append(rows)
        where = [[block, kinds.index(rows)] for block, rows in blocks.items()]
        return {"kinds": kinds, "blocks": where, "tokens": [list(map(list, e)) for _, e in self.tokens]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], tokens: Sequence[str]) -> Layout:
        """What `to_json` wrote. Raises ValueError, LookupError or TypeError for anything else."""
        maps: list[tuple[str, list[Any]]] = []
        for block, kind in value["blocks"]:
            maps += [(f"{block}.{row[0]}" if block else str(row[0]), row) for row in value["kinds"][kind]]
        shapes, own = [], len(maps)
        for name, (_, outputs, inputs, rank, down) in sorted(maps):
            own += down < 0
            number = own if down < 0 else down
            if not all(type(size) is int and size > 0 for size in (outputs, inputs, rank)):
                raise ValueError(f"the map {name[:80]!r} has an odd shape")
            shapes.append(MapShape(name, outputs, inputs, rank, int(number)))
        if len({shape.name for shape in shapes}) != len(shapes):
            raise ValueError("a map is there twice")
        encoders = [tuple((int(rows), int(width)) for rows, width in each) for each in value["tokens"]]
        if any(min(size) < 1 for each in encoders for size in each):
            raise ValueError("a token has an odd shape")
        return cls(tuple(shapes), tuple(zip(tokens, encoders, strict=True)))


@dataclass(frozen=True, eq=False)
class Coded:
    """Numbers as they are stored, and the very tensors that they stand for.

    A concept that still has these tensors is written as these numbers; one that has others is not.
    """

    layout: Layout
    numbers: bytes
    delta: Delta
    tokens: Mapping[str, tuple[Tensor, ...]]

    def describes(self, delta: Delta, tokens: Mapping[str, Sequence[Tensor]]) -> bool:
        """Whether these are the very tensors."""
        same = delta.keys() == self.delta.keys() and tokens.keys() == self.tokens.keys()
        return (
            same
            and all(factors is self.delta[name] for name, factors in delta.items())
            and all(
                a is b for name, rows in tokens.items() for a, b in zip(rows, self.tokens[name], strict=True)
            )
        )


def coded(layout: Layout, vectors: Sequence[Vector]) -> Coded:
    """The vectors of a layout as they are stored, with what they are worth."""
    return _valued(layout, symbols.encode(vectors), vectors)


def decoded(layout: Layout, numbers: bytes) -> Coded:
    """The same from stored numbers. Raises ValueError for other bytes."""
    return _valued(layout, numbers, symbols.decode(numbers, layout.lengths()))


def _valued(layout: Layout, numbers: bytes, vectors: Sequence[Vector]) -> Coded:
    steps = symbols.worths([vector.step for vector in vectors]).astype(np.float32)
    whole = np.concatenate([vector.values for vector in vectors] or [np.zeros(0)]).astype(np.float32)
    whole *= np.repeat(steps, [len(vector.values) for vector in vectors])
    flat, place = torch.from_numpy(whole), 0

    def matrix(count: int, width: int) -> Tensor:
        """The next so many vectors, which are of that length, as rows."""
        nonlocal place
        place += count * width
        return flat[place - count * width : place].view(count, width)

    downs = {s.down: matrix(s.rank, s.inputs).clone() for s in layout.downs()}
    maps = {s.name: Factors(matrix(s.rank, s.outputs).T.contiguous(), downs[s.down]) for s in layout.maps}
    tokens = {token: tuple(matrix(*size).clone() for size in each) for token, each in layout.tokens}
    return Coded(layout, numbers, Delta(maps, {s.name: s.down for s in layout.maps}), tokens)


def identity(concept: Concept) -> dict[str, Any]:
    """The public fields that say who a concept is, whatever its numbers are stored as."""
    return {
        "name": concept.name,
        "kind": concept.kind,
        "noun": concept.noun,
        "base": {"architecture": concept.base.architecture, "exact": concept.base.exact},
        "base_name": private_names.public_base(concept.base_name),
        "tokens": sorted(concept.tokens),
        "words": dict(concept.words),
    }


def to_bytes(concept: Concept, numbers: Coded) -> bytes:
    """Safetensors bytes of a concept whose tensors are those of `numbers`."""
    provenance = private_names.public_provenance(concept.provenance)
    sketch = np.array([*concept.base.sketch, *concept.base.text_sketch], dtype="<f2").tobytes()
    texts = {
        "recipe": dict(concept.recipe),
        "provenance": provenance,
        "text": concept.base.text_exact,
        "maps": numbers.layout.to_json(),
    }
    written = json.dumps(texts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    packed = symbols.deflated(struct.pack("<I", len(written)) + written + sketch, _KNOWN)
    body = struct.pack("<I", len(packed)) + packed + numbers.numbers
    about = public_fields(
        **identity(concept),
        recipe={"method": concept.recipe.get("method")},
        rank=concept.delta.rank,
        provenance={
            key: provenance[key] for key in ("parents", "parent_sha256", "weights") if key in provenance
        },
    )
    about["crc32"] = checksum(about, body)
    text = json.dumps(about, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    outer = {
        "__metadata__": {"conceptkit": text},
        CODED: {"dtype": "U8", "shape": [1, len(body)], "data_offsets": [0, len(body)]},
    }
    header = json.dumps(outer, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def parse(about: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """The fields of the concept in a header of format 3 or 5 and the bytes of its one tensor."""
    if about["format"] not in READ or checksum(about, body) != about["crc32"]:
        raise ValueError("its bytes are not those that were written")
    (length,) = struct.unpack_from("<I", body)
    if 4 + length > len(body):
        raise ValueError("its texts are cut")
    inner = symbols.inflated(body[4 : 4 + length], MOST_TEXT, _KNOWN)
    (written,) = struct.unpack_from("<I", inner)
    texts = json.loads(inner[4 : 4 + written])
    sketch = np.frombuffer(inner[4 + written :], "<f2").astype(float)
    text = str(texts["text"])
    if len(sketch) not in (SKETCH_SIZE, SKETCH_SIZE + TEXT_SKETCH_SIZE) or not np.isfinite(sketch).all():
        raise ValueError("its base has no sketch")
    base = Fingerprint(
        str(about["base"]["architecture"]),
        str(about["base"]["exact"]),
        tuple(sketch[:SKETCH_SIZE].tolist()),
        text,
        tuple(sketch[SKETCH_SIZE:].tolist()),
    )
    if not (isinstance(texts["recipe"], dict) and isinstance(texts["provenance"], dict)):
        raise ValueError("it has no history")
    layout, stored = Layout.from_json(texts["maps"], about["tokens"]), body[4 + length :]
    if about["format"] == BEFORE:
        numbers = coded(layout, symbols_before.decode(stored, layout.lengths()))
    else:
        numbers = decoded(layout, stored)
    return dict(
        name=about["name"],
        kind=about["kind"],
        noun=about["noun"],
        base=base,
        base_name=about["base_name"],
        tokens=dict(numbers.tokens),
        words=about["words"],
        delta=numbers.delta,
        recipe=texts["recipe"],
        provenance=texts["provenance"],
        coded=numbers,
    )


def parts_of(numbers: Coded) -> dict[str, list[float]]:
    """[values, bits a value] of each part of a concept: keys and values, other maps, text encoders, words."""
    vectors = symbols.decode(numbers.numbers, numbers.layout.lengths())
    owners = [part_of(shape.name) for shape in numbers.layout.downs() for _ in range(shape.rank)]
    owners += [part_of(shape.name) for shape in numbers.layout.maps for _ in range(shape.rank)]
    owners += ["words"] * (len(vectors) - len(owners))
    bits = symbols.bits(vectors)
    found: dict[str, list[float]] = {}
    for part in dict.fromkeys(owners):
        own = [k for k, owner in enumerate(owners) if owner == part]
        count = sum(len(vectors[k].values) for k in own)
        found[part] = [count, round(sum(bits[k] for k in own) / count, 3)]
    return found


def part_of(name: str) -> str:
    """The part of a concept that a map belongs to, as `parts_of` names it."""
    if name.partition(".")[0] in ENCODERS:
        return "text encoders"
    return "keys and values" if name.endswith(READS_TEXT) else "other maps"


def sizes(data: bytes) -> dict[str, int]:
    """Bytes of a file of format 5 by what they are for: its header, its texts, its numbers."""
    end = 8 + int.from_bytes(data[:8], "little")
    (length,) = struct.unpack_from("<I", data, end)
    return {"header": end, "texts": 4 + length, "numbers": len(data) - end - 4 - length}
