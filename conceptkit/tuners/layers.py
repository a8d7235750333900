"""Where the layers of a delta go: on linear maps and convolutions, and below LoRAs on the same maps.

PEFT's own injection looks at every module of a model many times and knows no layer below another; this one
changes the maps of the delta alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from conceptkit.base.module_walk import submodule
from conceptkit.concepts.delta import Factors
from conceptkit.tuners.conv_delta import KVDeltaConv2d
from conceptkit.tuners.kv_delta import KVDeltaConfig, KVDeltaLinear


def below(module: nn.Module | None) -> nn.Linear | nn.Conv2d | KVDeltaLinear:
    """What a delta on this module lies on, or is part of already: itself, or the map below LoRAs of others.

    The output of a plain LoRA is that of the map below it and something beside it, so a delta may be there.
    A DoRA divides by the map's own weight, and is none of these.
    """
    return _innermost(module)[1]


def can_lie_below(module: nn.Module | None) -> bool:
    """Whether a delta can be placed on this module, which is there, by `place_layers`."""
    holder, inner = _innermost(module)
    if type(inner) in (KVDeltaLinear, KVDeltaConv2d) or isinstance(inner, nn.Conv2d):
        return True
    return holder is not None and isinstance(inner, nn.Linear)


def place_layers(
    owner: nn.Module,
    names: Iterable[str],
    adapter_name: str,
    config: KVDeltaConfig,
    factors_of: Callable[[str, nn.Module], Factors],
) -> dict[str, KVDeltaLinear]:
    """Put layers of an adapter on these maps of a model: name -> its layer.

    factors_of: the factors of a name, as parameters that fit the map below.
    """
    known = vars(owner).setdefault("peft_config", {})
    known[adapter_name] = config
    placed: dict[str, KVDeltaLinear] = {}
    for name in names:
        holder, inner = _innermost(submodule(owner, name))
        if isinstance(inner, KVDeltaLinear):
            inner.update_layer(adapter_name, config, factors_of(name, inner))
            placed[name] = inner
            continue
        kind = KVDeltaConv2d if isinstance(inner, nn.Conv2d) else KVDeltaLinear
        placed[name] = kind(inner, adapter_name, config, factors_of(name, inner))
        if holder is not None:
            holder.base_layer = placed[name]
        else:
            parent, _, child = name.rpartition(".")
            setattr(submodule(owner, parent), child, placed[name])
    return placed


def named_below(name: str) -> str:
    """The name that a map has without the layers around it."""
    return name.replace(".base_layer", "")


def _innermost(module: nn.Module | None) -> tuple[Any, Any]:
    """(the innermost LoRA of others, what it is on); (None, module) where there is none to lie below."""
    holder, inner = None, module
    while isinstance(inner, BaseTunerLayer) and not isinstance(inner, KVDeltaLinear):
        told: Any = inner
        if not hasattr(told, "lora_A") or any(getattr(told, "use_dora", {}).values()):
            return None, module
        holder, inner = told, told.base_layer
    return holder, inner
