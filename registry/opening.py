"""Registries for functions that take one or open the default one: who opens it closes it."""

from collections.abc import Iterator
from contextlib import contextmanager

from conceptkit.registry.store import Registry


@contextmanager
def opened(registry: Registry | None = None) -> Iterator[Registry]:
    """`registry` as it is, for its owner closes it; or the default one, open until the end of the block."""
    if registry is not None:
        yield registry
        return
    with Registry() as own:
        yield own
