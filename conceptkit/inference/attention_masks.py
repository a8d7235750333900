"""Concepts kept apart in the picture: which queries of cross-attention may see whose words.

Hooks, not processors: whatever processor a pipeline has goes on working, and taking them off leaves no trace.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptkit.base.attention import attention_shares
from conceptkit.errors import ConceptError
from conceptkit.inference.token_owners import TokenOwners, UNetCall

WATCHED = 5
"""Calls of the UNet, from the noisiest on, that decide where things will be: attention is looked at in these,
and limited after them."""
KEPT = 8
"""Drawings whose attention is kept, for as many threads."""


Where = Callable[[UNetCall, int], Tensor | None]
"""Who may be where on a level of so many cells: (B, N, cells) bool for N concepts, None while all may be
anywhere."""


def confine(
    unet: nn.Module,
    reading: TokenOwners,
    masks: Mapping[str, np.ndarray],
    elsewhere: Callable[[], bool] = bool,
) -> tuple[Where, Callable[[], None]]:
    """Let the words of each concept be seen in its mask (H, W) alone, `True` inside; and the way back.

    elsewhere: whether somebody else sees to that in the call under way.
    """
    allowed = {reading.names.index(name): torch.from_numpy(cells).float() for name, cells in masks.items()}

    def where(scene: UNetCall, count: int) -> Tensor:
        size = level(scene.size, count)
        inside = torch.ones(len(scene.owners), len(reading.names), count, dtype=torch.bool)
        for i, cells in allowed.items():
            inside[:, i] = cells_inside(cells[None], size).flatten()
        return inside

    def limit(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        scene, queries = reading.scene, _queries(args, kwargs)
        if elsewhere():
            return args, kwargs
        inside = where(scene, queries.shape[1])
        return args, _seen(kwargs, scene, inside.to(queries.device), queries)

    return where, _on_cross_attention(unet, limit)


def separate(unet: nn.Module, reading: TokenOwners) -> tuple[Where, Callable[[], None]]:
    """Let competing concepts split the picture by where the first steps look for their words.

    In WATCHED calls the attention on each concept's words is added up, over all layers and heads. After them
    a concept's words are seen where its share of its own largest attention is above the others'. A prompt
    that names fewer than two concepts is left alone.
    """
    watched: dict[tuple[int, ...], Tensor] = {}

    def where(scene: UNetCall, count: int) -> Tensor | None:
        if scene.step < WATCHED or scene.key not in watched:
            return None
        inside = winners(watched[scene.key], scene.mentioned)
        size = level(scene.size, count)
        return torch.stack([cells_inside(row.float(), size).flatten(1) for row in inside])

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        scene, queries = reading.scene, _queries(args, kwargs)
        if not (scene.mentioned.sum(dim=1) > 1).any():
            return args, kwargs
        size = level(scene.size, queries.shape[1])
        if scene.step < WATCHED:
            seen = attention(module, queries, kwargs["encoder_hidden_states"], scene)
            seen = F.interpolate(seen.unflatten(2, size), scene.size, mode="bilinear")
            if scene.key not in watched and len(watched) >= KEPT:
                watched.clear()
            watched[scene.key] = seen + watched.get(scene.key, 0)
            return args, kwargs
        inside = where(scene, queries.shape[1])
        return args, kwargs if inside is None else _seen(kwargs, scene, inside, queries)

    return where, _on_cross_attention(unet, watch)


def attention(module: nn.Module, queries: Tensor, hidden: Tensor, scene: UNetCall) -> Tensor:
    """How much of each query's attention goes to each concept's words: (B, P, c), (B, T, d) -> (B, N, P)."""
    count = scene.mentioned.shape[1]
    own = F.one_hot(scene.owners.clamp(min=0), count) * (scene.owners >= 0).unsqueeze(2)
    return attention_shares(module, queries, hidden, own)


def winners(seen: Tensor, mentioned: Tensor) -> Tensor:
    """Who may be where: attention (B, N, H, W), (B, N) -> (B, N, H, W) bool; one alone may be anywhere."""
    smooth = F.avg_pool2d(seen, 3, stride=1, padding=1, count_include_pad=False)
    share = smooth / smooth.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12)
    share = share.masked_fill(~mentioned[:, :, None, None], -1)
    won = F.one_hot(share.argmax(dim=1), seen.shape[1]).permute(0, 3, 1, 2).bool()
    return won | (mentioned.sum(dim=1) < 2)[:, None, None, None]


def level(size: tuple[int, int], cells: int) -> tuple[int, int]:
    """Height and width of the UNet's level that has so many cells, for latents of `size`."""
    h, w = size
    while h * w > cells:
        h, w = (h + 1) // 2, (w + 1) // 2
    if h * w != cells:
        raise ConceptError(
            f"A level of {cells} cells does not fit latents of {size[0]}x{size[1]}; draw without regions"
        )
    return h, w


def _on_cross_attention(unet: nn.Module, hook: Callable[..., Any]) -> Callable[[], None]:
    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith("attn2")
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def _queries(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def cells_inside(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (N, H, W) on a level (N, h, w): where at least half of a cell is inside, or the fullest cells."""
    share = F.interpolate(mask[:, None], size, mode="area")[:, 0]
    return (share >= share.amax(dim=(1, 2), keepdim=True).clamp(max=0.5)) & (share > 0)


def _seen(kwargs: dict[str, Any], scene: UNetCall, inside: Tensor, queries: Tensor) -> dict[str, Any]:
    """The same by the owners of positions."""
    count = inside.shape[1]
    own = F.one_hot(scene.owners.clamp(min=0), count) * (scene.owners >= 0).unsqueeze(2)
    return hidden_words(kwargs, own, inside, queries)


def hidden_words(kwargs: dict[str, Any], own: Tensor, inside: Tensor, queries: Tensor) -> dict[str, Any]:
    """The call's arguments with a mask added: words, `own` (B, T, N) of N concepts, are hidden from queries
    that are not inside (B, N, P)."""
    hidden = torch.einsum("btn,bnp->bpt", own.float(), (~inside).float()) > 0
    bias = torch.zeros(hidden.shape, dtype=queries.dtype, device=queries.device)
    bias = bias.masked_fill(hidden, torch.finfo(queries.dtype).min)
    given = kwargs.get("attention_mask")
    return {**kwargs, "attention_mask": bias if given is None else bias + given}
