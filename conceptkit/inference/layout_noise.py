"""The noise that a layout begins with: that of the call, or another where that one gives no good layout."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from conceptkit.base.architectures import Architecture
from conceptkit.inference.layout import Layout
from conceptkit.rng import hash_of

Generators = torch.Generator | Sequence[torch.Generator] | None


class NoiseSearch:
    """Tries other noise for those pictures of a call whose layout lacks something, and remembers the best.

    noise: what the next layout begins with, of each picture as the pipeline takes it; None: what the call
    itself does. able: whether the pipeline takes noise. architecture: says how it takes it.
    """

    def __init__(self, bound: inspect.BoundArguments, architecture: Architecture | None = None) -> None:
        self._bound, self._kind = bound, architecture or Architecture()
        self.able = "latents" in bound.signature.parameters
        self.noise: Tensor | None = None
        self._tries: list[int] = []
        self._best: list[tuple[tuple[int, int], int, Tensor]] = []

    def note(self, attempt: int, layout: Layout) -> None:
        """How the layout of an attempt came out."""
        generator = self._bound.arguments.get("generator")
        like = layout.predictions[0][: len(layout.pictures), : layout.channels]
        given = self._bound.arguments.get("latents")
        if self.noise is None:
            self.noise = given if given is not None else self._noise(copied(generator), like)
            self._tries = [1] * len(like)
        for p, picture in enumerate(layout.pictures):
            found = (picture.rank, self._tries[p], self.noise[p].clone())
            if not attempt:
                self._best.append(found)
            elif picture.rank > self._best[p][0]:
                self._best[p] = found
        other = self._noise(_others(generator, self.noise, attempt), like)
        self.noise = self.best()
        for p, picture in enumerate(layout.pictures):
            if not picture.complete:
                self.noise[p], self._tries[p] = other[p], attempt + 2

    def best(self) -> Tensor:
        """The best noise of each picture so far."""
        self._tries = [tries for _, tries, _ in self._best]
        return torch.stack([noise for _, _, noise in self._best])

    def named(self, layout: Layout) -> Layout:
        """A layout that says which drawing each of its pictures is."""
        pairs = zip(layout.pictures, self._tries or [1] * len(layout.pictures), strict=True)
        return replace(layout, pictures=tuple(replace(picture, tries=tries) for picture, tries in pairs))

    def _noise(self, generator: Any, like: Tensor) -> Tensor:
        """What the pipeline makes of a generator for pictures of this size; the random state stays."""
        from diffusers.utils.torch_utils import randn_tensor

        shape = self._kind.noise_shape(like.shape)
        with torch.random.fork_rng(devices=[like.device] if like.device.type == "cuda" else []):
            noise = randn_tensor(shape, generator=generator, device=like.device, dtype=like.dtype)
        return self._kind.given_noise(noise)


def without_lowest(noise: Tensor, count: int) -> Tensor:
    """Noise (n, c, h, w) of variance 1 without its count x count lowest frequencies in a cosine transform,
    which sway colours and where a thing is (FreeInit, 2312.07537)."""
    waves = dctn(noise.double().cpu().numpy(), axes=(2, 3), norm="ortho")
    waves[..., :count, :count] = 0
    rest = torch.from_numpy(idctn(waves, axes=(2, 3), norm="ortho"))
    return (rest / rest.std(dim=(1, 2, 3), keepdim=True)).to(noise)


def copied(generator: Generators) -> Generators:
    """Generators that go on as the given ones will, and leave them as they are."""
    if generator is None:
        return None
    return _copy(generator) if isinstance(generator, torch.Generator) else [_copy(each) for each in generator]


def _copy(generator: torch.Generator) -> torch.Generator:
    again = torch.Generator(generator.device)
    again.set_state(generator.get_state())
    return again


def _others(generator: Any, noise: Tensor, attempt: int) -> list[torch.Generator]:
    """A generator for each picture, by the noise that it had and nothing else."""
    one = generator[0] if isinstance(generator, list | tuple) else generator
    device = "cpu" if one is None else one.device
    seeds = [hash_of("layout", attempt, each.float().cpu().numpy().tobytes()) for each in noise]
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]
