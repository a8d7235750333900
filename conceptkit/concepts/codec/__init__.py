"""A concept as safetensors bytes, and back, in any of the formats that were ever written."""

from typing import TYPE_CHECKING, Any

from conceptkit.concepts.codec import compact, plain
from conceptkit.concepts.codec.plain import HALF_ERROR, KINDS, damaged
from conceptkit.errors import BadBlob
from conceptkit.registry import merge_recipe
from conceptkit.registry.compact_header import CODED, READ, newer
from conceptkit.safetensors_header import read_metadata, split

if TYPE_CHECKING:
    from conceptkit.concepts.concept import Concept

__all__ = ["HALF_ERROR", "KINDS", "damaged", "parse", "to_bytes"]


def to_bytes(concept: "Concept") -> bytes:
    """Safetensors bytes, the same for the same concept.

    One that was made smaller keeps the numbers that it was stored as; all others are written in float16
    wherever that is accurate to 0.1 %.
    """
    numbers = concept.coded
    if numbers is not None and concept.reference is None:
        return compact.to_bytes(concept, numbers)
    return plain.to_bytes(concept)


def parse(data: bytes) -> dict[str, Any]:
    """The fields of the concept in these bytes, tensors as float32 (`Concept.from_bytes` catches errors)."""
    about = read_metadata(data, finite=True)
    if merge_recipe.is_recipe(about):
        raise BadBlob(
            "These bytes are the recipe of a merge; read it by its name from the registry that has its parts"
        )
    if why := newer(about):
        raise BadBlob(f"These bytes are not a concept that can be read here ({why}); install that version")
    if about["format"] not in READ:
        return plain.parse(data)
    header, body = split(data)
    own = {"dtype": "U8", "shape": [1, len(body)], "data_offsets": [0, len(body)]}
    if {name: entry for name, entry in header.items() if name != "__metadata__"} != {CODED: own}:
        raise BadBlob(damaged("it holds tensors that nothing names"))
    fields = compact.parse(about, body)
    plain.check_shapes(fields["delta"], fields["tokens"], None)
    plain.check_texts(about | {"recipe": fields["recipe"], "provenance": fields["provenance"]})
    return fields
