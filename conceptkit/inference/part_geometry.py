"""Parts of pictures: which box is around one, how it is cut out at full size, and how it is set back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels."""
FILLED = 1.0
"""Share of a part's longer side that the base's thing takes."""
LEAST = 0.375
"""Share of the picture's side below which no part is cut out: there is nothing to enlarge in a few cells."""
SOFT = 1 / 128
"""Standard deviation of a part's edge, by the picture's longer side."""


def box_around(mask: Tensor) -> Box:
    """A box of the picture's proportions around a mask (H, W), which fills FILLED of it; all of the picture
    for an empty one."""
    height, width = mask.shape
    rows, columns = (mask.any(dim=d).nonzero().flatten().tolist() for d in (1, 0))
    if not rows:
        return 0, 0, width, height
    tall, wide = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    share = min(1.0, max(LEAST, max(tall / height, wide / width) / FILLED))
    w, h = round(share * width), round(share * height)
    x = min(max(0, round((columns[0] + columns[-1] + 1 - w) / 2)), width - w)
    y = min(max(0, round((rows[0] + rows[-1] + 1 - h) / 2)), height - h)
    return x, y, x + w, y + h


def cut_out(pictures: Tensor, boxes: Sequence[Box]) -> Tensor:
    """What is in each picture's box, at the size of the pictures (n, c, H, W)."""
    return torch.cat(
        [
            resized(one[None, :, y0:y1, x0:x1], pictures.shape[2:])
            for one, (x0, y0, x1, y1) in zip(pictures, boxes, strict=True)
        ]
    )


def set_back(parts: Tensor, boxes: Sequence[Box], pictures: Tensor) -> Tensor:
    """Pictures (n, c, H, W) with the enlarged parts in their boxes, at the size of these."""
    found = pictures.clone()
    for one, part, (x0, y0, x1, y1) in zip(found, parts, boxes, strict=True):
        one[:, y0:y1, x0:x1] = resized(part[None], (y1 - y0, x1 - x0))[0]
    return found


def resized(pictures: Tensor, size: Sequence[int]) -> Tensor:
    """Pictures (n, c, h, w) with values in [0, 1] at another size (H, W)."""
    return F.interpolate(pictures, tuple(size), mode="bicubic", antialias=True).clamp(0, 1)


def softened(free: Tensor) -> Tensor:
    """(n, 1, H, W) with soft edges."""
    deviation = SOFT * max(free.shape[2:])
    return torch.from_numpy(ndimage.gaussian_filter(free.cpu().numpy(), (0, 0, deviation, deviation))).to(
        free
    )
