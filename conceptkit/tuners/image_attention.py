"""Image cross-attention on a UNet: hooks on some of its decoder's blocks, which leave no trace.

A photo is looked at first: the UNet runs on it, and the blocks remember its patches and where its
cross-attention finds the concept's word. Then the UNet runs on the pictures, and the rows that are shown the
photo take from it what `formulas.look` gives. A UNet that is shown nothing is the frozen one, bit for bit.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from conceptkit.base.attention import attention_shares
from conceptkit.concepts.delta import Delta, Maps
from conceptkit.errors import BadBase, BaseMismatch
from conceptkit.tuners import image_attention_functional

MAPS = ("to_q", "to_k", "to_v", "to_out")
_DECODER = re.compile(r"(up_blocks\.\d+\.attentions\.\d+)\.transformer_blocks\.\d+")


@dataclass(frozen=True, eq=False)
class Seen:
    """A photo as a UNet has it at some step with some prompts, block by block.

    patches (n, r, d); word, end (n, r): the attention of the patches to the concept's word, and to the end of
    text where that was asked for. rows, of: the rows of a batch that are shown it, and which of the n each.
    scale: of what they take from it. where: from a number of cells, how much of it each of them takes, in
    each picture (P, cells).
    """

    attention: ImageAttention
    rows: Tensor
    of: Tensor
    patches: dict[str, Tensor] = field(default_factory=dict)
    word: dict[str, Tensor] = field(default_factory=dict)
    end: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0
    where: Callable[[int], Tensor] | None = None

    def among(
        self,
        rows: Tensor,
        of: Tensor,
        scale: float = 1.0,
        where: Callable[[int], Tensor] | None = None,
    ) -> Seen:
        """The same, shown to these rows of a batch, and taken by these cells of them."""
        return replace(self, rows=rows, of=of, scale=scale, where=where)

    def unlike(self) -> Tensor:
        """How far attention to the word is from that to the end of text, over all blocks: (n,)."""
        apart = [image_attention_functional.unlike(self.word[name], self.end[name]) for name in self.word]
        return torch.stack(apart).sum(dim=0)


class ImageAttention:
    """The blocks of a UNet that can look at a photo, with the factors of their maps.

    Raises BadBase when the UNet has no such blocks, BaseMismatch when the factors are for others.
    """

    def __init__(self, unet: nn.Module, given: Maps) -> None:
        self.blocks, maps = blocks(unet), Delta(given)
        _check(sizes(unet), maps)
        self._maps = {name: {short: maps[f"{name}.{short}"] for short in MAPS} for name in self.blocks}
        self._here = threading.local()  # one drawing in each thread

    def install(self) -> Callable[[], None]:
        """Put the hooks on; the way back is returned."""
        handles = []
        for name, block in self.blocks.items():
            handles.append(block.attn2.register_forward_pre_hook(self._attend(name), with_kwargs=True))
            handles.append(block.register_forward_hook(self._pass(name)))

        def undo() -> None:
            for handle in handles:
                handle.remove()

        return undo

    def look(self, run: Callable[[], object], own: Tensor) -> Seen:
        """What the blocks see while `run` runs the UNet on a photo, n times with n prompts.

        own (n, T, 1 or 2): how attention to each position of the prompts is added up to that to the concept's
        word, and to the end of text.
        """
        every = torch.arange(len(own), device=own.device)
        seen = Seen(self, every, every)
        self._here.looking = (seen, own)
        try:
            run()
        finally:
            self._here.looking = None
        return seen

    def show(self, seen: Seen | None) -> None:
        """What the next runs of the UNet in this thread are shown."""
        self._here.shown = seen

    def _attend(self, name: str) -> Callable[..., None]:
        def attend(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if (looking := getattr(self._here, "looking", None)) is not None:
                seen, own = looking
                queries = args[0] if args else kwargs["hidden_states"]
                found = attention_shares(module, queries, kwargs["encoder_hidden_states"], own)
                seen.word[name] = found[:, 0]
                if found.shape[1] > 1:
                    seen.end[name] = found[:, 1]

        return attend

    def _pass(self, name: str) -> Callable[..., Tensor | None]:
        def pass_on(block: nn.Module, _: Any, made: Tensor) -> Tensor | None:
            if (looking := getattr(self._here, "looking", None)) is not None:
                looking[0].patches[name] = made
                return None
            seen = getattr(self._here, "shown", None)
            if seen is None:
                return None
            rows, of = seen.rows.to(made.device), seen.of.to(made.device)
            mask = image_attention_functional.otsu(seen.word[name])
            taken = image_attention_functional.look(
                block, made[rows], seen.patches[name][of], mask[of], self._maps[name]
            )
            if seen.where is not None:
                share = seen.where(made.shape[1]).to(taken)
                taken = taken * share[rows % len(share)].unsqueeze(2)
            return made.index_add(0, rows, taken.to(made.dtype), alpha=seen.scale)

        return pass_on


@contextmanager
def showing(seen: Seen | None) -> Iterator[None]:
    """Runs of the UNet inside of the block are shown the photo; with None they are as ever."""
    if seen is None:
        yield
        return
    seen.attention.show(seen)
    try:
        yield
    finally:
        seen.attention.show(None)


def blocks(unet: nn.Module) -> dict[str, Any]:
    """The transformer blocks that look at a photo: the last of every second attention on the way up.

    On Stable Diffusion 1.x these are the four that the paper takes. Raises BadBase when there is none.
    """
    last: dict[str, tuple[str, nn.Module]] = {}
    for name, module in unet.named_modules():
        found = _DECODER.fullmatch(name)
        if found and getattr(module, "norm_type", "") == "layer_norm" and module.attn2 is not None:
            last[found[1]] = (name, module)
    every = list(last.values())
    if not every:
        raise BadBase(
            f"{type(unet).__name__} has no attention on its way up, so it cannot look at a reference photo; "
            "learn with --method custom"
        )
    return dict(every[1::2] or every)


def sizes(unet: nn.Module) -> dict[str, tuple[int, int]]:
    """Map -> (o, d), of all maps that looking takes."""
    found = {}
    for name, block in blocks(unet).items():
        attn = block.attn1
        for short in MAPS:
            linear = attn.to_out[0] if short == "to_out" else getattr(attn, short)
            found[f"{name}.{short}"] = tuple(linear.weight.shape)
    return found


def _check(wanted: Mapping[str, tuple[int, int]], maps: Delta) -> None:
    for name in wanted.keys() | maps.keys():
        factors = maps.get(name)
        given = None if factors is None else factors.shape
        if given is None or given != wanted.get(name):
            raise BaseMismatch(
                f"The image attention {name} is {given} and should be {wanted.get(name)}; "
                "use the base it was learned on"
            )
