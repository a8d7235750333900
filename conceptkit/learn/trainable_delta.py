"""Where a look is learned: parameters laid on a base, read as a delta, and taken off without a trace.

An adapter is a row of a table: which maps it lies on, and with which factors a map begins. All of them are
KV_DELTA layers, whose product of factors is added to the map; a LoRA is one of rank r with alpha = r.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conceptkit.base.attention import kv_maps
from conceptkit.base.pipeline import Base
from conceptkit.concepts.delta import Delta, Factors
from conceptkit.learn import losses, target_modules
from conceptkit.learn.config import TrainConfig
from conceptkit.rng import hash_of
from conceptkit.tuners import targets
from conceptkit.tuners.inject import ADAPTER, install, read_delta, uninstall
from conceptkit.tuners.kv_delta import KVDeltaLinear

UP, FULL, DOWN = (f"kv_delta_{kind}.{ADAPTER}" for kind in ("up", "weight", "down"))


@dataclass(eq=False)
class TrainableDelta:
    """Parameters that learn on a base.

    groups: (parameters, learning rate). down: (s, d), the frozen keys that all maps share, or None.
    """

    base: Base
    recipe: TrainConfig
    places: dict[str, nn.Module]
    groups: list[tuple[list[nn.Parameter], float]]
    down: Tensor | None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group, _ in self.groups for p in group]

    def read(self) -> Delta:
        """What has been learned, under the names of the maps."""
        learned = Delta()
        for place, module in self.places.items():
            found = read_delta(module, ADAPTER).map(lambda factor: factor.float().cpu())
            learned |= found.prefixed(place) if place else found
        return learned

    def spilt(self, moment: Tensor) -> Tensor:
        """||D Y||^2 over features Y with this second moment (d, d), of all maps that read text; a scalar."""
        reading = [layer for name, layer in layers(self.base.unet) if targets.READS_TEXT.search(name)]
        if self.down is not None:
            return losses.leak(torch.cat([layer.ups[ADAPTER] for layer in reading]), self.down, moment)
        if all(layer.factors(ADAPTER).down is None for layer in reading):
            whole = torch.cat([layer.factors(ADAPTER).first for layer in reading])
            return losses.leak(whole, torch.eye(whole.shape[1], device=whole.device), moment)
        pairs = [layer.factors(ADAPTER) for layer in reading]
        return torch.stack([losses.leak(up, down, moment) for up, down in pairs]).sum()


@contextmanager
def inject(base: Base, recipe: TrainConfig, seed: int, down: Tensor | None) -> Iterator[TrainableDelta]:
    """Lay the recipe's adapter on the base, without effect yet; everything is taken off at the end.

    down: the keys (s, d) of a keyed adapter; None: full matrices, or factors that begin at random.
    """
    with ExitStack() as undo:
        modules: dict[str, nn.Module] = {}
        groups: list[tuple[list[nn.Parameter], float]] = []
        for place, maps in target_modules.components(base, recipe).items():
            module = getattr(base.pipe, place) if place else base.unet
            keyed = {name for name in maps if down is not None and targets.READS_TEXT.search(name)}
            rank = target_modules.rank(recipe, place)
            begun = {
                name: init_factors(name, map.weight.shape, rank, down if name in keyed else None, seed)
                for name, map in maps.items()
            }
            install(module, Delta(begun, {name: "" if name in keyed else name for name in begun}))
            undo.callback(uninstall, module, ADAPTER)
            groups += _by_rate(module, keyed, recipe, recipe.lr if rank or keyed else recipe.full_lr)
            modules[place] = module
        if recipe.detach_bos:
            undo.enter_context(_deaf_at_bos(base.unet))
        yield TrainableDelta(base, recipe, modules, groups, down)


def rates(recipe: TrainConfig) -> list[str]:
    """The fields of a recipe that say how fast its adapter learns, as far as they may change on the way."""
    used = {
        "lr": recipe.rank or recipe.text_rank,
        "full_lr": not recipe.rank,
        "wide_lr": target_modules.gated_lora_rank(recipe),
    }
    return [name for name, yes in used.items() if yes]


def _by_rate(
    module: nn.Module, keyed: Collection[str], recipe: TrainConfig, lr: float
) -> list[tuple[list[nn.Parameter], float]]:
    """The parameters that learn on a module, ready to, with their rates; `keyed` maps learn values alone.

    Values of key maps have a rate of their own if the recipe says so, and so has what is beside keyed maps.
    """
    of_keys: list[nn.Parameter] = []
    of_values: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, layer in layers(module):
        alone = [p for n, p in layer.named_parameters() if n.endswith((UP, FULL, DOWN))]
        if name not in keyed:
            others += alone
        else:
            (of_keys if name.endswith("to_k") and recipe.key_lr else of_values).append(layer.ups[ADAPTER])
    for parameter in (*of_keys, *of_values, *others):
        parameter.data = parameter.data.float()  # a step of 1e-4 would vanish in half precision
        parameter.requires_grad_()
    beside = recipe.wide_lr if keyed else lr
    found = [(of_values, lr), (of_keys, recipe.key_lr), (others, beside)]
    return [(some, rate) for some, rate in found if some]


def ordinary(base: Base, moment: Tensor) -> float:
    """||W0 Y||^2 of the base's own maps over text features with this second moment."""
    return sum(float(((w.weight.float() @ moment) * w.weight).sum()) for w in kv_maps(base.unet).values())


def init_factors(name: str, shape: Any, rank: int, down: Tensor | None, seed: int) -> Factors:
    """Factors whose product is zero and has a gradient."""
    o, d = shape
    if down is not None:
        return Factors(torch.zeros(o, len(down)), down)
    if not rank:
        return Factors(weight=torch.zeros(o, d))
    dice = torch.Generator().manual_seed(hash_of(seed, "down", name))
    return Factors(torch.zeros(o, rank), torch.randn(rank, d, generator=dice) / math.sqrt(d))


def layers(module: nn.Module) -> list[tuple[str, KVDeltaLinear]]:
    """(path, layer) of those on a module that carry what is learned."""
    return [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, KVDeltaLinear) and ADAPTER in layer.scaling
    ]


@contextmanager
def _deaf_at_bos(unet: nn.Module) -> Iterator[None]:
    """Keys and values at the first position are used, but nothing is learned from them."""

    def without(_: nn.Module, __: Any, made: Tensor) -> Tensor:
        return torch.cat([made[:, :1].detach(), made[:, 1:]], dim=1)

    with ExitStack() as undo:
        for name, layer in layers(unet):
            if targets.READS_TEXT.search(name):
                undo.callback(layer.register_forward_hook(without).remove)
        yield
