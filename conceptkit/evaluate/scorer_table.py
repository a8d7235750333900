"""The models that score pictures, by name: a table that other packages can add rows to.

    register_scorer(Scorer("dino", "who is it, by DINO", "my_package.dino:Dino"))

or, in the other package's pyproject.toml, an entry point that is a `Scorer`:

    [project.entry-points."conceptkit.scorers"]
    dino = "my_package.dino:SCORER"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from conceptkit.errors import ConceptError
from conceptkit.extension_table import ExtensionTable


@dataclass(frozen=True)
class Scorer:
    """A model that scores pictures.

    name: as users write it. help: one line for them.
    build: makes it, called with no argument; or where that function or class is, "module:name". What it makes
        has `embed(pictures) -> (n, d)` unit embeddings, or `logits(pictures) -> (n, attributes)` and `names`.
    """

    name: str
    help: str
    build: Callable[[], Any] | str


SCORERS: ExtensionTable[Scorer] = ExtensionTable("scorer", "conceptkit.scorers")


def register_scorer(scorer: Scorer) -> Scorer:
    """Add a row. Raises ConceptError when there is another of that name."""
    return SCORERS.register(scorer.name, scorer)


def load_scorer(name: str) -> Any:
    """The scorer of that name, ready. Raises ConceptError when there is none, or when a row is none."""
    scorer = SCORERS.find(name)
    if not isinstance(scorer, Scorer):
        raise ConceptError(f"The scorer {name!r} is no Scorer; mend or uninstall its package")
    build = scorer.build
    if isinstance(build, str):
        module, _, attribute = build.partition(":")
        build = getattr(import_module(module), attribute)
    return build()


register_scorer(
    Scorer("subject", "who is it, by the storybook's embedder", "conceptkit.evaluate.scorers:SubjectJudge")
)
register_scorer(
    Scorer(
        "attributes",
        "what is to be seen, by the storybook's classifier",
        "conceptkit.evaluate.scorers:AttributeJudge",
    )
)
