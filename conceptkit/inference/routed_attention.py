"""Routed composition: keys and values are maps of single tokens, so each can read its own concept's delta."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptkit.base.architectures import architecture_of_denoiser
from conceptkit.concepts.delta import Delta
from conceptkit.concepts.routing import Routing
from conceptkit.errors import BaseMismatch
from conceptkit.inference.token_owners import END, NOWHERE, TokenOwners, UNetCall


def install_routes(
    unet: nn.Module, delta: Delta, routing: Routing, reading: TokenOwners
) -> Callable[[], None]:
    """Let each token read its own concept's ranks of the delta, by hooks on its maps; gives the way back.

    Positions that belong to no concept, and prompts that name none, read the base alone.
    Raises BaseMismatch when a map is missing or has another shape.
    """
    modules, kind = dict(unet.named_modules()), architecture_of_denoiser(unet)
    ranks = torch.tensor(routing.ranks)
    whose = torch.repeat_interleave(torch.arange(len(ranks)), ranks)
    part_of = torch.tensor([routing.part_of[name] for name in reading.names])
    placed: dict[tuple[Hashable, torch.device, torch.dtype], Tensor] = {}

    def at(name: Hashable, factor: Tensor, x: Tensor) -> Tensor:
        key = (name, x.device, x.dtype)
        if key not in placed:
            placed[key] = factor.to(x)
        return placed[key]

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        up, down = delta[name]
        of_down = ("down", delta.shared[name])

        def route(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
            x = args[0]
            gate = gates(reading.scene, part_of.to(x.device), len(ranks), routing.padding_delta)
            gate = kind.at_site(gate[:, :, whose.to(x.device)].to(x), reading.scene.owners != NOWHERE)
            added = F.linear(F.linear(x, at(of_down, down, x)) * gate, at(name, up, x))
            return y + (added if reading.scene.scale == 1 else reading.scene.scale * added)

        return route

    for name, (up, down) in delta.items():
        module = modules.get(name)
        own = None if module is None else (module.out_features, module.in_features)
        if own != (up.shape[0], down.shape[1]):
            raise BaseMismatch(f"The map {name} does not fit this UNet; use the base that it was learned on")
    handles = [modules[name].register_forward_hook(hook(name)) for name in delta]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def gates(scene: UNetCall, part_of: Tensor, parts: int, shared: str) -> Tensor:
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
