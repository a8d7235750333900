"""KV_DELTA: a PEFT type that adds a delta to the cross-attention key and value maps, low rank or full.

Importing this module registers it: `unet.add_adapter(KVDeltaConfig(r=8))`, `get_peft_model`, saving, merging,
`cross_attention_kwargs={"scale": ...}` and `peft.convert_to_lora` then work as for the types of PEFT itself.

A delta maps the name of a map to `(weight,)` (o, d) or `(up, down)` (o, r), (r, d); their product is added.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from conceptkit.concept import Delta, Factors
from conceptkit.errors import BadRecipe, BaseMismatch, ConceptError, NoEffect

KV_MAPS = r".*\battn2\.to_[kv]"
ADAPTER = "conceptkit"
INIT_DOWN = ("gaussian", "orthonormal", "zero")


class ConceptPeftType(StrEnum):
    """PEFT's own enum is closed; it looks types up by string, so the name must equal the value."""

    KV_DELTA = "KV_DELTA"


@dataclass
class KVDeltaConfig(PeftConfig):
    """r: rank, 0 for full matrices. target_modules: names or a regular expression, all K/V maps by default.

    init_down: "gaussian" (variance 1/d), "orthonormal" rows, or "zero" for factors that are set afterwards.
    freeze_down: train the up factors alone. Raises BadRecipe on values that make no sense.
    """

    r: int = 8
    target_modules: list[str] | str | None = None
    init_down: str = "gaussian"
    freeze_down: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = ConceptPeftType.KV_DELTA
        self.target_modules = KV_MAPS if self.target_modules is None else self.target_modules
        if self.r < 0:
            raise BadRecipe(f"r = {self.r} is no rank; give a positive one, or 0 for full matrices")
        if self.init_down not in INIT_DOWN:
            raise BadRecipe(f"init_down = {self.init_down!r} is unknown; use one of {', '.join(INIT_DOWN)}")


class KVDeltaLinear(nn.Module, BaseTunerLayer):
    """A linear map with deltas beside it: y = W x + scaling (up (down x)), or (weight x) when full."""

    adapter_layer_names = ("kv_delta_up", "kv_delta_down", "kv_delta_weight")
    other_param_names = ("r", "scaling")

    def __init__(self, base_layer: nn.Linear, adapter_name: str, config: KVDeltaConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.kv_delta_up = nn.ParameterDict()
        self.kv_delta_down = nn.ParameterDict()
        self.kv_delta_weight = nn.ParameterDict()
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = [adapter_name]
        self._unmerged: Tensor | None = None
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: KVDeltaConfig) -> None:
        """Add an adapter whose effect is zero: the up factor, or the full weight, starts at 0."""
        o, d, r = self.out_features, self.in_features, config.r
        if r:
            self.set_factors(adapter_name, (torch.zeros(o, r), _first_down(config.init_down, r, d)))
        else:
            self.set_factors(adapter_name, (torch.zeros(o, d),))
        if config.freeze_down:
            self.frozen_peft_weight_names[adapter_name] = ("kv_delta_down",)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_factors(self, adapter_name: str, factors: Factors) -> None:
        """Replace an adapter's factors; a Parameter stays the same object, so layers can share one."""
        for part in (self.kv_delta_up, self.kv_delta_down, self.kv_delta_weight):
            if adapter_name in part:
                del part[adapter_name]
        if len(factors) == 1:
            self.kv_delta_weight[adapter_name] = factors[0]
        else:
            self.kv_delta_up[adapter_name], self.kv_delta_down[adapter_name] = factors
        self.r[adapter_name] = min(min(factor.shape) for factor in factors)
        self.scaling.setdefault(adapter_name, 1.0)

    def factors(self, adapter_name: str) -> Factors:
        """The adapter's parameters as they are: (weight,) or (up, down)."""
        if adapter_name in self.kv_delta_weight:
            return (self.kv_delta_weight[adapter_name],)
        return self.kv_delta_up[adapter_name], self.kv_delta_down[adapter_name]

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """(o, d), scaled, dense; what merging adds."""
        factors = self.factors(adapter_name)
        return self.scaling[adapter_name] * (factors[0] @ factors[1] if len(factors) == 2 else factors[0])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        for name in self.active_adapters:
            if name in self.scaling:
                added = x
                for factor in reversed(self.factors(name)):
                    added = F.linear(self._cast_input_dtype(added, factor.dtype), factor)
                y = y + (added * self.scaling[name]).to(y.dtype)
        return y

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active deltas to the map. Raises ValueError when `safe_merge` meets a value not finite."""
        for name in check_adapters_to_merge(self, adapter_names) or ():
            if name not in self.scaling:
                continue
            weight = self.base_layer.weight
            merged = (weight + self.get_delta_weight(name)).to(weight.dtype)
            if safe_merge and not merged.isfinite().all():
                raise ValueError(
                    f"Merging adapter {name!r} gives values that are not finite; it seems to be broken"
                )
            if not self.merged_adapters:
                self._unmerged = weight.data
            weight.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the kept map back: subtracting a delta would not restore it bit for bit."""
        if self._unmerged is not None:
            self.base_layer.weight.data = self._unmerged.to(self.base_layer.weight)
        self._unmerged, self.merged_adapters = None, []

    def set_scale(self, adapter: str, scale: float) -> None:
        if adapter in self.scaling:
            self.scaling[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        for name in self.scaling.keys() & set(self.active_adapters):
            self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        for name in self.scaling.keys() & set(self.active_adapters):
            self.scaling[name] = 1.0 if scale is None else self.scaling[name] / scale

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True


class KVDeltaModel(BaseTuner):
    """Puts KVDeltaLinear layers into a model; PEFT makes one of these for every KVDeltaConfig."""

    prefix = "kv_delta_"
    tuner_layer_cls = KVDeltaLinear

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        for name, module in model.named_modules():
            if self._check_target_module_exists(peft_config, name):
                try:
                    _carrier(name, module)
                except ConceptError:
                    self.peft_config.pop(next(k for k, v in self.peft_config.items() if v is peft_config))
                    raise

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ) -> None:
        if isinstance(target, KVDeltaLinear):
            target.update_layer(adapter_name, peft_config)
            return
        layer = KVDeltaLinear(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def install(unet: nn.Module, delta: Delta, adapter_name: str = ADAPTER) -> None:
    """Put a delta on a UNet for drawing; `uninstall` takes it off without a trace.

    The base's `requires_grad`, other adapters and the random state stay as they are. Raises NoEffect on an
    empty delta, BaseMismatch when a map is missing or has another shape, ConceptError when the UNet already
    carries this adapter, or a LoRA on the same maps.
    """
    if not delta:
        raise NoEffect("The delta has no map, so it would change nothing; learn it again")
    if adapter_name in getattr(unet, "peft_config", {}):
        raise ConceptError(
            f"This UNet already carries {adapter_name!r}; take it off first, or attach all in one call"
        )
    modules = dict(unet.named_modules())
    for name, factors in delta.items():
        _check_shape(name, _carrier(name, modules.get(name)), factors)
    trained = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
    rank = max(min(min(factor.shape) for factor in factors) for factors in delta.values())
    config = KVDeltaConfig(r=rank, target_modules=list(delta), init_down="zero", inference_mode=True)
    shared: dict[tuple[int, torch.device, torch.dtype], nn.Parameter] = {}

    def placed(factor: Tensor, like: Tensor) -> nn.Parameter:
        key = (id(factor), like.device, like.dtype)
        if key not in shared:
            shared[key] = nn.Parameter(factor.detach().to(like, copy=True), requires_grad=False)
        return shared[key]

    try:
        with warnings.catch_warnings():
            # A style LoRA on other maps is welcome company; PEFT warns of it in words for developers.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            inject_adapter_in_model(config, unet, adapter_name)
        vars(unet)["_hf_peft_config_loaded"] = True  # diffusers asks it before touching adapters
        for name, layer in _layers(unet):
            if name in delta:
                layer.set_factors(adapter_name, tuple(placed(factor, layer.weight) for factor in delta[name]))
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
        layer.unmerge()
        for name in [adapter_name] if adapter_name else list(layer.scaling):
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


def share_down(unet: nn.Module, down: Tensor, adapter_name: str | None = None) -> nn.Parameter:
    """Make `down` (r, d) the one down factor of every layer of an adapter, and return that parameter.

    It is trained with gradients from all layers, or not at all when the adapter's config says `freeze_down`.
    Raises BadRecipe when an up factor has another rank.
    """
    name = _only_adapter(unet, adapter_name)
    layers = [layer for _, layer in _layers(unet) if name in layer.scaling]
    given, taken = tuple(down.shape), {_down_shape(layer, name) for layer in layers}
    if taken != {given}:
        raise BadRecipe(f"A down factor {given} does not fit layers with {taken}; give their shape")
    shared = nn.Parameter(down.detach().to(layers[0].kv_delta_up[name], copy=True))
    for layer in layers:
        layer.kv_delta_down[name] = shared
        layer.set_adapter(layer.active_adapters)
    return shared


def read_delta(unet: nn.Module, adapter_name: str | None = None) -> Delta:
    """A copy of the adapter's delta, under the names the maps have without it; shared factors stay shared."""
    name = _only_adapter(unet, adapter_name)
    copies: dict[int, Tensor] = {}

    def copied(factor: Tensor) -> Tensor:
        return copies.setdefault(id(factor), factor.detach().clone())

    delta = {}
    for path, layer in _layers(unet):
        if name in layer.scaling:
            first, *rest = layer.factors(name)
            delta[path] = (first.detach() * layer.scaling[name], *map(copied, rest))
    return delta


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
    return tuple(layer.kv_delta_down[adapter_name].shape) if adapter_name in layer.kv_delta_down else ()


def _first_down(init: str, r: int, d: int) -> Tensor:
    """(r, d)."""
    if init == "zero":
        return torch.zeros(r, d)
    down = torch.randn(r, d) / math.sqrt(d)
    return nn.init.orthogonal_(down) if init == "orthonormal" else down


def _carrier(name: str, module: nn.Module | None) -> nn.Linear | KVDeltaLinear:
    """The module, once it is known that a delta can go onto it."""
    if isinstance(module, BaseTunerLayer) and not isinstance(module, KVDeltaLinear):
        # Stacked, the keys of both get renamed, and a reload would silently drop them.
        raise ConceptError(
            f"{name} already carries a LoRA; unload or fuse it first (pipe.unload_lora_weights())"
        )
    if not isinstance(module, nn.Linear | KVDeltaLinear):
        found = "is missing" if module is None else f"is a {type(module).__name__}"
        raise BaseMismatch(
            f"The map {name} {found} in this UNet; use the base that the concept was learned on"
        )
    return module


def _check_shape(name: str, module: nn.Linear | KVDeltaLinear, factors: Factors) -> None:
    added, own = (factors[0].shape[0], factors[-1].shape[1]), tuple(module.weight.shape)
    if added != own:
        raise BaseMismatch(
            f"The delta of {name} is {added} and the map {own}; use the base it was learned on"
        )


_TYPE: Any = ConceptPeftType.KV_DELTA
PEFT_TYPE_TO_CONFIG_MAPPING[_TYPE] = KVDeltaConfig
PEFT_TYPE_TO_TUNER_MAPPING[_TYPE] = KVDeltaModel
PEFT_TYPE_TO_PREFIX_MAPPING[_TYPE] = KVDeltaModel.prefix
