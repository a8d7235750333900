"""Deltas on a model, and off again without a trace.

A delta may also be given as a mapping to tuples, `(weight,)` (o, d) or `(up, down)` (o, r), (r, d).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conceptkit.base.adapters import ADAPTER
from conceptkit.base.architectures import denoiser_of
from conceptkit.base.module_walk import named_modules, submodule
from conceptkit.concepts.delta import ENCODERS, Delta, Factors, Maps
from conceptkit.errors import BadRecipe, BaseMismatch, ConceptError, NoEffect
from conceptkit.tuners.kv_delta import KVDeltaConfig, KVDeltaLinear, carrier
from conceptkit.tuners.layers import below, can_lie_below, named_below, place_layers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def install_on(
    pipe: DiffusionPipeline, delta: Maps, adapter_name: str = ADAPTER
) -> list[tuple[nn.Module, dict[str, KVDeltaLinear]]]:
    """Put a delta on all the parts of a pipeline that it has maps of; errors are those of `install`.

    Gives each part that was changed, with its layers by the names of their maps.
    """
    if not delta:
        raise NoEffect("The delta has no map, so it would change nothing; learn it again")
    done: list[tuple[nn.Module, dict[str, KVDeltaLinear]]] = []
    try:
        for place, part in (delta if isinstance(delta, Delta) else Delta(delta)).by_component().items():
            module = getattr(pipe, place, None)
            if module is None:
                raise BaseMismatch(
                    f"The delta has maps of a {place}, which this pipeline lacks; use its base"
                )
            done.append((module, install(module, part, adapter_name)))
    except BaseException:
        for module, _ in done:
            uninstall(module, adapter_name)
        raise
    return done


def uninstall_from(pipe: DiffusionPipeline, adapter_name: str | None = None) -> None:
    """Take an adapter off every part of a pipeline, or all of them."""
    uninstall(denoiser_of(pipe), adapter_name)
    for place in ENCODERS:
        if (module := getattr(pipe, place, None)) is not None:
            uninstall(module, adapter_name)


def install(unet: nn.Module, maps: Maps, adapter_name: str = ADAPTER) -> dict[str, KVDeltaLinear]:
    """Put a delta on a UNet for drawing, and give its layers; `uninstall` takes it off without a trace.

    The base's `requires_grad`, other adapters and the random state stay as they are. Raises NoEffect on an
    empty delta, BaseMismatch when a map is missing or has another shape, ConceptError when the UNet already
    carries this adapter, or adapters other than LoRAs on the same maps. Below a LoRA it acts beside it.
    """
    delta = maps if isinstance(maps, Delta) else Delta(maps)
    if not delta:
        raise NoEffect("The delta has no map, so it would change nothing; learn it again")
    if adapter_name in getattr(unet, "peft_config", {}):
        raise ConceptError(
            f"This UNet already carries {adapter_name!r}; take it off first, or attach all in one call"
        )
    trained: list[tuple[nn.Parameter, bool]] = []
    for name, factors in delta.items():
        module = submodule(unet, name)
        under = below(module) if can_lie_below(module) else carrier(name, module)
        _check_shape(name, under, factors)
        if isinstance(under, KVDeltaLinear):  # adapters of others, which may be learning
            trained += [(parameter, parameter.requires_grad) for parameter in under.parameters()]
    try:
        layers = place_layers(unet, delta, adapter_name, _config(delta), _placed(delta))
        vars(unet)["_hf_peft_config_loaded"] = True  # diffusers asks it before touching adapters
        for layer in layers.values():
            layer.set_adapter([adapter_name], inference_mode=True)
    except BaseException:
        uninstall(unet, adapter_name)
        raise
    finally:
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
    return layers


def exchange(
    unet: nn.Module, layers: Mapping[str, KVDeltaLinear], delta: Delta, adapter_name: str = ADAPTER
) -> None:
    """Give the layers that `install` made another delta on the same maps, of the same shapes."""
    config, placed = _config(delta), _placed(delta)
    vars(unet)["peft_config"][adapter_name] = config
    for name, layer in layers.items():
        layer.set_factors(adapter_name, placed(name, layer))
        layer.scaling[adapter_name] = 1.0
        if layer.active_adapters != [adapter_name]:
            layer.set_adapter([adapter_name], inference_mode=True)


def _config(delta: Delta) -> KVDeltaConfig:
    return KVDeltaConfig(r=delta.rank, target_modules=list(delta), init_down="zero", inference_mode=True)


def _placed(delta: Delta) -> Callable[[str, Any], Factors]:
    """Copies of the factors of a map, where a module is and in its precision; what is shared stays so.

    Maps that are kept in 8 bits are cast as they are called; their deltas are not, and have 16.
    """
    shared: dict[tuple[Hashable, torch.device, torch.dtype], nn.Parameter] = {}

    def own(factor: Tensor, like: Tensor) -> nn.Parameter:
        dtype = like.dtype if like.dtype.itemsize > 1 else torch.bfloat16
        return nn.Parameter(factor.detach().to(like.device, dtype, copy=True), requires_grad=False)

    def placed(name: str, module: Any) -> Factors:
        like, factors = module.weight, delta[name]
        if factors.down is None:
            return Factors(weight=own(factors.first, like))
        key = (delta.shared[name], like.device, like.dtype)
        if key not in shared:
            shared[key] = own(factors.down, like)
        return Factors(own(factors.first, like), shared[key])

    return placed


def uninstall(unet: nn.Module, adapter_name: str | None = None) -> None:
    """Take one KV_DELTA adapter off, or all of them; the very modules that were there before are put back."""
    modules = dict(named_modules(unet))
    for path, layer in [(path, one) for path, one in modules.items() if isinstance(one, KVDeltaLinear)]:
        gone = [name for name in layer.scaling if adapter_name in (None, name)]
        layer.unmerge_adapters(gone)
        for name in gone:
            layer.delete_adapter(name)
        if not layer.scaling:
            parent, _, child = path.rpartition(".")
            setattr(modules[parent], child, layer.base_layer)
    configs = getattr(unet, "peft_config", {})
    for name in [n for n, c in configs.items() if isinstance(c, KVDeltaConfig) and adapter_name in (None, n)]:
        del configs[name]
    if not configs:
        vars(unet).pop("peft_config", None)
        vars(unet).pop("_hf_peft_config_loaded", None)


def unmerge(layers: Iterable[KVDeltaLinear], adapter_name: str = ADAPTER) -> None:
    """Take one adapter out of the maps again, wherever the layers are now: who unloads what was fused leaves
    the layers behind, and their maps changed."""
    for layer in layers:
        layer.unmerge_adapters([adapter_name])


def share_down(unet: nn.Module, down: Tensor, adapter_name: str | None = None) -> nn.Parameter:
    """Make `down` (r, d) the one down factor of every layer of an adapter, and return that parameter.

    It is trained with gradients from all layers, or not at all when the adapter's config says `freeze_down`.
    For programs that learn with PEFT, where KEYED adapters get their keys so.
    Raises BadRecipe when an up factor has another rank.
    """
    name = _only_adapter(unet, adapter_name)
    layers = [layer for _, layer in _layers(unet) if name in layer.scaling]
    given, taken = tuple(down.shape), {_down_shape(layer, name) for layer in layers}
    if taken != {given}:
        raise BadRecipe(f"A down factor {given} does not fit layers with {taken}; give their shape")
    shared = nn.Parameter(down.detach().to(layers[0].ups[name], copy=True))
    for layer in layers:
        layer.downs[name] = shared
        layer.set_adapter(layer.active_adapters)
    return shared


def read_delta(unet: nn.Module, adapter_name: str | None = None) -> Delta:
    """A copy of the adapter's delta, under the names the maps have without it; shared factors stay shared."""
    name = _only_adapter(unet, adapter_name)
    layers = {path: layer for path, layer in _layers(unet) if name in layer.scaling}
    maps: dict[str, Factors] = {}
    shared: dict[str, int] = {}
    downs: list[Tensor] = []
    for path, layer in layers.items():
        factors = layer.factors(name)
        maps[path] = factors.map(torch.detach).scaled(layer.scaling[name])
        if (down := factors.down) is not None:
            shared[path] = next((i for i, known in enumerate(downs) if known is down), len(downs))
            downs += [down] if shared[path] == len(downs) else []
    return Delta(maps, shared).map(torch.clone)


def _layers(unet: nn.Module) -> Iterator[tuple[str, KVDeltaLinear]]:
    """(name of the map without any tuner, layer)."""
    for path, module in named_modules(unet):
        if isinstance(module, KVDeltaLinear):
            yield named_below(path), module


def _only_adapter(unet: nn.Module, adapter_name: str | None) -> str:
    names = {name for _, layer in _layers(unet) for name in layer.scaling}
    if adapter_name in names or (adapter_name is None and len(names) == 1):
        return adapter_name or names.pop()
    raise ConceptError(f"This UNet carries the KV_DELTA adapters {sorted(names)}; name one of them")


def _down_shape(layer: KVDeltaLinear, adapter_name: str) -> tuple[int, ...]:
    """(r, d), or () when the adapter is full."""
    return tuple(layer.downs[adapter_name].shape) if adapter_name in layer.downs else ()


def _check_shape(name: str, module: nn.Linear | nn.Conv2d | KVDeltaLinear, factors: Factors) -> None:
    added, own = factors.shape, tuple(module.weight.flatten(1).shape)
    if added != own:
        raise BaseMismatch(
            f"The delta of {name} is {added} and the map {own}; use the base it was learned on"
        )
