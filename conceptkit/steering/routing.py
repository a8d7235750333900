"""Routed composition: keys and values are maps of single tokens, so each can read its own concept's delta."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptkit.concept import Delta, Factors
from conceptkit.errors import BaseMismatch
from conceptkit.merging.baselines import add
from conceptkit.steering.reading import END, Reading, Scene


def stacked(deltas: Sequence[Delta], sizes: Mapping[str, int]) -> tuple[Delta, list[int]]:
    """All deltas in one, the ranks of one after those of the other, and how many belong to each.

    sizes: map -> o, of the maps to stack, of any widths; others are added up. The product of a map's
    factors is the sum of the deltas. A concept has the same number of ranks in all maps, zeros where it needs
    fewer, so that whoever draws can tell them from the others'.
    """
    kept: dict[tuple[int, int, int], Tensor] = {}
    ranks = [
        max((_low_rank(f)[1].shape[0] for name, f in delta.items() if name in sizes), default=0)
        for delta in deltas
    ]
    merged: dict[str, Factors] = {}
    shared: dict[tuple[int, ...], Tensor] = {}
    for name, o in sizes.items():
        present = [delta.get(name) for delta in deltas]
        if not any(present):
            continue
        width = next(factors[-1].shape[1] for factors in present if factors)
        ups, downs = [], []
        for factors, rank in zip(present, ranks, strict=True):
            up, down = _low_rank(factors) if factors else (torch.zeros(o, 0), torch.zeros(0, width))
            ups.append(torch.nn.functional.pad(up, (0, rank - up.shape[1])))
            whose = id(factors[1]) if factors and len(factors) == 2 else -len(down) - 1
            key = (whose, rank, down.shape[1])
            if key not in kept:
                kept[key] = torch.nn.functional.pad(down, (0, 0, 0, rank - len(down)))
            downs.append(kept[key])
        key_all = tuple(map(id, downs))
        if key_all not in shared:
            shared[key_all] = torch.cat(downs)
        merged[name] = (torch.cat(ups, dim=1), shared[key_all])
    wide = [{name: f for name, f in delta.items() if name not in sizes} for delta in deltas]
    return {**merged, **add(wide)}, ranks


def _low_rank(factors: Factors) -> Factors:
    """(up, down) with the same product; a full matrix (o, d) has the identity (d, d) beside it."""
    return factors if len(factors) == 2 else (factors[0], torch.eye(factors[0].shape[1]))


def install_routes(
    unet: nn.Module, delta: Delta, recipe: Mapping[str, Any], reading: Reading
) -> Callable[[], None]:
    """Let each token read its own concept's ranks of the delta, by hooks on its maps; gives the way
    back.

    recipe: of the merge, with "ranks", how many are each part's; "routes", a word of a prompt -> its part;
    and "shared", what end of text and padding read, see `request.SHARED`. Other positions, and prompts that
    name no concept, read the base alone. Raises BaseMismatch when a map is missing or has another shape.
    """
    modules = dict(unet.named_modules())
    ranks = torch.tensor(recipe["ranks"])
    whose = torch.repeat_interleave(torch.arange(len(ranks)), ranks)
    part_of = torch.tensor([recipe["routes"][name] for name in reading.names])
    placed: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    def at(factor: Tensor, x: Tensor) -> Tensor:
        key = (id(factor), x.device, x.dtype)
        if key not in placed:
            placed[key] = factor.to(x)
        return placed[key]

    def hook(factors: Factors) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        up, down = factors

        def route(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
            x = args[0]
            gate = gates(reading.scene, part_of.to(x.device), len(ranks), recipe["shared"])
            gate = gate[:, :, whose.to(x.device)].to(x)
            return y + F.linear(F.linear(x, at(down, x)) * gate, at(up, x))

        return route

    for name, (up, down) in delta.items():
        module = modules.get(name)
        own = None if module is None else (module.out_features, module.in_features)
        if own != (up.shape[0], down.shape[1]):
            raise BaseMismatch(f"The map {name} does not fit this UNet; use the base that it was learned on")
    handles = [modules[name].register_forward_hook(hook(factors)) for name, factors in delta.items()]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def gates(scene: Scene, part_of: Tensor, parts: int, shared: str) -> Tensor:
    """How much a position reads of each part: (B, T, parts); `part_of` (N,) says which part a word is of."""
    owned = scene.owners >= 0
    part = part_of[scene.owners.clamp(min=0)]
    own = F.one_hot(part, parts) * owned.unsqueeze(2)
    named = (scene.mentioned.float() @ F.one_hot(part_of, parts).float()).clamp(max=1)
    if shared == "average":
        named = named / named.sum(dim=1, keepdim=True).clamp(min=1)
    if shared == "drop":
        named = torch.zeros_like(named)
    return own + (scene.owners == END).unsqueeze(2) * named.unsqueeze(1)
