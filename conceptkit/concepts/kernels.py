"""Which maps of a delta are convolutions: their weight (o, i, h, w) is a matrix (o, i h w) in the delta."""

from collections.abc import Iterable, Mapping
from typing import Any

from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadBlob

CONVOLUTIONS = "convolutions"
"""The field of a stored recipe: map -> [h, w], the size of its kernel."""


def kernels_of(concept: Concept) -> dict[str, tuple[int, int]]:
    """Map -> size of its kernel, of the convolutions that a concept changes. Raises BadBlob when damaged."""
    told = concept.recipe.get(CONVOLUTIONS, {})
    try:
        found = {str(name): (int(h), int(w)) for name, (h, w) in told.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise BadBlob(f"The convolutions of {concept.name} are damaged; import it again") from error
    found = {name: size for name, size in found.items() if name in concept.delta}
    if any(min(h, w) < 1 or concept.delta[name].shape[1] % (h * w) for name, (h, w) in found.items()):
        raise BadBlob(f"The convolutions of {concept.name} do not fit its maps; import it again")
    return found


def recorded_kernels(concepts: Iterable[Concept]) -> dict[str, Any]:
    """What a recipe says of the convolutions of these concepts; {} where they have none."""
    found: Mapping[str, tuple[int, int]] = {}
    for concept in concepts:
        found = {**found, **kernels_of(concept)}
    return {CONVOLUTIONS: {name: list(size) for name, size in sorted(found.items())}} if found else {}
