"""Registries for functions that take one or open the default one: who opens it closes it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from conceptkit.registry.store import Registry

Given = ParamSpec("Given")
Result = TypeVar("Result")


@contextmanager
def opened(registry: Registry | None = None) -> Iterator[Registry]:
    """`registry` as it is, for its owner closes it; or the default one, open until the end of the block."""
    if registry is not None:
        yield registry
        return
    with Registry() as own:
        yield own


def opens_registry(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Let the keyword `registry=None` of a function mean the default one, open as long as it runs."""

    @wraps(function)
    def with_one(*args: Given.args, **options: Given.kwargs) -> Result:
        with opened(options.get("registry")) as registry:  # type: ignore[arg-type]
            options["registry"] = registry
            return function(*args, **options)

    return with_one
