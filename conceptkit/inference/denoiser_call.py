"""One call of a denoiser that may be made with other arguments, more than once, or not at all."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from conceptkit.base.architectures.architecture import Batch
from conceptkit.inference.method_override import override

if TYPE_CHECKING:
    from diffusers.utils import BaseOutput

OFFLOADED, COMPILED = "_old_forward", "_orig_mod"
"""Where accelerate's hooks keep the forward that they call, and torch.compile the model that it is of."""
Result: TypeAlias = "tuple[Batch, ...] | BaseOutput"
"""What a denoiser gives; its prediction is the first of it."""


@dataclass(frozen=True, eq=False)
class DenoiserCall:
    """args, kwargs: as they were given. arguments: the same by name, in the order of the signature. forward:
    the denoiser's own."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    arguments: Mapping[str, Any]
    forward: Callable[..., Any]

    @property
    def sample(self) -> Batch:
        """The latents, which are the first argument of every denoiser."""
        first: Batch = next(iter(self.arguments.values()))
        return first

    def run(self) -> Result:
        """What the denoiser gives."""
        given: Result = self.forward(*self.args, **self.kwargs)
        return given

    def other(self, arguments: Mapping[str, Any]) -> DenoiserCall:
        """The same call with other arguments, by name."""
        names = list(self.arguments)
        args = tuple(arguments[name] for name in names[: len(self.args)])
        kwargs = {name: arguments[name] for name in names[len(self.args) :]}
        return replace(self, args=args, kwargs=kwargs, arguments=dict(arguments))

    def result(self, predicted: Batch) -> Result:
        """A prediction in the form in which this call gives its own."""
        if self.arguments.get("return_dict") is False:
            return (predicted,)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=predicted)


def take_calls(denoiser: nn.Module, take: Callable[[DenoiserCall], Any]) -> Callable[[], None]:
    """`take` answers the calls of a denoiser from now on; gives the way back.

    A model that is offloaded has its forward put back and replaced at the end of each drawing, but what the
    offloading itself calls stays; a compiled one says by the model in it what it accepts.
    """
    name = OFFLOADED if OFFLOADED in vars(denoiser) else "forward"
    original: Any = getattr(denoiser, name)
    of_class = type(getattr(denoiser, COMPILED, denoiser)).forward
    (*parameters,) = inspect.signature(of_class).parameters.values()
    accepted = inspect.Signature(parameters[1:])

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return take(DenoiserCall(args, kwargs, accepted.bind(*args, **kwargs).arguments, original))

    return override(denoiser, name, forward)
