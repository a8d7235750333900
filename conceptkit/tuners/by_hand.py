"""Layers that PEFT does not place: on convolutions, and below LoRAs that others have put on the same maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from conceptkit.tuners.conv_delta import KVDeltaConv2d
from conceptkit.tuners.kv_delta import KVDeltaConfig, KVDeltaLinear


def below(module: nn.Module | None) -> tuple[Any, Any]:
    """(the innermost layer of others that a delta can lie below, what that layer is on); (None, module) where
    there is no such layer.

    The output of a plain LoRA is that of the map below it and something beside it, so a delta may be there.
    A DoRA divides by the map's own weight, and is none of these.
    """
    holder, inner = None, module
    while isinstance(inner, BaseTunerLayer) and not isinstance(inner, KVDeltaLinear):
        told: Any = inner
        if not hasattr(told, "lora_A") or any(getattr(told, "use_dora", {}).values()):
            return None, module
        holder, inner = told, told.base_layer
    return holder, inner


def is_by_hand(module: nn.Module | None) -> bool:
    """Whether a delta on this module is placed by hand."""
    holder, inner = below(module)
    return isinstance(inner, nn.Conv2d | KVDeltaConv2d) or (
        holder is not None and isinstance(inner, nn.Linear | KVDeltaLinear)
    )


def place_by_hand(owner: nn.Module, names: Iterable[str], adapter_name: str, config: KVDeltaConfig) -> None:
    """Put layers of an adapter on these maps of a model, which is asked for them by `is_by_hand`."""
    for name in names:
        module = owner.get_submodule(name)
        holder, inner = below(module)
        if isinstance(inner, KVDeltaLinear):
            inner.update_layer(adapter_name, config)
            continue
        kind = KVDeltaConv2d if isinstance(inner, nn.Conv2d) else KVDeltaLinear
        layer = kind(inner, adapter_name, config)
        if holder is not None:
            holder.base_layer = layer
            continue
        parent, _, child = name.rpartition(".")
        setattr(owner.get_submodule(parent), child, layer)
    known = vars(owner).setdefault("peft_config", {})
    known[adapter_name] = config


def named_below(name: str) -> str:
    """The name that a map has without the layers around it."""
    return name.replace(".base_layer", "")
