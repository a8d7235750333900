"""Several concepts side by side: each has a window of the base's own size in one wide picture.

What a base cannot draw in one frame, two things of one class or any two on a small base, it draws in two
frames that overlap. In every step the UNet sees each window by itself, told of one concept alone, and the
predictions are blended where windows overlap (MultiDiffusion, 2302.08113, eq. 5, with weights that fall off
towards the edges). Nothing is asked of the UNet that it was not trained for.
"""

import functools
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conceptkit.errors import BadPrompt, BadRegion
from conceptkit.inference.method_override import override
from conceptkit.inference.prompt_parsing import clause_of_each

STRIDE = 3 / 4
"""From one window to the next, in widths of a window: with half of one, neighbours grow into each other."""
SAID = ("prompt", "prompt_2")
REMEMBERED = 16
"""Prompts whose features are known again when they come back as embeddings."""


def can_have_windows(pipe: Any) -> bool:
    """Whether a pipeline begins with noise of a size that it is told, and its UNet gives what it is given."""
    config = pipe.unet.config
    told = inspect.signature(pipe.prepare_latents).parameters if hasattr(pipe, "prepare_latents") else {}
    return {"height", "width"} <= set(told) and config.in_channels == config.out_channels


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


class Windows:
    """Side by side on one pipeline: `encode` notes what prompts say, `open` widens what is drawn."""

    def __init__(self, pipe: Any, words: Mapping[str, str]) -> None:
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

        forward = unet.forward

        @functools.wraps(forward)
        def by_windows(
            sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, *args: Any, **more: Any
        ) -> Any:
            if not getattr(self._here, "inside", False) and self._count > 1:
                rows = [_among(self._known, row) for row in encoder_hidden_states]
                if any(rows):
                    return self._blended(rows, sample, timestep, encoder_hidden_states, *args, **more)
            return forward(sample, timestep, encoder_hidden_states, *args, **more)

        back = [
            override(pipe, "prepare_latents", prepare_latents),
            override(unet, "forward", by_windows),
        ]

        def undo() -> None:
            for restore in back:
                restore()

        return undo

    def _blended(
        self,
        rows: Sequence[_WindowPrompts | None],
        sample: Tensor,
        timestep: Any,
        hidden: Tensor,
        *args: Any,
        **more: Any,
    ) -> Any:
        """What the UNet predicts for the whole width; `rows` says which prompt each row of the batch is."""
        unet, size = self._pipe.unet, _size(self._pipe.unet)
        count, width = self._count, sample.shape[-1]
        if sample.shape[-2] != size or not size + count - 1 <= width <= count * size:
            cell = int(self._pipe.vae_scale_factor)
            native, asked = size * cell, f"{width * cell}x{sample.shape[-2] * cell}"
            raise BadRegion(
                f"{count} concepts side by side do not fit {asked} pixels; leave both sizes out, or give "
                f"a height of {native} and a width above {native} and up to {count * native}"
            )
        begin = starts(width, size, count)
        weights = shares(begin, size, width).to(sample)
        blended = torch.zeros_like(sample)
        result: Any = None
        for k, start in enumerate(begin):
            part = slice(start, start + size)
            told, given = self._in_window(rows, k, hidden, more)
            self._here.inside = True
            try:
                result = unet(sample[..., part].contiguous(), timestep, told, *args, **given)
            finally:
                self._here.inside = False
            blended[..., part] += result[0] * weights[k, part]
        return (blended,) if isinstance(result, tuple) else type(result)(sample=blended)

    def _in_window(
        self, rows: Sequence[_WindowPrompts | None], k: int, hidden: Tensor, more: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """What the UNet is told in window k: features of each row of the batch, and what goes with them."""
        told, given = hidden.clone(), dict(more)
        beside = given.get("added_cond_kwargs") or {}
        pooled = beside["text_embeds"].clone() if "text_embeds" in beside else None
        for i, row in enumerate(rows):
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
            native = _size(self._pipe.unet) * int(self._pipe.vae_scale_factor)
            for of_width in (1, 5) if ids.shape[1] == 6 else ():
                ids[:, of_width] = ids[:, of_width].clamp(max=native)
            beside = {**beside, "time_ids": ids}
        if beside:
            given["added_cond_kwargs"] = beside
        return told, given


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
