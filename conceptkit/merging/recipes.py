"""What a stored merge says of how it was made, and the same as a few hundred bytes without its numbers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conceptkit.concepts.codec.compact import identity
from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadBlob
from conceptkit.merging import request
from conceptkit.registry import merge_recipe, private_names
from conceptkit.safetensors_header import read_metadata


@dataclass(frozen=True)
class Told:
    """What is needed to compose a merge again; built: sha256 of its bytes where it is a recipe alone."""

    name: str
    base_name: str
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    padding_delta: str
    built: str | None = None


def told(data: bytes) -> Told:
    """What the stored bytes of a merge say, whole or as a recipe. Raises BadBlob."""
    about = read_metadata(data, finite=True)
    if not merge_recipe.is_recipe(about):
        concept = Concept.from_bytes(data)
        padding = concept.routing.padding_delta if concept.routing else request.PADDING_DELTA
        return Told(concept.name, concept.base_name, concept.recipe, concept.provenance, padding)
    try:
        return Told(
            str(about["name"]),
            str(about["base_name"]),
            dict(about["recipe"]),
            dict(about["provenance"]),
            str(about["padding_delta"]),
            merge_recipe.built_of(about),
        )
    except (LookupError, ValueError, TypeError) as error:
        raise BadBlob("These bytes are the recipe of a merge that is damaged; compose it again") from error


def to_recipe(concept: Concept) -> bytes:
    """A merge without its numbers."""
    data = concept.to_bytes()
    return merge_recipe.to_bytes(
        **identity(concept),
        recipe={key: concept.recipe[key] for key in ("method", "weights") if key in concept.recipe},
        rank=concept.delta.rank,
        provenance=private_names.public_provenance(concept.provenance),
        padding_delta=concept.routing.padding_delta if concept.routing else request.PADDING_DELTA,
        built=[hashlib.sha256(data).hexdigest(), len(data)],
    )
