"""Watching where a denoiser looks for words: one class for each kind of attention.

Another kind of attention is one more class with these methods, and a row in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptkit.base.attention import attention_shares, attention_weights
from conceptkit.inference.attention_masks import level

WATCHED_FROM = 1 / 5
"""Share of the steps before which attention says little of where things will be."""
EVERY = 2
"""Calls from one that is looked at to the next: attention changes slowly."""
FINEST, COARSEST = 32, 8
"""Cells on the longer side of the levels that tell where things are: coarser ones say too little, and finer
ones are about texture."""


class AttentionKind(Protocol):
    """How text is attended to in a denoiser."""

    def modules(self, denoiser: nn.Module) -> Mapping[str, nn.Module]:
        """The modules that attend to text, by name; {} where there is none of this kind."""

    def beside(self, denoiser: nn.Module) -> Mapping[str, nn.Module]:
        """The modules in which cells attend to each other, each called before one that attends to text."""

    def shares(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], own: Tensor, rows: Tensor
    ) -> Tensor:
        """Attention of each cell to words `own` (R, T, N), in the rows (R,) of a call of the module:
        (R, N, P)."""

    def between(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Tensor
    ) -> Tensor | None:
        """Attention of each cell to each, in the rows (R,) of a call of such a module: (R, P, P); None where
        it is to text."""

    def reading(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], features: Tensor
    ) -> Tensor:
        """What the module gives (B, P, c) when it reads other features (B, T, d)."""


class CrossAttention:
    """Cells of a UNet attend to text features alone, in modules called attn2."""

    def modules(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """The cross-attentions, by name."""
        return {name: module for name, module in denoiser.named_modules() if name.endswith("attn2")}

    def beside(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """The self-attentions, by name."""
        return {name: module for name, module in denoiser.named_modules() if name.endswith("attn1")}

    def shares(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], own: Tensor, rows: Tensor
    ) -> Tensor:
        """The softmax of queries and keys, added up over words `own` (R, T, N): (R, N, P)."""
        queries = args[0] if args else kwargs["hidden_states"]
        return attention_shares(module, queries, kwargs["encoder_hidden_states"], own, rows)

    def between(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Tensor
    ) -> Tensor | None:
        """The softmax of queries and keys, the mean over heads: (R, P, P)."""
        if kwargs.get("encoder_hidden_states") is not None:
            return None
        cells = args[0] if args else kwargs["hidden_states"]
        return attention_weights(module, cells, cells, rows)

    def reading(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], features: Tensor
    ) -> Tensor:
        """The module's own forward with other text features (B, T, d): (B, P, c)."""
        given = kwargs["encoder_hidden_states"]
        told = (features, *given[1:]) if isinstance(given, tuple) else features
        return module.forward(*args, **{**kwargs, "encoder_hidden_states": told})


KINDS: tuple[AttentionKind, ...] = (CrossAttention(),)


def kind_of(denoiser: nn.Module) -> AttentionKind | None:
    """How a denoiser attends to text; None where there is nothing to look at."""
    return next((kind for kind in KINDS if kind.modules(denoiser)), None)


class Watch:
    """The attention to nouns, added up over the levels of a denoiser, in some of its calls.

    own (B, T, N): which positions of each picture's prompt are which noun. every: calls from one that is
    looked at to the next; the last ones say most, and the first is among them where there are few.
    """

    def __init__(self, own: Tensor, kind: AttentionKind, every: int = EVERY) -> None:
        self.own, self._kind, self._every = own, kind, every
        self._calls: list[dict[int, tuple[Tensor, Tensor, int]]] = []
        self._between: Tensor | None = None
        self._sizes: list[tuple[int, int]] = []

    @property
    def calls(self) -> int:
        """How many of the denoiser there were."""
        return len(self._calls)

    @property
    def ready(self) -> bool:
        """Whether there was any."""
        return bool(self._calls)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latents in the call that is under way."""
        return self._sizes[-1]

    def begin(self, size: tuple[int, int]) -> None:
        """Another call of the denoiser begins, for latents of `size`."""
        self._calls.append({})
        self._sizes.append(size)

    def look_between(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Tensor
    ) -> None:
        """Note how cells attend to each other, for the module that looks at text next; rows (pictures,): the
        row of each picture."""
        cells = args[0] if args else kwargs["hidden_states"]
        if not self._watched:
            return
        if COARSEST <= max(level(self.size, cells.shape[1])) <= FINEST:
            self._between = self._kind.between(module, args, kwargs, rows)

    def look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Tensor) -> None:
        """Note what a module attends to; rows (pictures,): the row of each picture."""
        queries = args[0] if args else kwargs["hidden_states"]
        between, self._between = self._between, None
        if not self._watched or (len(self._calls) > 1 and queries.shape[1] not in self._telling(0)):
            return
        seen = self._kind.shares(module, args, kwargs, self.own.to(queries.device), rows).float()
        cells = seen.shape[2]
        known = between is not None and between.shape[1] == cells
        spread = seen @ between.float().transpose(1, 2) if known and between is not None else seen
        nothing = torch.zeros_like(seen)
        before, spread_before, n = self._calls[-1].get(cells, (nothing, nothing, 0))
        self._calls[-1][cells] = before + seen, spread_before + spread, n + 1

    def maps(self, calls: int) -> Tensor:
        """Where each noun is by what was seen in so many calls: (pictures, N, h, w)."""
        return self.seen(int(WATCHED_FROM * calls), calls)

    def outlining(self, calls: int) -> Tensor:
        """What tells how far each thing goes: (pictures, N, h, w), from 0 to 1.

        The mean of attention to it, which tells things apart, and of the same spread over what each cell
        attends to in the picture itself, A_self A_cross (DiffSegmenter, 2309.02773), which reaches all of it.
        """
        first = int(WATCHED_FROM * calls)
        both = [self.seen(first, calls, spread) for spread in (False, True)]
        low, high = ([fn(one, dim=(2, 3), keepdim=True) for one in both] for fn in (torch.amin, torch.amax))
        scaled = [(one - a) / (b - a).clamp(min=1e-12) for one, a, b in zip(both, low, high, strict=True)]
        return torch.stack(scaled).mean(dim=0)

    def seen(self, first: int, end: int, spread: bool = False) -> Tensor:
        """The mean over what was looked at in calls `first` to `end` and the levels that tell most:
        (pictures, N, h, w).

        spread: over what cells attend to in the picture itself, see `outlining`.
        """
        telling = self._telling(first)
        finest = telling[max(telling)]
        total: Any = 0
        watched = [call for call in self._calls[first:end] if call]
        for call in watched:
            for cells, shape in telling.items():
                *sums, count = call[cells]
                at = (sums[spread] / count).unflatten(2, shape)
                total = total + F.interpolate(at, finest, mode="bilinear", align_corners=False)
        return total / (len(watched) * len(telling))

    @property
    def _watched(self) -> bool:
        """Whether the call that is under way is."""
        number = len(self._calls) - 1
        return number == 0 or number % self._every == self._every - 1

    def _telling(self, call: int) -> dict[int, tuple[int, int]]:
        """The levels that are looked at, height and width by number of cells."""
        levels = {cells: level(self._sizes[call], cells) for cells in self._calls[0]}
        telling = {cells: size for cells, size in levels.items() if COARSEST <= max(size) <= FINEST}
        return telling or {max(levels): levels[max(levels)]}


def watch_hooks(
    denoiser: nn.Module,
    kind: AttentionKind,
    before: Callable[..., Any],
    after: Callable[..., Tensor | None],
    between: Callable[..., None],
) -> Callable[[], None]:
    """Call `before(module, args, kwargs)` and `after(module, args, kwargs, output)` at each attention to
    text, `between(module, args, kwargs)` at each of cells to each other; gives the way back."""
    handles = [
        module.register_forward_pre_hook(between, with_kwargs=True)
        for module in kind.beside(denoiser).values()
    ]
    for module in kind.modules(denoiser).values():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo
