"""One call of a denoiser that may be made with other arguments, more than once, or not at all."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from conceptkit.inference.method_override import override


@dataclass(frozen=True, eq=False)
class DenoiserCall:
    """args, kwargs: as they were given. bound: the same by name. forward: the denoiser's own."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    bound: inspect.BoundArguments
    forward: Callable[..., Any]

    @property
    def arguments(self) -> Mapping[str, Any]:
        """By name, in the order of the signature."""
        return self.bound.arguments

    @property
    def sample(self) -> Any:
        """The latents, which are the first argument of every denoiser."""
        return next(iter(self.arguments.values()))

    def run(self, arguments: Mapping[str, Any] | None = None) -> Any:
        """What the denoiser gives, of other arguments if there are any."""
        if arguments is None:
            return self.forward(*self.args, **self.kwargs)
        again = copy.copy(self.bound)
        again.arguments = dict(arguments)
        return self.forward(*again.args, **again.kwargs)

    def result(self, predicted: Any) -> Any:
        """A prediction in the form in which this call gives its own."""
        if self.arguments.get("return_dict") is False:
            return (predicted,)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=predicted)


def take_calls(denoiser: nn.Module, take: Callable[[DenoiserCall], Any]) -> Callable[[], None]:
    """`take` answers the calls of a denoiser from now on; gives the way back."""
    original: Any = denoiser.forward
    (*parameters,) = inspect.signature(type(denoiser).forward).parameters.values()
    accepted = inspect.Signature(parameters[1:])

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return take(DenoiserCall(args, kwargs, accepted.bind(*args, **kwargs), original))

    return override(denoiser, "forward", forward)
