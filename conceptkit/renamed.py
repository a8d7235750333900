"""Names that arguments and merge methods had before: they are heard or shown under those of today."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

MERGE_METHODS = {"soft": "regmean", "constrained": "closed-form", "average": "linear"}
"""What merge methods were called before -> their names. Stored merges say the old ones, today's too: the same
parts give the same bytes as ever."""

Given = ParamSpec("Given")
Result = TypeVar("Result")


def renamed_arguments(**names: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Let a function take keyword arguments under the names they had: old=new, ...

    An old name is a FutureWarning that says the new one; both at once are a TypeError.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        @wraps(function)
        def call(*args: Given.args, **options: Given.kwargs) -> Result:
            for old in [name for name in options if name in names]:
                if names[old] in options:
                    raise TypeError(
                        f"{function.__name__} was given {old} and {names[old]}, which are the same"
                    )
                sentence = f"{function.__name__}({old}=...) is called {names[old]} now"
                warnings.warn(sentence, FutureWarning, stacklevel=2)
                options[names[old]] = options.pop(old)
            return function(*args, **options)

        return call

    return decorate


def method_today(stored: str | None) -> str | None:
    """What a method that a stored concept names is called today."""
    return stored if stored is None else MERGE_METHODS.get(stored, stored)
