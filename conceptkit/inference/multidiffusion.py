"""Several concepts side by side: each has a window of the base's own size in one wide picture.

What a base cannot draw in one frame, two things of one class or any two on a small base, it draws in two
frames that overlap. In every step the UNet sees each window by itself, told of one concept alone, and the
predictions are blended where windows overlap (MultiDiffusion, 2302.08113, eq. 5, with weights that fall off
towards the edges). Nothing is asked of the UNet that it was not trained for.
"""

from __future__ import annotations

import functools
import inspect
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conceptkit.errors import BadPrompt, BadRegion
from conceptkit.inference.method_override import override
from conceptkit.inference.split_prompt import clause_of_each

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


STRIDE = 3 / 4
"""From one window to the next, in widths of a window: with half of one, neighbours grow into each other."""
SAID = ("prompt", "prompt_2")
OF_ONE_FRAME = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
    "ip_adapter_masks",
    "gligen",
)
"""What a UNet may be given beside latents that is about one frame: of ControlNet, T2I-Adapter, masks."""
_GIVEN = re.compile(r"^(?!ip_adapter_)(?:\w+_)?(?:image|images|mask|boxes|latent_image|pose|depth_map)$")
REMEMBERED = 16
"""Prompts whose features are known again when they come back as embeddings."""


def can_have_windows(pipe: DiffusionPipeline) -> bool:
    """Whether a pipeline begins with noise of a size that it is told, its UNet gives what it is given, and
    nothing of a picture's size is given beside: no picture to begin with or to follow, no mask, no boxes."""
    if getattr(pipe, "unet", None) is None:
        return False
    config = pipe.unet.config
    told = inspect.signature(pipe.prepare_latents).parameters if hasattr(pipe, "prepare_latents") else {}
    beside = [name for name in inspect.signature(type(pipe).__call__).parameters if _GIVEN.search(name)]
    return {"height", "width"} <= set(told) and config.in_channels == config.out_channels and not beside


def starts(width: int, size: int, count: int) -> list[int]:
    """Where `count` windows of `size` begin, evenly over `width`; the last one ends with it."""
    if count == 1:
        return [0]
    return [round(k * (width - size) / (count - 1)) for k in range(count)]


def shares(begin: Sequence[int], size: int, width: int) -> Tensor:
    """Each window's weight in each column, (count, width); the weights of a column add up to 1.

    A weight is the distance to the window's nearer edge, but no less is needed where a window is alone.
    """
    middle = torch.arange(size) + 0.5
    tent = torch.minimum(middle, size - middle)
    weights = torch.zeros(len(begin), width)
    for k, start in enumerate(begin):
        weights[k, start : start + size] = tent
    return weights / weights.sum(dim=0)


@dataclass(frozen=True, eq=False)
class _WindowPrompts:
    """One prompt as the UNet would read it (T, d), and what it reads in each window: features (T, d), and
    pooled (p,) where the base has two encoders."""

    whole: Tensor
    windows: tuple[tuple[Tensor, Tensor | None], ...]


@dataclass(frozen=True, eq=False)
class _Whole:
    """One call of the UNet for the whole width: its arguments, the prompt behind each row of its batch, and
    where windows begin."""

    call: inspect.BoundArguments
    rows: Sequence[_WindowPrompts | None]
    begin: Sequence[int]


class Windows:
    """Side by side on one pipeline: `encode` notes what prompts say, `open` widens what is drawn."""

    def __init__(self, pipe: DiffusionPipeline, words: Mapping[str, str]) -> None:
        self._pipe, self._words = pipe, words
        self._here = threading.local()  # one drawing in each thread
        self._remembered: deque[_WindowPrompts] = deque(maxlen=REMEMBERED)

    @property
    def _known(self) -> tuple[_WindowPrompts, ...]:
        return getattr(self._here, "known", ())

    @property
    def _count(self) -> int:
        """Windows of the pictures that are being drawn."""
        return len(self._known[0].windows) if self._known else 1

    def forget(self) -> None:
        """Whatever this thread draws next is not about the prompts that were read last."""
        self._here.known = ()

    def encode(
        self,
        encode: Callable[..., Any],
        bound: inspect.BoundArguments,
        encoded: Sequence[Any],
        note: Callable[[Tensor, Sequence[str]], None],
    ) -> None:
        """Read the clauses of the prompts that were just `encoded`, by the pipeline's own `encode`.

        note: is told the features of each window and the prompts behind them.
        Raises BadPrompt when the prompts of one call name different numbers of concepts.
        """
        self._here.known = ()
        prompt = bound.arguments.get("prompt")
        if encoded[0] is None:
            return
        if not prompt:
            known = [found for row in encoded[0] if (found := _among(self._remembered, row))]
            if len(known) == len(encoded[0]) and len({len(told.windows) for told in known}) == 1:
                self._here.known = tuple(known)
            return
        texts = {name: _listed(given) for name in SAID if (given := bound.arguments.get(name))}
        clauses = {name: [clause_of_each(text, self._words) for text in told] for name, told in texts.items()}
        counts = {max(len(found), 1) for found in clauses["prompt"]}
        if len(counts) > 1:
            raise BadPrompt(
                f"These prompts name {' and '.join(map(str, sorted(counts)))} concepts, so their pictures "
                "differ in width; draw them in calls of their own"
            )
        (count,) = counts
        if count == 1:
            return
        windows = []
        for k in range(count):
            said = {
                name: [
                    found.get(list(first)[k], text)  # whatever the order in a second prompt
                    for first, found, text in zip(clauses["prompt"], clauses[name], told, strict=True)
                ]
                for name, told in texts.items()
            }
            again = {**bound.arguments, **said, "do_classifier_free_guidance": False}
            windows.append(encode(**{name: value for name, value in again.items() if name != "self"}))
            note(windows[-1][0], said["prompt"])
        self._here.known = tuple(
            _WindowPrompts(
                encoded[0][row].detach().clone(),
                tuple((found[0][row], found[2][row] if len(found) > 2 else None) for found in windows),
            )
            for row in range(len(encoded[0]))
        )
        self._remembered.extendleft(self._here.known)

    def open(self) -> Callable[[], None]:
        """Widen the pipeline's latents, and let its UNet see one window at a time; gives the way back."""
        pipe, unet = self._pipe, self._pipe.unet
        size = _size(unet)
        original = pipe.prepare_latents
        signature = inspect.signature(original)

        @functools.wraps(original)
        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            count, cell = self._count, int(pipe.vae_scale_factor)
            asked = (bound.arguments["height"], bound.arguments["width"])
            if count > 1 and bound.arguments.get("latents") is None and asked == (size * cell, size * cell):
                bound.arguments["width"] = (size + (count - 1) * round(size * STRIDE)) * cell
            return original(*bound.args, **bound.kwargs)

        def narrow(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            self._here.whole = None
            if getattr(self._here, "inside", False) or self._count < 2:
                return None
            call = accepted.bind(*args, **kwargs)
            rows = [_among(self._known, row) for row in call.arguments["encoder_hidden_states"]]
            if not any(rows):
                return None
            self._here.whole = whole = self._divided(rows, call)
            return self._in_window(whole, 0)

        def blend(_: nn.Module, __: Any, first: Any) -> Any:
            whole, self._here.whole = getattr(self._here, "whole", None), None
            return None if whole is None else self._blended(whole, first)

        (_, *parameters) = inspect.signature(type(unet).forward).parameters.values()
        accepted = inspect.Signature(parameters)
        # Before and after everybody else's hooks, which see windows going in and the whole coming out.
        hooks = (
            unet.register_forward_pre_hook(narrow, with_kwargs=True, prepend=True),
            unet.register_forward_hook(blend, prepend=True),
        )
        restore = override(pipe, "prepare_latents", prepare_latents)

        def undo() -> None:
            restore()
            for hook in hooks:
                hook.remove()

        return undo

    def _divided(self, rows: Sequence[_WindowPrompts | None], call: inspect.BoundArguments) -> _Whole:
        """One call of the UNet for the whole width, as the calls of its windows; `rows` says which prompt
        each row of the batch is. Raises BadRegion on a size or an argument that has no windows."""
        size, count = _size(self._pipe.unet), self._count
        height, width = call.arguments["sample"].shape[-2:]
        if height != size or not size + count - 1 <= width <= count * size:
            cell = int(self._pipe.vae_scale_factor)
            native, asked = size * cell, f"{width * cell}x{height * cell}"
            raise BadRegion(
                f"{count} concepts side by side do not fit {asked} pixels; leave both sizes out, or give "
                f"a height of {native} and a width above {native} and up to {count * native}"
            )
        beside = call.arguments.get("cross_attention_kwargs") or {}
        given = [name for name in OF_ONE_FRAME if call.arguments.get(name) is not None]
        if given := given + [name for name in OF_ONE_FRAME if name in beside]:
            raise BadRegion(
                f"{' and '.join(given)} is about one frame, and each concept has a window of its own here; "
                "attach with side_by_side=False, or leave it out"
            )
        return _Whole(call, rows, starts(width, size, count))

    def _blended(self, whole: _Whole, first: Any) -> Any:
        """What the UNet predicts for the whole width, from what it gave for the first window."""
        unet, size = self._pipe.unet, _size(self._pipe.unet)
        sample = whole.call.arguments["sample"]
        weights = shares(whole.begin, size, sample.shape[-1]).to(sample)
        blended, result = torch.zeros_like(sample), first
        for k, start in enumerate(whole.begin):
            if k:
                args, kwargs = self._in_window(whole, k)
                self._here.inside = True
                try:
                    result = unet(*args, **kwargs)
                finally:
                    self._here.inside = False
            part = slice(start, start + size)
            blended[..., part] += result[0] * weights[k, part]
        return (blended,) if isinstance(result, tuple) else type(result)(sample=blended)

    def _in_window(self, whole: _Whole, k: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the UNet is told in window k: its part of the picture, features of each row of the batch, and
        what goes with them."""
        start, size = whole.begin[k], _size(self._pipe.unet)
        given = {**whole.call.arguments}
        given["sample"] = given["sample"][..., start : start + size].contiguous()
        told = given["encoder_hidden_states"].clone()
        beside = given.get("added_cond_kwargs") or {}
        pooled = beside["text_embeds"].clone() if "text_embeds" in beside else None
        for i, row in enumerate(whole.rows):
            if row is None:
                continue
            features, summary = row.windows[k]
            told[i] = features.to(told)
            if pooled is not None and summary is not None:
                pooled[i] = summary.to(pooled)
        if pooled is not None:
            beside = {**beside, "text_embeds": pooled}
        if "time_ids" in beside:  # SDXL is told sizes, and a window has the base's own
            ids = beside["time_ids"].clone()
            native = size * int(self._pipe.vae_scale_factor)
            for of_width in (1, 5) if ids.shape[1] == 6 else ():
                ids[:, of_width] = ids[:, of_width].clamp(max=native)
            beside = {**beside, "time_ids": ids}
        if beside:
            given["added_cond_kwargs"] = beside
        given["encoder_hidden_states"] = told
        return (given.pop("sample"), given.pop("timestep")), given


def _among(known: Iterable[_WindowPrompts], row: Tensor) -> _WindowPrompts | None:
    """The prompt whose features (T, d) a row of the UNet's batch is; None for one without things in it."""
    for told in tuple(known):
        if told.whole.shape == row.shape and torch.equal(told.whole.to(row), row):
            return told
    return None


def _listed(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _size(unet: Any) -> int:
    """Cells on a side of the latents that a UNet was trained on."""
    size = unet.config.sample_size
    return int(size if isinstance(size, int) else size[-1])
