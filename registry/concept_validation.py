"""Whether bytes from elsewhere are a concept, found out without torch and without trusting any size in them.

The layout is that of https://github.com/huggingface/safetensors, the rest is what `Concept.to_bytes` writes.
Whatever passes can be stored and shown; whether its maps fit a base is found out on loading.
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from conceptkit.registry import compact_header, concept_header, merge_recipe
from conceptkit.registry.errors import BadBlob
from conceptkit.registry.sources import CHUNK, Reader, Source

FORMATS = (1, 2, *compact_header.READ)
"""2: with a reference photo. 3: with coded numbers."""
LARGEST = 2 << 30
"""Bytes of one concept; full key and value matrices of SDXL in float32 take 1.4 GB."""
MOST_TENSORS = 20_000
LONGEST_TEXT = 1_000
"""Characters of one name, word or token."""
MOST_TEXTS = 1_000

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
CODED_SIZES = {"U8": 1}
KINDS = ("subject", "style", "merge")

_NOTE_BREAKS = str.maketrans("", "", "\n\t")
# control characters could repaint the terminal that shows them, bidirectional ones reorder a line
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check(data: bytes | Source) -> concept_header.Header:
    """The header of the concept in these bytes, read piece by piece. Raises BadBlob for anything else."""
    try:
        return _check(Source.of(data))
    except BadBlob as error:
        raise BadBlob(f"These bytes are not a concept, because {_inside(error)}.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BadBlob(
            f"These bytes are not a concept ({type(error).__name__} while reading them)."
        ) from error


def is_plain(text: object, longest: int = LONGEST_TEXT) -> bool:
    """Whether this is a text that can be shown: not too long, and without control characters."""
    return isinstance(text, str) and len(text) <= longest and not _UNSAFE.search(text)


def is_plain_note(text: object, longest: int) -> bool:
    """The same for a text of several lines."""
    return isinstance(text, str) and is_plain(text.translate(_NOTE_BREAKS), longest) and len(text) <= longest


def strict_json(text: bytes | str) -> Any:
    """JSON with nothing in it that parsers disagree about. Raises ValueError."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite_number)


def _check(source: Source) -> concept_header.Header:
    with source.open() as reader:
        text = concept_header.take(reader)
        _expect(text[:1] == b"{", "they do not begin with a header that fits")
        _expect(source.size <= LARGEST, f"they are over {LARGEST:,} bytes")
        outer = strict_json(text.decode("utf-8"))
        metadata = outer["__metadata__"]
        _expect(
            isinstance(metadata, dict) and all(type(value) is str for value in metadata.values()),
            "their metadata are no texts",
        )
        about = strict_json(metadata["conceptkit"])
        _expect(isinstance(about, dict), "their header is odd")
        if merge_recipe.is_recipe(about):
            raise BadBlob("they are the recipe of a merge, without its parts")
        if why := compact_header.newer(about):
            raise BadBlob(why)
        is_coded = about.get("format") in compact_header.READ
        shapes, spans = _tensors(outer, reader.left, CODED_SIZES if is_coded else SIZES)
        _concept(about, shapes)
        header = concept_header.parsed(outer, source.size)
        method = header.summary["method"]
        _expect(method is None or is_plain(method), "their method is no text")
        if is_coded:
            body = reader.read(reader.left)
            _expect(
                compact_header.checksum(about, body) == about["crc32"],
                "they are not the bytes that were written",
            )
        for name, size, dtype in [] if is_coded else spans:
            _expect(_finite(reader, size, dtype), f"{name[:80]!r} is not finite")
    return header


def _tensors(
    outer: Mapping[str, Any], length: int, sizes: Mapping[str, int]
) -> tuple[dict[str, tuple[int, int]], list[tuple[str, int, str]]]:
    """name -> shape, and (name, bytes, type) one after another: every byte belongs to exactly one tensor."""
    entries = {name: entry for name, entry in outer.items() if name != "__metadata__"}
    _expect(len(entries) <= MOST_TENSORS, f"they claim {len(entries):,} tensors")
    shapes, spans = {}, []
    for name, entry in entries.items():
        _expect(set(entry) == {"dtype", "shape", "data_offsets"}, f"{name[:80]!r} is described oddly")
        shape, (begin, end), dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
        _expect(all(type(size) is int for size in (*shape, begin, end)), f"{name[:80]!r} has odd sizes")
        _expect(len(shape) == 2 and min(shape) > 0, f"{name[:80]!r} is no matrix")
        _expect(0 <= begin <= end <= length, f"{name[:80]!r} is outside of the file")
        _expect(end - begin == math.prod(shape) * sizes[dtype], f"{name[:80]!r} has odd sizes")
        shapes[name] = (shape[0], shape[1])
        spans.append((begin, end, dtype, name))
    place = 0
    for begin, end, _, name in sorted(spans):
        _expect(begin == place, f"{name[:80]!r} does not follow the one before")
        place = end
    _expect(place == length, "something follows their tensors")
    return shapes, [(name, end - begin, dtype) for begin, end, dtype, name in sorted(spans)]


def _concept(about: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]) -> None:
    form = about["format"]
    _expect(
        type(form) is int and form in FORMATS,
        f"their format is {form!r:.40}, not one of {', '.join(map(str, FORMATS))}",
    )
    _expect(about["kind"] in KINDS, f"their kind is {about['kind']!r:.40}")
    texts = [about["name"], about["base_name"], *([] if about["noun"] is None else [about["noun"]])]
    for key in ("tokens", "words"):
        _expect(len(about[key]) <= MOST_TEXTS, f"they have {len(about[key]):,} {key}")
    _expect(isinstance(about["tokens"], list) and isinstance(about["words"], dict), "their words are odd")
    texts += [*about["tokens"], *about["words"], *about["words"].values()]
    for key in ("recipe", "provenance"):
        _expect(isinstance(about[key], dict), f"they have no {key}")
    for key in ("parents", "parent_sha256", "weights"):
        listed = about["provenance"].get(key, [])
        _expect(isinstance(listed, list) and len(listed) <= MOST_TEXTS, f"their {key} are odd")
    parents = about["provenance"].get("parents", [])
    _expect(all(map(is_plain, [*texts, *parents])), "a name or word in them is no plain text")
    _expect(len(set(about["tokens"])) == len(about["tokens"]), "a token is in them twice")
    if form in compact_header.READ:
        _coded(about, shapes)
        return
    _fingerprint(about["base"])
    _layout(about, shapes)


def _coded(about: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]) -> None:
    """The fields of a concept whose numbers are coded, in its one tensor."""
    _expect(set(about) == compact_header.FIELDS, "their header is odd")
    _expect(set(shapes) == {compact_header.CODED}, "they hold tensors that nothing names")
    _expect(set(about["base"]) == {"architecture", "exact"}, "their base has no fingerprint")
    _expect(all(is_plain(text, 64) for text in about["base"].values()), "their base has no fingerprint")
    rank, check = about["rank"], about["crc32"]
    _expect(type(rank) is int and 0 <= rank <= compact_header.MOST_RANK, "their rank is odd")
    _expect(type(check) is int and 0 <= check < 1 << 32, "their checksum is odd")


def _fingerprint(base: Mapping[str, Any]) -> None:
    hexes = (base["architecture"], base["exact"])
    _expect(all(is_plain(text, 64) for text in hexes), "their base has no fingerprint")
    sketch = base["sketch"]
    _expect(
        isinstance(sketch, list) and len(sketch) == 64 and all(type(x) is float for x in sketch),
        "the sketch of their base is damaged",
    )
    text, projections = base.get("text_exact", ""), base.get("text_sketch", [])  # early concepts have none
    _expect(text == "" or is_plain(text, 64), "the fingerprint of their text encoders is odd")
    _expect(
        isinstance(projections, list)
        and len(projections) == (16 if text else 0)
        and all(type(x) is float for x in projections),
        "the sketch of their text encoders is damaged",
    )


def _layout(about: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Every tensor has one role, every role its tensors, and the factors of a map can be multiplied."""
    used = {"rows"} & set(shapes)
    used.update(_factors(about["delta"], "", shapes))
    reference = about.get("reference")
    _expect(
        (about["format"] == 2) == (reference is not None),
        "their reference photo does not go with their format",
    )
    if reference is not None:
        height, width = reference["size"]
        _expect(len(reference["maps"]) > 0, "nothing looks at their photo")
        _expect(type(height) is type(width) is int and min(height, width) > 0, "their photo has an odd size")
        _expect(shapes["reference.latent"][1] == height * width, "their photo has an odd size")
        used.update(["reference.latent", *_factors(reference["maps"], "reference.", shapes)])
    counts = set()
    for i in range(len(about["tokens"])):
        vectors = list(_vectors(shapes, i))
        used.update(vectors)
        _expect(len({shapes[vector][0] for vector in vectors}) == 1, "a token in them has uneven vectors")
        counts.add(len(vectors))
    _expect(len(counts) <= 1, "their tokens are for different encoders")
    _expect(used == set(shapes), "they hold tensors that nothing names")


def _factors(layout: Mapping[str, Any], prefix: str, shapes: Mapping[str, tuple[int, int]]) -> Iterable[str]:
    """The tensors of these maps; those of one map can be multiplied."""
    for name, down in layout.items():
        _expect(down is None or (type(down) is int and down >= 0), f"the map {name[:80]!r} is odd")
        short = [f"weight.{name}"] if down is None else [f"up.{name}", f"down.{down}"]
        factors = [prefix + part for part in short]
        _expect(
            len(factors) == 1 or shapes[factors[0]][1] == shapes[factors[1]][0], f"{name[:80]!r} is uneven"
        )
        yield from factors


def _vectors(shapes: Mapping[str, Any], token: int) -> Iterable[str]:
    encoder = 0
    while (name := f"token.{token}.{encoder}") in shapes:
        yield name
        encoder += 1


def _finite(reader: Reader, size: int, dtype: str) -> bool:
    """Whether no number in the next so many bytes is infinite or NaN."""
    end = reader.left - size
    while reader.left > end:
        if not _all_finite(reader.read(min(CHUNK, reader.left - end)), dtype):
            return False
    return True


def _all_finite(body: bytes, dtype: str) -> bool:
    """The same of these little-endian floats: no exponent is all ones."""
    width = SIZES[dtype]
    high = body[width - 1 :: width]
    if dtype == "F16":  # sign and exponent are in the high byte
        return not high.translate(None, _NOT_ALL_ONES_F16)
    if not high.translate(None, _NOT_ALL_ONES):
        return True
    if dtype == "BF16":
        return not any(h & 0x7F == 0x7F and low & 0x80 for low, h in zip(body[::2], high, strict=True))
    return all(math.isfinite(value) for (value,) in struct.iter_unpack({4: "<f", 8: "<d"}[width], body))


_NOT_ALL_ONES = bytes(byte for byte in range(256) if byte & 0x7F != 0x7F)
_NOT_ALL_ONES_F16 = bytes(byte for byte in range(256) if byte & 0x7C != 0x7C)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made


def _finite_number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is beyond every number")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise BadBlob(what)


def _inside(error: Exception) -> str:
    return str(error).rstrip(".")
