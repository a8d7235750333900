"""Teach a text-to-image model new concepts from a few photos, and draw them together.

    import conceptkit as ck
    ck.add("my_dog", "photos/")              # learn and store
    ck.attach(pipe, "my_dog", "moongate")    # any diffusers pipeline on the same base
    pipe("my_dog in front of a moongate").images[0]

Importing conceptkit is light: what it exports is imported on first use.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


class _Checkout:
    """Finds conceptkit.registry and conceptkit.cli beside this folder; an install maps them."""

    root = Path(__file__).parents[1]

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a module of that name is, or None when it is not one of the two."""
        if name in (f"{__name__}.registry", f"{__name__}.cli"):
            return PathFinder.find_spec(name, [str(cls.root)])
        return None


if (_Checkout.root / "pyproject.toml").is_file():
    sys.meta_path.insert(0, _Checkout)

if TYPE_CHECKING:
    from conceptkit import learn, storybook
    from conceptkit.base.pipeline import Base
    from conceptkit.concepts.concept import Concept
    from conceptkit.errors import ConceptError
    from conceptkit.inference.attach import Attachment, attach
    from conceptkit.merging.compose import Merge, compose, rebuild
    from conceptkit.registry.store import Entry, Registry
    from conceptkit.workflows.add import add
    from conceptkit.workflows.compose import draw
    from conceptkit.workflows.export import export
    from conceptkit.workflows.shrink import shrink

__all__ = [
    "Attachment",
    "Base",
    "Concept",
    "ConceptError",
    "Entry",
    "Merge",
    "Registry",
    "__version__",
    "add",
    "attach",
    "compose",
    "draw",
    "export",
    "import_file",
    "learn",
    "rebuild",
    "shrink",
    "storybook",
]

_ROOM_OF = {
    "Attachment": "conceptkit.inference.attach",
    "Base": "conceptkit.base.pipeline",
    "Concept": "conceptkit.concepts.concept",
    "ConceptError": "conceptkit.errors",
    "Entry": "conceptkit.registry.store",
    "Merge": "conceptkit.merging.compose",
    "Registry": "conceptkit.registry.store",
    "add": "conceptkit.workflows.add",
    "attach": "conceptkit.inference.attach",
    "compose": "conceptkit.merging.compose",
    "draw": "conceptkit.workflows.compose",
    "export": "conceptkit.workflows.export",
    "import_file": "conceptkit.workflows.import_file",
    "rebuild": "conceptkit.merging.compose",
    "shrink": "conceptkit.workflows.shrink",
}
_ROOMS = {"learn", "storybook"}


def __getattr__(name: str) -> Any:
    if name in _ROOM_OF:
        return getattr(import_module(_ROOM_OF[name]), name)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
