"""A delta that learns: parameters laid on a base, read as a delta, and taken off without a trace.

All of them are KV_DELTA layers, whose product of factors is added to the map; a LoRA is one of rank r with
alpha = r.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conceptkit.base.pipeline import Base
from conceptkit.base.text_features import has_beginning
from conceptkit.concepts.delta import Delta, Factors
from conceptkit.learn import losses
from conceptkit.learn.target_modules import TargetMaps
from conceptkit.learn.train_config import TrainConfig
from conceptkit.rng import hash_of
from conceptkit.tuners.inject import ADAPTER, install, read_delta, uninstall
from conceptkit.tuners.kv_delta import KVDeltaLinear

UP, FULL, DOWN = (f"kv_delta_{kind}.{ADAPTER}" for kind in ("up", "weight", "down"))


class ParameterGroup(NamedTuple):
    """Parameters that learn at one rate; `rate` is the field of a recipe that it stands in.

    below: the weights that they are whole deltas of, where they are.
    unit: what a rate of 1 means for them.
    """

    parameters: list[nn.Parameter]
    rate: str
    below: tuple[Tensor, ...] = ()
    unit: float = 1.0


@dataclass(eq=False)
class TrainableDelta:
    """Parameters that learn on a base.

    parts: the modules that carry them, by part of the pipeline. down (s, d): frozen keys that all maps share.
    """

    base: Base
    recipe: TrainConfig
    parts: dict[str, nn.Module]
    groups: list[ParameterGroup]
    down: Tensor | None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters that learn."""
        return [p for group in self.groups for p in group.parameters]

    def read(self) -> Delta:
        """What has been learned, under the names of the maps."""
        learned = Delta()
        for part, module in self.parts.items():
            found = read_delta(module, ADAPTER).map(lambda factor: factor.float().cpu())
            learned |= found.prefixed(part) if part else found
        return learned

    def leak(self, moment: Tensor) -> Tensor:
        """||D Y||^2 over features Y with this second moment (d, d), of all maps that read text; a scalar."""
        reading = [
            layer for name, layer in layers(self.base.denoiser) if self.base.architecture.reads_text(name)
        ]
        if self.down is not None:
            return losses.leak(torch.cat([_scaled(layer).first for layer in reading]), self.down, moment)
        if all(layer.factors(ADAPTER).down is None for layer in reading):
            whole = torch.cat([_scaled(layer).first for layer in reading])
            return losses.leak(whole, torch.eye(whole.shape[1], device=whole.device), moment)
        pairs = [_scaled(layer) for layer in reading]
        return torch.stack([losses.leak(up, down, moment) for up, down in pairs]).sum()


@contextmanager
def inject(
    base: Base,
    recipe: TrainConfig,
    seed: int,
    targets: Mapping[str, TargetMaps],
    down: Tensor | None = None,
    rows: Tensor | None = None,
) -> Iterator[TrainableDelta]:
    """Lay a delta on the base, without effect yet; everything is taken off at the end.

    targets: maps by part of the pipeline. down: keys (s, d) that all maps which read text share; None: every
    map has full matrices, or factors that begin at random. rows (n, d): the concepts' features; what keyed
    maps give for them is what `relative_to_weights` is relative to there.
    """
    with ExitStack() as undo:
        modules: dict[str, nn.Module] = {}
        groups: list[ParameterGroup] = []
        for part, target in targets.items():
            module = getattr(base.pipe, part) if part else base.denoiser
            keyed = {
                name
                for name in target.maps
                if down is not None and not part and base.architecture.reads_text(name)
            }
            begun = {
                name: init_factors(
                    name,
                    map.weight.shape,
                    target.rank,
                    down if name in keyed else None,
                    seed,
                    recipe.init_lora_weights,
                )
                for name, map in target.maps.items()
            }
            install(module, Delta(begun, {name: "" if name in keyed else name for name in begun}))
            undo.callback(uninstall, module, ADAPTER)
            if recipe.relative_to_weights:
                _measure_by_weights(module, keyed, rows)
            own_rate = part and recipe.text_encoder_lr
            rate = "text_encoder_lr" if own_rate else "learning_rate" if target.rank else "full_learning_rate"
            groups += _by_rate(module, keyed, recipe, rate, base.architecture.key_ending)
            modules[part] = module
        if recipe.detach_bos and has_beginning(base.pipe):
            undo.enter_context(_detached_bos(base))
        yield TrainableDelta(base, recipe, modules, groups, down)


@torch.no_grad()
def _measure_by_weights(module: nn.Module, keyed: Collection[str], rows: Tensor | None) -> None:
    """Let one and the same factors mean more on a map of large weights: each is a multiple of W's size.

    Values of a keyed map are multiples of what W gives for the concepts' rows. Where W is c times larger and
    what reads it c times smaller, or what it reads, the same base learns by the same factors.
    """
    for name, layer in layers(module):
        size = layer.get_base_layer().weight.float()
        if name in keyed and rows is not None:
            size = rows.to(size) @ size.T
        layer.scaling[ADAPTER] = rms(size) or 1.0


def rms(values: Tensor) -> float:
    """The root of the mean square of all numbers of a tensor."""
    return float(values.detach().float().square().mean().sqrt())


def _by_rate(
    module: nn.Module, keyed: Collection[str], recipe: TrainConfig, rate: str, ending: str
) -> list[ParameterGroup]:
    """The parameters that learn on a module, ready to, by rate; `keyed` maps learn values alone.

    rate: of maps that are not keyed. ending: of names of key maps, "" where there are none. Values of key
    maps have a rate of their own if the recipe says so, and so has what is beside keyed maps.
    """
    of_keys: list[nn.Parameter] = []
    of_values: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    below: list[Tensor] = []
    for name, layer in layers(module):
        alone = [p for n, p in layer.named_parameters() if n.endswith((UP, FULL, DOWN))]
        for parameter in alone:
            parameter.data = parameter.data.float()  # a step of 1e-4 would vanish in half precision
        if name not in keyed:
            others += alone
            if any(n.endswith(FULL) for n, _ in layer.named_parameters()):
                weight, unit = layer.get_base_layer().weight, layer.scaling[ADAPTER]
                below.append(weight if unit == 1 else weight / unit)
        else:
            is_key = bool(ending) and name.endswith(ending)
            (of_keys if is_key and recipe.key_learning_rate else of_values).append(layer.ups[ADAPTER])
    for parameter in (*of_keys, *of_values, *others):
        parameter.requires_grad_()
    found = [
        ParameterGroup(of_values, "learning_rate"),
        ParameterGroup(of_keys, "key_learning_rate"),
        ParameterGroup(others, "gated_lora_learning_rate" if keyed else rate, tuple(below)),
    ]
    return [group for group in found if group.parameters]


def ordinary(base: Base, moment: Tensor) -> float:
    """||W0 Y||^2 of the base's own maps over text features with this second moment."""
    return sum(float(((w.weight.float() @ moment) * w.weight).sum()) for w in base.text_site.values())


def init_factors(
    name: str, shape: Sequence[int], rank: int, down: Tensor | None, seed: int, init: str = "unit"
) -> Factors:
    """Factors whose product is zero and has a gradient.

    init: how a down factor (r, d) begins: rows of "unit" length on average, PEFT's "gaussian" of deviation
        1/r, or its "kaiming", uniform within 1/sqrt(d).
    """
    o, d = shape
    if down is not None:
        return Factors(torch.zeros(o, len(down)), down)
    if not rank:
        return Factors(weight=torch.zeros(o, d))
    dice = torch.Generator().manual_seed(hash_of(seed, "down", name))
    if init == "kaiming":
        first = (2 * torch.rand(rank, d, generator=dice) - 1) / math.sqrt(d)
    else:
        first = torch.randn(rank, d, generator=dice) / (math.sqrt(d) if init == "unit" else rank)
    return Factors(torch.zeros(o, rank), first)


def layers(module: nn.Module) -> list[tuple[str, KVDeltaLinear]]:
    """(path, layer) of those on a module that carry what is learned."""
    return [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, KVDeltaLinear) and ADAPTER in layer.scaling
    ]


def _scaled(layer: KVDeltaLinear) -> Factors:
    return layer.factors(ADAPTER).scaled(layer.scaling[ADAPTER])


@contextmanager
def silenced(module: nn.Module) -> Iterator[None]:
    """The module as it is without what is learned on it."""
    there = [layer for _, layer in layers(module)]
    for layer in there:
        layer._disable_adapters = True  # `enable_adapters` would also decide what learns
    try:
        yield
    finally:
        for layer in there:
            layer._disable_adapters = False


@contextmanager
def _detached_bos(base: Base) -> Iterator[None]:
    """Keys and values at the first position are used, but nothing is learned from them."""

    def without(_: nn.Module, __: Any, made: Tensor) -> Tensor:
        return torch.cat([made[:, :1].detach(), made[:, 1:]], dim=1)

    with ExitStack() as undo:
        for name, layer in layers(base.denoiser):
            if base.architecture.reads_text(name):
                undo.callback(layer.register_forward_hook(without).remove)
        yield
