"""What is worked out of a base's weights is kept, for as long as the weights are the same.

Hashing all text encoders of a real base takes most of a second. A result is kept with the state it was worked
out of: which tensors there are, how often PyTorch has counted them as written to, a sample of their values,
which catches what was written past that counter (`weight.data.add_()`, as merging a LoRA does it), and the
adapters at work. In any other state it is worked out again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from conceptkit.base.adapters import at_work
from conceptkit.base.architectures import denoiser_of, text_site
from conceptkit.base.module_walk import submodule
from conceptkit.base.text_features import depth, encoders

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Value = TypeVar("Value")

SAMPLES = 32
"""Values of each weight that are looked at, evenly spread over it."""
KEPT = 8
"""Results that are kept of one base."""

_known: WeakKeyDictionary[nn.Module, dict[Hashable, tuple[Tensor, Any]]] = WeakKeyDictionary()
_sites: WeakKeyDictionary[nn.Module, dict[str, nn.Linear]] = WeakKeyDictionary()
_lock = threading.Lock()


def remembered(pipe: DiffusionPipeline, what: Hashable, work_out: Callable[[], Value]) -> Value:
    """`work_out()`, or what it gave before when the weights of the pipeline were what they are now.

    what: names the result, and all that it depends on beside the weights.
    """
    denoiser, (state, sample) = denoiser_of(pipe), _state(pipe)
    denoiser = getattr(denoiser, "_orig_mod", denoiser)
    key = (what, state)
    with _lock:
        held = _known.setdefault(denoiser, {})
        found = held.pop(key, None)
        if found is not None and torch.equal(found[0], sample):
            held[key] = found  # the last one that was asked for goes last
            value: Value = found[1]
            return value
    value = work_out()
    with _lock:
        held[key] = sample, value
        while len(held) > KEPT:
            del held[next(iter(held))]
    return value


@torch.no_grad()
def _state(pipe: DiffusionPipeline) -> tuple[Hashable, Tensor]:
    """What can be compared exactly, and a sample of all weights (n,)."""
    seen = _Seen()
    for name, module in _site(pipe):
        seen.told.append(name)
        seen.look(module)
    for tokenizer, encoder in encoders(pipe):
        sizes = getattr(encoder.config, "text_config", encoder.config)
        seen.told += [tokenizer.vocab_size, sizes.hidden_size, depth(sizes)]
        seen.look(encoder)
    return tuple(seen.told), torch.cat(seen.values)


def _site(pipe: DiffusionPipeline) -> list[tuple[str, nn.Module | None]]:
    """(name, map with what is around it) of the text site; names are looked for where maps have changed."""
    denoiser = denoiser_of(pipe)
    with _lock:
        names = _sites.get(denoiser, {})
    found = [(name, submodule(denoiser, name)) for name in names]
    if not found or any(_innermost(module) is not names[name] for name, module in found):
        names = text_site(pipe)
        found = [(name, submodule(denoiser, name)) for name in names]
        with _lock:
            _sites[denoiser] = dict(names)
    return found


def _innermost(module: Any) -> Any:
    """The map below all layers of adapters."""
    while module is not None and (below := module._modules.get("base_layer")) is not None:
        module = below
    return module


class _Seen:
    """What was looked at so far: `told` is compared exactly, `values` are samples of weights."""

    def __init__(self) -> None:
        self.told: list[Hashable] = []
        self.values: list[Tensor] = []

    def look(self, model: nn.Module | None) -> None:
        """A model, with what lies around its maps as far as it is at work."""
        waiting = [model]
        while waiting:
            module = waiting.pop()
            if module is None:
                continue
            if isinstance(module, BaseTunerLayer):
                names, layer = at_work(module, own=True), cast(Any, module)
                if not names:
                    waiting.append(layer.base_layer)
                    continue
                scaling = getattr(layer, "scaling", {})
                self.told.append(tuple((name, scaling.get(name)) for name in names))
            for weight in module._parameters.values():
                if weight is not None:
                    self._note(weight)
            waiting += module._modules.values()

    def _note(self, weight: nn.Parameter) -> None:
        version = 0 if weight.is_inference() else weight._version
        place = (weight.data_ptr(), version, weight.shape, weight.dtype, weight.device)
        self.told.append(place)
        size, step = weight.numel(), max(1, weight.numel() // SAMPLES)
        flat = weight if weight.is_contiguous() else weight.reshape(-1)
        values = flat.as_strided((-(-size // step),), (step,))
        self.values.append(
            values if values.dtype == torch.float32 and values.is_cpu else values.float().cpu()
        )
