"""A pipeline's own call with something around it, and the way back.

Python looks `__call__` up on the class, so the pipeline is of a class of the same name meanwhile, which
differs in that alone.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Call = Callable[..., Any]
Given = TypeVar("Given")


def hook_call(
    pipe: DiffusionPipeline, around: Callable[[Call, inspect.BoundArguments], Any]
) -> Callable[[], None]:
    """`pipe(...)` is `around(call, bound)` from now on; gives the way back.

    call: the call that was there before. bound: its arguments, those that were given, without `self`.
    """
    before = type(pipe)
    original: Any = before.__call__
    (_, *parameters) = inspect.signature(original).parameters.values()
    accepted = inspect.Signature(parameters)
    live = True

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not live:
            return original(self, *args, **kwargs)
        return around(functools.partial(original, self), accepted.bind(*args, **kwargs))

    named = {name: getattr(before, name) for name in ("__module__", "__qualname__", "__doc__")}
    hooked = type(before.__name__, (before,), {**named, "__call__": call})
    pipe.__class__ = hooked

    def undo() -> None:
        nonlocal live
        live = False  # for whoever made a class of their own of it meanwhile
        if type(pipe) is hooked:
            pipe.__class__ = before

    return undo


def called_with(
    call: Callable[..., Given],
    bound: inspect.BoundArguments,
    more: Mapping[str, Any],
    without: Collection[str] = (),
) -> Given:
    """The call with some arguments changed, as far as it has them, and others left out."""
    again = copy.copy(bound)
    known = bound.signature.parameters
    given = {name: value for name, value in bound.arguments.items() if name not in without}
    again.arguments = {**given, **{name: value for name, value in more.items() if name in known}}
    return call(*again.args, **again.kwargs)


def images_per_prompt(bound: inspect.BoundArguments) -> int:
    """How many pictures a call draws of each prompt."""
    return int(bound.arguments.get("num_images_per_prompt") or 1)
