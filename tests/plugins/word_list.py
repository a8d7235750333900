"""A dialect: the words of a concept and the ranks of its maps, as JSON."""

import json

from conceptkit.concepts.concept import Concept
from conceptkit.formats.dialects import DELTA, Dialect


def files(concept: Concept, with_names: bool) -> dict[str, bytes]:
    """One file."""
    about = {"words": dict(concept.words), "ranks": {name: f.rank for name, f in concept.delta.items()}}
    return {f"{concept.name}.json": json.dumps(about).encode()}


WORD_LIST = Dialect("word-list", "words and ranks", files, frozenset({DELTA}))
