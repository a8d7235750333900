"""A function in the place of one object's method, and the way back."""

from collections.abc import Callable
from typing import Any


def override(thing: Any, name: str, function: Any) -> Callable[[], None]:
    """`thing.name` is `function` from now on, for this object alone; gives the way back."""
    own = thing.__dict__
    before = {name: own[name]} if name in own else {}
    own[name] = function

    def restore() -> None:
        own.pop(name, None)
        own.update(before)

    return restore
