"""A function in the place of one object's method, and the way back."""

import functools
from collections.abc import Callable
from typing import Any


def override(thing: Any, name: str, function: Any) -> Callable[[], None]:
    """`thing.name` is `function` from now on, for this object alone; gives the way back.

    What somebody else puts on top meanwhile stays there: below it, or wherever the function was kept, the
    method that was there before is called again. Where they moved it to another name of the object, that has
    this method too.
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
        for at in [key for key, value in own.items() if value is method]:
            del own[at]
            own.update(kept if at == name else {at: before})

    return restore
