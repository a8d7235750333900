"""Adapters on a base (LoRA and its kin), as far as they change what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from conceptkit.base.module_walk import named_modules

ADAPTER = "conceptkit"
"""The name of the adapter that attached concepts are."""


def at_work(layer: BaseTunerLayer, own: bool = False) -> list[str]:
    """The adapters of a layer that act when it is called; without `own` those of attached concepts are left
    out. What is merged is in the weight below already."""
    if layer.disable_adapters or layer.merged:
        return []
    named: Any = layer
    return [
        name
        for name in layer.active_adapters
        if (own or name != ADAPTER)
        and any(name in getattr(named, attribute) for attribute in layer.adapter_layer_names)
    ]


def names_at_work(model: nn.Module) -> tuple[str, ...]:
    """Names of the adapters that act on a model, those of attached concepts aside."""
    layers = [module for _, module in named_modules(model) if isinstance(module, BaseTunerLayer)]
    return tuple(dict.fromkeys(name for layer in layers for name in at_work(layer)))


def state_of_adapters(model: nn.Module) -> str:
    """Which adapters act on which layers of a model, and how strongly: "" where there is none."""
    found = []
    for path, module in named_modules(model):
        if isinstance(module, BaseTunerLayer):
            scaling = getattr(module, "scaling", {})
            found += [f"{path} {name} {scaling.get(name)}" for name in at_work(module, own=True)]
    return "\n".join(found)


def own_parameters(model: nn.Module, own: bool = False) -> Iterator[tuple[str, Tensor, bytes]]:
    """(name, value, more) of each parameter, under the names and with the shapes they have without adapters.

    The value counts adapters that are at work, as far as they are a delta of it; `more` are the bytes of
    those that are something else, such as a magnitude.
    """
    inside: tuple[str, ...] = ()
    deltas: dict[str, tuple[Tensor | None, bytes]] = {}
    for path, module in named_modules(model):
        below = path.replace(".base_layer", "")
        if isinstance(module, BaseTunerLayer):
            delta, more = _delta(module, own)
            before, earlier = deltas.get(below, (None, b""))
            together = delta if before is None else before if delta is None else before + delta
            deltas[below] = together, earlier + more
            inside = (*inside, f"{path}.")
            continue
        if _belongs_to_adapter(path, inside):
            continue
        for name, value in module.named_parameters(recurse=False):
            delta, more = deltas.get(below, (None, b"")) if name == "weight" else (None, b"")
            given = value.detach()
            yield f"{below}.{name}", given if delta is None else given + delta.to(given), more


def _belongs_to_adapter(path: str, inside: tuple[str, ...]) -> bool:
    for tuner in inside:
        if path.startswith(tuner) and not f"{path[len(tuner) :]}.".startswith("base_layer."):
            return True
    return False


@torch.no_grad()
def _delta(layer: BaseTunerLayer, own: bool) -> tuple[Tensor | None, bytes]:
    """What the adapters at work add to a weight, None for nothing; and the bytes of what is no such delta."""
    told: Any = layer
    total, more = None, b""
    for name in at_work(layer, own):
        plain = hasattr(told, "get_delta_weight") and not getattr(told, "use_dora", {}).get(name)
        if plain:
            delta = told.get_delta_weight(name).detach()
            if delta.any():
                total = delta if total is None else total + delta
            continue
        for attribute in layer.adapter_layer_names:
            part = getattr(told, attribute)
            tensors = [part[name]] if name in part else []
            for tensor in (tensor for one in tensors for tensor in _tensors(one)):
                more += tensor.detach().to("cpu", torch.float16).contiguous().numpy().tobytes()
    return total, more


def _tensors(part: Any) -> list[Tensor]:
    return [part] if isinstance(part, Tensor) else list(part.parameters())
