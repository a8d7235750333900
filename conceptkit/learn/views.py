"""Photos as the loop sees them: augmented views, encoded once into a pool, with their masks and prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conceptkit.base import Base
from conceptkit.photos import Framing, PhotoSet, augment

# Half of the prompts go on after the subject: what is learned at the end of text is silent in longer ones.
CONTEXTS = (
    "photo of a {}",
    "a photo of a {}",
    "a {}",
    "a picture of a {}",
    "photo of a {} as it is",
    "a photo of a {} seen here",
    "a {} in this photo",
    "a picture of a {} today",
)
SMALL = 256
GENTLE = Framing(zoom_out=(0.7, 1.0), zoom_in=(1.1, 1.3), still=0.4)
"""For bases of small pictures, where a subject at a third of the canvas is a smudge."""


@dataclass(frozen=True, eq=False)
class Pool:
    """latents (n, c, h, w), masks (n, h, w), and the index of each view's prompt in `prompts`."""

    latents: Tensor
    masks: Tensor
    prompt_of: Tensor
    prompts: tuple[str, ...]


def picture_size(base: Base) -> int:
    """Pixels on a side of what the base draws."""
    return int(base.unet.config.sample_size) * int(base.pipe.vae_scale_factor)


def pool(base: Base, photos: PhotoSet, words: str, count: int, seed: int) -> Pool:
    """`count` views of the photos in turn; `words` is what a prompt calls the subject."""
    size, cell = picture_size(base), int(base.pipe.vae_scale_factor)
    small = photos.for_size(size)
    rng = np.random.default_rng((seed, 1))
    framing = GENTLE if size < SMALL else Framing()
    views = [augment(small.pictures[k % len(small)], size, rng, cell, framing=framing) for k in range(count)]
    texts = [_prompt(view.prefix, CONTEXTS[int(rng.integers(len(CONTEXTS)))], words) for view in views]
    prompts = tuple(dict.fromkeys(texts))
    pixels = torch.from_numpy(np.stack([view.pixels for view in views]))
    return Pool(
        latents=encode(base, pixels),
        masks=torch.from_numpy(np.stack([view.mask for view in views])).to(base.device),
        prompt_of=torch.tensor([prompts.index(text) for text in texts]),
        prompts=prompts,
    )


def _prompt(prefix: str, context: str, words: str) -> str:
    """A view's words belong to the thing: "a far away " gives "photo of a far away <my_dog> dog"."""
    return context.format(prefix.removeprefix("a ") + words)


@torch.no_grad()
def encode(base: Base, pixels: Tensor, batch: int = 8) -> Tensor:
    """Latent means of pictures (n, 3, h, w) in [-1, 1], scaled and shifted as the base's UNet reads them."""
    vae = base.pipe.vae
    parts = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist.mode() for part in pixels.split(batch)]
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return ((torch.cat(parts).float() - shift) * vae.config.scaling_factor).to(base.device)
