"""What a detail pass has drawn, set into what a pipeline gives, in whatever form that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from conceptkit.inference.call_hook import Given


@dataclass(frozen=True, eq=False)
class Details:
    """pixels (P, 3, H, W) in [0, 1]: pictures with each concept's part drawn anew. changed (P, 1, H, W):
    where they are not the base's own. inside (P, 1, h, w): the cells that were changed. size: of their
    latents, (P, c, h, w). encode: gives these. lost: the numbers of each picture's concepts of which nothing
    was set in.
    """

    pixels: Tensor
    changed: Tensor
    inside: Tensor
    size: torch.Size
    encode: Callable[[Tensor], Tensor]
    lost: tuple[tuple[int, ...], ...] = ()

    def put_into(self, result: Given) -> Given:
        """What a pipeline gives for the base's own pictures, with the parts set in; in the same form."""
        given: Any = result
        if isinstance(given, tuple):
            images, *more = given
            given = (self._in_pictures(images), *more)
        else:
            given.images = self._in_pictures(given.images)
        put: Given = given
        return put

    def _in_pictures(self, images: Any) -> Any:
        """PIL pictures in a list, arrays (P, H, W, 3) or tensors (P, 3, H, W) in [0, 1], or latents."""
        if isinstance(images, Tensor) and images.shape == self.size:
            return torch.where(self.inside.to(images.device), self.encode(self.pixels).to(images), images)
        if isinstance(images, Tensor):
            return torch.where(self.changed.to(images.device), self.pixels.to(images), images)
        pixels, changed = (part.permute(0, 2, 3, 1).cpu().numpy() for part in (self.pixels, self.changed))
        if isinstance(images, np.ndarray):
            return np.where(changed, pixels, images)
        whole = np.stack([np.asarray(image.convert("RGB")) for image in images])
        shown = (255 * pixels).round().astype(np.uint8)
        return [Image.fromarray(one) for one in np.where(changed, shown, whole)]
