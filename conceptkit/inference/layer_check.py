"""One check at each drawing: every map that a concept changes is there, active, unmerged and called.

A pipeline has public calls that switch adapters off, fuse or unload them, or replace the maps below them.
Each of them would leave a picture without the concept, or with a part of it; it is an error instead.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from conceptkit.base.module_walk import named_modules
from conceptkit.errors import ConceptError
from conceptkit.tuners.inject import ADAPTER
from conceptkit.tuners.kv_delta import KVDeltaLinear


def check_layers(
    owner: nn.Module,
    layers: Mapping[str, nn.Module],
    names: Sequence[str],
    idle: Callable[[], bool] = lambda: False,
) -> Callable[[], None]:
    """From now on every call of `owner` (a UNet or a text encoder) checks these layers of it; the way back.

    layers: path -> the layer of each map that the concepts `names` change. Calls raise ConceptError.
    idle: whether the call under way computes nothing.
    """
    whose, kind = " and ".join(names), type(owner).__name__
    here = threading.local()  # one drawing in each thread

    def begin(*_: Any) -> None:
        here.called = set()
        for layer in layers.values():
            if isinstance(layer, KVDeltaLinear):
                _check_state(layer, whose)

    def note(path: str) -> Callable[..., None]:
        def called(*_: Any) -> None:
            seen: set[str] = getattr(here, "called", set())
            seen.add(path)

        return called

    def end(*_: Any) -> None:
        missing = [path for path in layers if path not in here.called]
        if missing and not idle():
            raise ConceptError(
                f"{len(missing)} of the {len(layers)} maps that {whose} changes had no part in this call of "
                f"{kind}, {missing[0]} for one: unload_lora_weights() or fuse_qkv_projections() takes them "
                "out; undo that, detach, and attach again"
            )

    handles = [layer.register_forward_hook(note(path)) for path, layer in layers.items()]
    handles += [owner.register_forward_pre_hook(begin), owner.register_forward_hook(end)]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def layers_of(owner: nn.Module) -> dict[str, nn.Module]:
    """Path -> layer, of all maps of a model that carry the attached delta."""
    return {
        path: layer
        for path, layer in named_modules(owner)
        if isinstance(layer, KVDeltaLinear) and ADAPTER in layer.scaling
    }


def _check_state(layer: KVDeltaLinear, whose: str) -> None:
    if ADAPTER not in layer.scaling:
        raise ConceptError(
            f"The adapter {ADAPTER!r}, which is {whose}, was deleted; detach, and attach it again"
        )
    if any(factor.is_meta for factor in layer.factors(ADAPTER)):
        raise ConceptError(
            f"The weights of {whose} are put away, as enable_sequential_cpu_offload() does it; use "
            "enable_model_cpu_offload() or enable_group_offload() instead"
        )
    if layer.disable_adapters:
        raise ConceptError(
            f"disable_lora() has switched {whose} off too; call enable_lora(), or detach to draw without it"
        )
    if layer.merged:
        raise ConceptError(
            f"fuse_lora() has written {whose} into the base, where nothing can be told apart; call "
            "unfuse_lora(), and give fuse_lora the adapter_names of the others"
        )
    if ADAPTER not in layer.active_adapters:
        raise ConceptError(
            f"The adapter {ADAPTER!r}, which is {whose}, is not among the active ones; name it too, as in "
            f"set_adapters([{ADAPTER!r}, ...]), or detach to draw without it"
        )
