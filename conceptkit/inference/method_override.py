"""A function in the place of one object's method, and the way back."""

import functools
from collections.abc import Callable
from typing import Any


def override(thing: Any, name: str, function: Any) -> Callable[[], None]:
    """`thing.name` is `function` from now on, for this object alone; gives the way back.

    What somebody else puts on top meanwhile stays there: below it, or wherever the function was kept, the
    method that was there before is called again.
    """
    own, before = thing.__dict__, getattr(thing, name)
    kept = {name: own[name]} if name in own else {}
    live = True

    @functools.wraps(function)
    def method(*args: Any, **kwargs: Any) -> Any:
        return (function if live else before)(*args, **kwargs)

    own[name] = method

    def restore() -> None:
        nonlocal live
        live = False
        if own.get(name) is method:
            del own[name]
            own.update(kept)

    return restore
