"""Deltas on a model, and off again without a trace.

A delta may also be given as a mapping to tuples, `(weight,)` (o, d) or `(up, down)` (o, r), (r, d).
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from peft import inject_adapter_in_model
from torch import Tensor, nn

from conceptkit.base.adapters import ADAPTER
from conceptkit.base.architectures import denoiser_of
from conceptkit.concepts.delta import ENCODERS, Delta, Factors, Maps
from conceptkit.errors import BadRecipe, BaseMismatch, ConceptError, NoEffect
from conceptkit.tuners.kv_delta import KVDeltaConfig, KVDeltaLinear, carrier

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def install_on(pipe: DiffusionPipeline, delta: Maps, adapter_name: str = ADAPTER) -> None:
    """Put a delta on all the parts of a pipeline that it has maps of; errors are those of `install`."""
    if not delta:
        raise NoEffect("The delta has no map, so it would change nothing; learn it again")
    done: list[nn.Module] = []
    try:
        for place, part in Delta(delta).by_component().items():
            module = getattr(pipe, place, None)
            if module is None:
                raise BaseMismatch(
                    f"The delta has maps of a {place}, which this pipeline lacks; use its base"
                )
            install(module, part, adapter_name)
            done.append(module)
    except BaseException:
        for module in done:
            uninstall(module, adapter_name)
        raise


def uninstall_from(pipe: DiffusionPipeline, adapter_name: str | None = None) -> None:
    """Take an adapter off every part of a pipeline, or all of them."""
    uninstall(denoiser_of(pipe), adapter_name)
    for place in ENCODERS:
        if (module := getattr(pipe, place, None)) is not None:
            uninstall(module, adapter_name)


def install(unet: nn.Module, maps: Maps, adapter_name: str = ADAPTER) -> None:
    """Put a delta on a UNet for drawing; `uninstall` takes it off without a trace.

    The base's `requires_grad`, other adapters and the random state stay as they are. Raises NoEffect on an
    empty delta, BaseMismatch when a map is missing or has another shape, ConceptError when the UNet already
    carries this adapter, or a LoRA on the same maps.
    """
    delta = Delta(maps)
    if not delta:
        raise NoEffect("The delta has no map, so it would change nothing; learn it again")
    if adapter_name in getattr(unet, "peft_config", {}):
        raise ConceptError(
            f"This UNet already carries {adapter_name!r}; take it off first, or attach all in one call"
        )
    modules = dict(unet.named_modules())
    for name, factors in delta.items():
        _check_shape(name, carrier(name, modules.get(name)), factors)
    trained = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
    config = KVDeltaConfig(r=delta.rank, target_modules=list(delta), init_down="zero", inference_mode=True)
    shared: dict[tuple[Hashable, torch.device, torch.dtype], nn.Parameter] = {}

    def placed(name: str, like: Tensor) -> Factors:
        factors = delta[name].map(
            lambda factor: nn.Parameter(factor.detach().to(like, copy=True), requires_grad=False)
        )
        if factors.down is None:
            return factors
        key = (delta.shared[name], like.device, like.dtype)
        return Factors(factors.up, shared.setdefault(key, factors.down))

    try:
        with warnings.catch_warnings():
            # A style LoRA on other maps is welcome company; PEFT warns of it in words for developers.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            inject_adapter_in_model(config, unet, adapter_name)
        vars(unet)["_hf_peft_config_loaded"] = True  # diffusers asks it before touching adapters
        for name, layer in _layers(unet):
            if name in delta:
                layer.set_factors(adapter_name, placed(name, layer.weight))
                layer.set_adapter([adapter_name], inference_mode=True)
    except BaseException:
        uninstall(unet, adapter_name)
        raise
    finally:
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def uninstall(unet: nn.Module, adapter_name: str | None = None) -> None:
    """Take one KV_DELTA adapter off, or all of them; the very modules that were there before are put back."""
    for path, layer in [(n, m) for n, m in unet.named_modules() if isinstance(m, KVDeltaLinear)]:
        gone = [name for name in layer.scaling if adapter_name in (None, name)]
        layer.unmerge_adapters(gone)
        for name in gone:
            layer.delete_adapter(name)
        if not layer.scaling:
            parent, _, child = path.rpartition(".")
            setattr(unet.get_submodule(parent), child, layer.base_layer)
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
    for path, module in unet.named_modules():
        if isinstance(module, KVDeltaLinear):
            yield path.replace(".base_layer", ""), module


def _only_adapter(unet: nn.Module, adapter_name: str | None) -> str:
    names = {name for _, layer in _layers(unet) for name in layer.scaling}
    if adapter_name in names or (adapter_name is None and len(names) == 1):
        return adapter_name or names.pop()
    raise ConceptError(f"This UNet carries the KV_DELTA adapters {sorted(names)}; name one of them")


def _down_shape(layer: KVDeltaLinear, adapter_name: str) -> tuple[int, ...]:
    """(r, d), or () when the adapter is full."""
    return tuple(layer.downs[adapter_name].shape) if adapter_name in layer.downs else ()


def _check_shape(name: str, module: nn.Linear | KVDeltaLinear, factors: Factors) -> None:
    added, own = factors.shape, tuple(module.weight.shape)
    if added != own:
        raise BaseMismatch(
            f"The delta of {name} is {added} and the map {own}; use the base it was learned on"
        )
