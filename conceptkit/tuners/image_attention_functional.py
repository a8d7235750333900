"""ViCo (2306.00971) as pure functions of tensors: cells of a picture look at patches of a reference photo.

Both go through the same frozen UNet. In some of its blocks each cell attends to those patches in which the
photo's own cross-attention finds the concept's word; which ones is decided by Otsu's threshold. Attention to
that word is kept like attention to the end of text, which lies on the whole subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conceptkit.concepts.delta import Factors


def otsu(values: Tensor) -> Tensor:
    """Which values of each row (n, p) lie above its threshold: (n, p) bool, all of them in an even row.

    The threshold parts a row so that the variance between its two parts is largest (Otsu, 1979); all p - 1
    ways to part it are compared, where the authors' program compares ten.
    """
    count = values.shape[1]
    if count == 1:
        return torch.ones_like(values, dtype=torch.bool)
    device = values.device
    values = values.detach().cpu().double()  # not every device has double precision
    ordered = values.sort(dim=1).values
    below = torch.arange(1, count)
    sums = ordered.cumsum(dim=1)
    low = sums[:, :-1] / below
    high = (sums[:, -1:] - sums[:, :-1]) / (count - below)
    between = below * (count - below) * (high - low).square()
    return (values >= ordered.gather(1, between.argmax(dim=1, keepdim=True) + 1)).to(device)


def look(block: Any, cells: Tensor, patches: Tensor, mask: Tensor, maps: Mapping[str, Factors]) -> Tensor:
    """What the cells (n, p, d) take from the patches (n, r, d) where the mask (n, r) is True: (n, p, d).

    softmax(Q K^T / sqrt(d_h)) V W_out^T: queries, keys and values are read by the block's own self-attention,
    which stands still, with the factors of "to_q", "to_k" and "to_v" added to its maps; W_out is the product
    of the factors of "to_out" alone, so that nothing is taken while it is zero. (The authors' block begins at
    random and has a self-attention and a feed-forward of its own besides.)
    """
    attn = block.attn1
    cells, patches = block.norm1(cells), block.norm1(patches)
    q, k, v = (
        (getattr(attn, name)(rows) + maps[name].apply(rows)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        for name, rows in (("to_q", cells), ("to_k", patches), ("to_v", patches))
    )
    taken = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], scale=attn.scale)
    return maps["to_out"].apply(taken.transpose(1, 2).flatten(2))


def unlike(word: Tensor, end: Tensor) -> Tensor:
    """Mean squared difference of two attention maps (n, r), each divided by its largest value: (n,).

    Only the word's map gets a gradient: the end of text is where the word should be, not the other way round.
    """
    return (_by_largest(word) - _by_largest(end.detach())).square().mean(dim=1)


def _by_largest(values: Tensor) -> Tensor:
    values = values.float()
    return values / values.amax(dim=1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
