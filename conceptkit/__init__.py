"""Teach a text-to-image model new concepts from a few photos, and draw them together.

    import conceptkit as ck
    ck.add("my_dog", "photos/")              # learn and store
    ck.attach(pipe, "my_dog", "moongate")    # any diffusers pipeline on the same base
    pipe("my_dog in front of a moongate").images[0]

Importing conceptkit is light: what it exports is imported on first use.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout conceptkit.registry and conceptkit.cli are the folders beside this one; an install maps them.
if (Path(__file__).parents[1] / "pyproject.toml").is_file():
    __path__.append(str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from conceptkit import learn, storybook
    from conceptkit.attach import Attachment, attach
    from conceptkit.base import Base
    from conceptkit.concept import Concept
    from conceptkit.errors import ConceptError
    from conceptkit.formats.diffusers import export
    from conceptkit.learn import add
    from conceptkit.merge import Merge, compose, rebuild
    from conceptkit.registry.store import Entry, Registry

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
    "export",
    "learn",
    "rebuild",
    "storybook",
]

_ROOM_OF = {
    "Attachment": "conceptkit.attach",
    "Base": "conceptkit.base",
    "Concept": "conceptkit.concept",
    "ConceptError": "conceptkit.errors",
    "Entry": "conceptkit.registry.store",
    "Merge": "conceptkit.merge",
    "Registry": "conceptkit.registry.store",
    "add": "conceptkit.learn",
    "attach": "conceptkit.attach",
    "compose": "conceptkit.merge",
    "export": "conceptkit.formats.diffusers",
    "rebuild": "conceptkit.merge",
}
_ROOMS = {"learn", "storybook"}


class _Package(ModuleType):
    """The import system binds `conceptkit.attach` to its module; users mean the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _ROOM_OF or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _ROOM_OF:
        return getattr(import_module(_ROOM_OF[name]), name)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
