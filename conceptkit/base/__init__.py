"""A base: a diffusers pipeline as the rest of conceptkit sees it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conceptkit.base.pipeline import Base, load, of

__all__ = ["Base", "load", "of"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # on first use: choosing a device needs no pipeline
        return getattr(import_module("conceptkit.base.pipeline"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
