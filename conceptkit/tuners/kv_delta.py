"""KV_DELTA, a PEFT tuner: a delta of any rank on a linear map."""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from conceptkit.concepts.delta import Factors
from conceptkit.errors import BadRecipe, BaseMismatch, ConceptError

KV_MAPS = r".*\battn2\.to_[kv]"
INIT_DOWN = ("gaussian", "orthonormal", "zero")


class ConceptPeftType(StrEnum):
    """PEFT's own enum is closed; it looks types up by string, so the name must equal the value."""

    KV_DELTA = "KV_DELTA"
    KEYED = "KEYED"


@dataclass
class KVDeltaConfig(PeftConfig):
    """r: rank, 0 for full matrices. target_modules: names or a regular expression, all K/V maps by default.

    init_down: "gaussian" (variance 1/d), "orthonormal" rows, or "zero" for factors that are set afterwards.
    freeze_down: train the up factors alone. exclude_modules: names or a regular expression of maps to leave
    out. modules_to_save: other modules that are trained whole and saved with the delta.
    Raises BadRecipe on values that make no sense.
    """

    r: int = 8
    target_modules: list[str] | str | None = None
    init_down: str = "gaussian"
    freeze_down: bool = False
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    of_type: ClassVar[ConceptPeftType] = ConceptPeftType.KV_DELTA

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.of_type
        self.target_modules = KV_MAPS if self.target_modules is None else self.target_modules
        if self.r < 0:
            raise BadRecipe(f"r = {self.r} is no rank; give a positive one, or 0 for full matrices")
        if self.init_down not in INIT_DOWN:
            raise BadRecipe(f"init_down = {self.init_down!r} is unknown; use one of {', '.join(INIT_DOWN)}")


class KVDeltaLinear(nn.Module, BaseTunerLayer):
    """A linear map with deltas beside it: y = W x + scaling (up (down x)), or (weight x) when full.

    gates: of adapters of low rank; from what the map gives (B, n, o) how far its ranks act, a factor of
    down x (B, n, r); None is not at all, and nothing of the delta is computed.
    """

    adapter_layer_names: tuple[str, ...] = ("kv_delta_up", "kv_delta_down", "kv_delta_weight")
    other_param_names = ("r", "scaling", "gates", "silenced")
    up_name, down_name, full_name = adapter_layer_names

    def __init__(
        self,
        base_layer: nn.Linear,
        adapter_name: str,
        config: KVDeltaConfig,
        factors: Factors | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True  # diffusers turns it off, and on, where it casts layers itself
        self._disable_adapters = False
        self._active_adapter = [adapter_name]
        self._merged: tuple[Tensor, Tensor] | None = None  # the map before and after
        self.silenced: dict[str, float] = {}  # the scales of adapters before they were scaled by 0
        self.gates: dict[str, Callable[[Tensor], Tensor | None]] = {}
        self.update_layer(adapter_name, config, factors)

    def update_layer(self, adapter_name: str, config: KVDeltaConfig, factors: Factors | None = None) -> None:
        """Add an adapter; without factors its effect is zero: the up factor, or the full weight, starts at 0.

        factors: parameters, on the device of the map and in its precision.
        """
        if factors is not None:
            self.set_factors(adapter_name, factors)
            return
        o, d, r = self.out_features, self.in_features, config.r
        if r:
            self.set_factors(adapter_name, Factors(torch.zeros(o, r), _first_down(config.init_down, r, d)))
        else:
            self.set_factors(adapter_name, Factors(weight=torch.zeros(o, d)))
        if config.freeze_down:
            self.frozen_peft_weight_names[adapter_name] = (self.down_name,)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_factors(self, adapter_name: str, factors: Factors) -> None:
        """Replace an adapter's factors; a Parameter stays the same object, so layers can share one."""
        given = (factors.up, factors.down, factors.weight)
        for name, factor in zip(self.adapter_layer_names, given, strict=False):  # keyed layers are never full
            part = getattr(self, name)
            if factor is not None:
                part[adapter_name] = factor
            elif adapter_name in part:
                del part[adapter_name]
        self.r[adapter_name] = factors.rank
        self.scaling.setdefault(adapter_name, 1.0)

    @property
    def map_shape(self) -> tuple[int, int]:
        """(o, d) of the map below."""
        return self.out_features, self.in_features

    def factors(self, adapter_name: str) -> Factors:
        """The adapter's very parameters."""
        return Factors.of(self._parameters_of(adapter_name))

    def _parameters_of(self, adapter_name: str) -> tuple[Tensor, ...]:
        """(up, down) or (weight,): plain tuples, which torch.compile goes through."""
        if adapter_name not in self.ups:
            return (getattr(self, self.full_name)[adapter_name],)
        return self.ups[adapter_name], self.downs[adapter_name]

    @property
    def ups(self) -> nn.ParameterDict:
        """Adapter -> its up factor (o, r), of those of low rank."""
        return getattr(self, self.up_name)

    @property
    def downs(self) -> nn.ParameterDict:
        """Adapter -> its down factor (r, d), of those of low rank."""
        return getattr(self, self.down_name)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """(o, d), scaled, dense; what merging adds."""
        return self.scaling[adapter_name] * self.factors(adapter_name).dense()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The map and the active deltas of x (..., d): (..., o). Raises ConceptError on `adapter_names`."""
        refuse_mixed_batch(kwargs.pop("adapter_names", None))
        if self.disable_adapters and self.merged:
            self.unmerge()
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        for name in self.active_adapters:
            if name in self.scaling:
                gate = self.gates.get(name)
                share = gate(self._cells(y)) if gate else None
                if gate and share is None:
                    continue
                y = y + (self._added(name, x, share) * self.scaling[name]).to(y.dtype)
        return y

    def _cells(self, y: Tensor) -> Tensor:
        """What the map gives, as (B, n, o)."""
        return y

    def _added(self, name: str, x: Tensor, share: Tensor | None) -> Tensor:
        """What an adapter makes of x, each of its ranks times its share."""
        *up, first = self._parameters_of(name)
        added = F.linear(x.to(first.dtype), first)
        if share is not None:
            added = added * share.to(added)
        for factor in up:
            added = F.linear(added, factor)
        return added

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
            before = weight.data if self._merged is None else self._merged[0]
            # A copy: who merges into the same map afterwards writes into what lies there.
            self._merged = before, merged.clone()
            weight.data = merged
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the kept map back, bit for bit; what others did to the map since it was merged stays in it."""
        if self._merged is not None:
            weight = self.base_layer.weight
            before, after = (part.to(weight) for part in self._merged)
            weight.data = torch.where(weight == after, before, weight - (after - before))
        self._merged, self.merged_adapters = None, []

    def unmerge_adapters(self, names: Collection[str]) -> None:
        """Take these adapters out of the map; others that are merged stay merged."""
        if not set(names) & set(self.merged_adapters):
            return
        others = [name for name in self.merged_adapters if name not in names]
        self.unmerge()
        if others:
            self.merge(adapter_names=others)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set an adapter's scale. After a scale of 0, 1 is the one that it had before: what diffusers asks
        for when a drawing at scale 0 is over."""
        if adapter in self.scaling:
            before = self.silenced.pop(adapter, 1.0)
            self.scaling[adapter] = before if scale == 1 else float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the scales of the active adapters."""
        for name in self.scaling.keys() & set(self.active_adapters):
            if scale == 0:
                self.silenced.setdefault(name, self.scaling[name])
            self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scales of the active adapters, or set them to 1."""
        for name in self.scaling.keys() & set(self.active_adapters):
            self.scaling[name] = 1.0 if scale is None else self.scaling[name] / scale

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether `peft.convert_to_lora` may take it: a delta is all that there is."""
        return True


class KVDeltaModel(BaseTuner):
    """Puts KVDeltaLinear layers into a model; PEFT makes one of these for every KVDeltaConfig.

    Several adapters may be active at once and merge. Rows of one batch have no adapters of their own
    (`adapter_names` is a ConceptError); other kinds of adapters in one PeftModel (`mixed=True`) and
    hot-swapping PEFT has for LoRA alone.
    """

    prefix = "kv_delta_"
    tuner_layer_cls = KVDeltaLinear

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        refuse_mixed_batch(kwargs.get("adapter_names"))
        yield

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        for name, module in model.named_modules():
            if self._check_target_module_exists(peft_config, name):
                try:
                    carrier(name, module, self.tuner_layer_cls)
                except ConceptError:
                    self.peft_config.pop(next(k for k, v in self.peft_config.items() if v is peft_config))
                    raise

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ) -> None:
        kind = self.tuner_layer_cls
        if type(target) is kind:
            target.update_layer(adapter_name, peft_config)
            return
        layer = kind(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def refuse_mixed_batch(adapter_names: Collection[str] | None) -> None:
    """Raises ConceptError when rows of one batch are to have adapters of their own, as LoRA alone can."""
    if adapter_names is not None:
        raise ConceptError(
            "KV_DELTA and KEYED have the same adapters for the whole batch, and none for each row of it "
            f"({', '.join(dict.fromkeys(adapter_names))}); call set_adapter, and the model once for each"
        )


def carrier(
    name: str, module: nn.Module | None, kind: type[KVDeltaLinear] = KVDeltaLinear
) -> nn.Linear | KVDeltaLinear:
    """The module, once it is known that a delta can go onto it in layers of this kind."""
    if isinstance(module, BaseTunerLayer) and type(module) is not kind:
        # Stacked, the keys of both get renamed, and a reload would silently drop them.
        own = isinstance(module, KVDeltaLinear)
        what = type(module).__name__ if own else "LoRA"
        raise ConceptError(
            f"{name} already carries a {what}; unload it first (pipe.unload_lora_weights()), after "
            "pipe.fuse_lora() if it is to stay"
        )
    if not isinstance(module, nn.Linear | KVDeltaLinear):
        found = "is missing" if module is None else f"is a {type(module).__name__}"
        raise BaseMismatch(
            f"The map {name} {found} in this UNet; use the base that the concept was learned on"
        )
    return module


def _first_down(init: str, r: int, d: int) -> Tensor:
    """(r, d)."""
    if init == "zero":
        return torch.zeros(r, d)
    down = torch.randn(r, d) / math.sqrt(d)
    return nn.init.orthogonal_(down) if init == "orthonormal" else down
