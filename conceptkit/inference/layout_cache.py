"""Layouts that were drawn before: the same prompt, noise and settings on the same base are laid out once."""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from conceptkit.inference.layout import Layout
from conceptkit.inference.prompt_scene import PromptScene

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

KEPT = 16
"""Layouts that are kept of one denoiser."""
KEPT_BYTES = 1 << 27
"""Of their predictions, the last layout apart."""

_known: WeakKeyDictionary[nn.Module, dict[Hashable, KnownLayout]] = WeakKeyDictionary()
_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class KnownLayout:
    """A layout, and what the base predicted first of the noise that the call began with."""

    layout: Layout
    first: Tensor

    def begins_with(self, predicted: Tensor) -> bool:
        """Whether the base still predicts that: neither its weights nor its settings have changed."""
        return self.first.shape == predicted.shape and torch.allclose(
            self.first, predicted.to(self.first), rtol=1e-3, atol=1e-4
        )

    @property
    def size(self) -> int:
        """Bytes of its predictions."""
        ends = [one for one in (self.layout.begun, self.layout.latents) if one is not None]
        seen = [one.seen for one in self.layout.pictures if one.seen is not None]
        return sum(each.nbytes for each in (*self.layout.predictions, *ends, *seen))


def call_key(
    pipe: DiffusionPipeline,
    bound: inspect.BoundArguments,
    scenes: tuple[PromptScene, ...],
    given: Mapping[str, np.ndarray],
    without: Collection[str],
) -> Hashable | None:
    """What a layout depends on beside the weights; None where an argument cannot be compared, and with a
    style, which is part of the layout.

    without: arguments that change no layout.
    """
    if any(scene.styles for scene in scenes):
        return None
    asked = {name: value for name, value in bound.arguments.items() if name not in without}
    asked.setdefault("generator", None)
    try:
        regions = tuple((name, _comparable(torch.from_numpy(given[name]))) for name in sorted(given))
        return (
            type(pipe).__name__,
            type(pipe.scheduler).__name__,
            repr(sorted(pipe.scheduler.config.items())),
            scenes,
            regions,
            tuple((name, _comparable(value)) for name, value in sorted(asked.items())),
        )
    except TypeError:
        return None


def known_layout(denoiser: nn.Module, key: Hashable | None) -> KnownLayout | None:
    """The layout of a key; None where there is none."""
    with _lock:
        held = _known.get(denoiser, {})
        found = held.pop(key, None)
        if found is not None:
            held[key] = found  # the last one that was asked for goes last
        return found


def keep_layout(denoiser: nn.Module, key: Hashable | None, known: KnownLayout) -> None:
    """Remember a layout; the oldest ones go when there are too many."""
    if key is None:
        return
    with _lock:
        held = _known.setdefault(denoiser, {})
        held[key] = known
        while len(held) > 1 and (len(held) > KEPT or sum(each.size for each in held.values()) > KEPT_BYTES):
            del held[next(iter(held))]


def _comparable(value: Any) -> Hashable:
    """What says whether two arguments are the same. Raises TypeError for what cannot be compared."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), str(value.dtype), _digest(value))
    if isinstance(value, torch.Generator):
        return _digest(value.get_state())
    if isinstance(value, list | tuple):
        return tuple(_comparable(each) for each in value)
    if isinstance(value, dict):
        return tuple((name, _comparable(each)) for name, each in sorted(value.items()))
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{type(value).__name__} cannot be compared")


def _digest(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()
