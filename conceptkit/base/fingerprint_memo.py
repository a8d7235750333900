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
from conceptkit.base.text_features import encoders

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Value = TypeVar("Value")

SAMPLES = 32
"""Values of each weight that are looked at, evenly spread over it."""
KEPT = 8
"""Results that are kept of one base."""

_known: WeakKeyDictionary[nn.Module, dict[Hashable, tuple[Tensor, Any]]] = WeakKeyDictionary()
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


def _state(pipe: DiffusionPipeline) -> tuple[Hashable, Tensor]:
    """What can be compared exactly, and a sample of all weights (n,)."""
    denoiser, seen = denoiser_of(pipe), _Seen()
    site = list(text_site(pipe))
    for name in site:
        seen.look(submodule(denoiser, name))
    for tokenizer, encoder in encoders(pipe):
        sizes = getattr(encoder.config, "text_config", encoder.config)
        seen.told += [tokenizer.vocab_size, sizes.hidden_size, sizes.num_hidden_layers]
        seen.look(encoder)
    sample = torch.cat([values.to("cpu", torch.float32) for values in seen.values])
    return (tuple(site), tuple(seen.told)), sample


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
                    self._note(weight.detach(), weight)
            waiting += module._modules.values()

    def _note(self, values: Tensor, weight: nn.Parameter) -> None:
        version = 0 if weight.is_inference() else weight._version
        place = (weight.data_ptr(), version, weight.shape, weight.dtype, weight.device)
        self.told.append(place)
        flat = values.reshape(-1)
        self.values.append(flat[:: max(1, flat.numel() // SAMPLES)])
