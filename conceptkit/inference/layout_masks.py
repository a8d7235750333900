"""From attention to masks: where each noun of a prompt is in a picture, as pure functions of arrays.

Attention says roughly where a thing is; things compete for cells, connected parts tell things of one class
apart, and the picture's own latents draw the outline.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Grid = NDArray[np.float64]
Cells = NDArray[np.bool_]

SPECK = 0.3
"""A part of a thing apart from its largest one is noise when it has less than this share of its attention."""
LEAST_AREA = 0.01
"""Share of the picture below which nothing of a thing can be seen."""
LEAST_CONTRAST = 1.6
"""Attention to a noun inside of its mask by that in the whole picture, below which the noun is nowhere."""
LEAST_SHARE = 0.4
"""Of N things of one class that are fewer connected parts, each has at least this by N of all their cells."""
NEAR = 2.0
"""Cells up to which a part is a piece of the thing beside it, and not another thing of its class."""
SPREAD = 1.0
"""Cells of latents by which a mask reaches over its outline, for what a concept's outline has more."""
SOFT = 0.6
"""Standard deviation of a mask's edge, in cells of latents."""


@dataclass(frozen=True, eq=False)
class Parts:
    """masks (N, H, W): who has which cells, none of them shared. contrast (N,): attention to a noun inside of
    its mask, by that in the whole picture. found (N,): whether the thing is there. spare (N,): whether there
    is another of its class, which nobody is. parted (N,): whether it is a piece of what the base drew as one.
    """

    masks: Cells
    contrast: NDArray[np.float64]
    found: Cells
    spare: Cells
    parted: Cells


def find_parts(
    seen: Grid,
    nouns: Sequence[str],
    left_of: Sequence[tuple[int, int]] = (),
    given: Mapping[int, Cells] | None = None,
    plural: Collection[int] = (),
    over: Sequence[tuple[int, int]] = (),
) -> Parts:
    """Where each of N nouns is, from the attention to it.

    seen (N, H, W): attention to each noun, one mention each. left_of: pairs of numbers of nouns, the first to
    the left of the second, which decides among nouns of one class. given: cells (H, W) of those whose place
    is known; the others stay out of them. plural: numbers of nouns that are several things, which have all
    parts; every other is in one place. over: pairs of numbers, the first in front of the second, which hides
    it wherever the first is.
    """
    given = given or {}
    free = ~np.any(list(given.values()), axis=0) if given else np.ones(seen.shape[1:], dtype=bool)
    level = np.stack([_scaled(ndimage.gaussian_filter(each, 0.5), free) for each in seen])
    for i in given:
        level[i] = 0
    top = level.max(axis=0)
    there = (top >= otsu(top[free])) & free if free.any() else free
    winner = level.argmax(axis=0)
    for front, back in over:
        if front not in given:
            winner[(winner == back) & (level[front] >= otsu(level[front][free]))] = front
    masks = np.stack([given[i] if i in given else (winner == i) & there for i in range(len(seen))])
    spare, parted = np.zeros((2, len(seen)), dtype=bool)
    for group in _classes(nouns, given):
        if plural and group[0] in plural:
            masks[group] = [without_specks(masks[i], level[i]) for i in group]
        else:
            union = np.logical_or.reduce(masks[group])
            masks[group], spare[group], parted[group] = _shared_out(
                union, level[group], _order(group, left_of)
            )
    contrast = np.array([_contrast(seen[i], i, masks, over) for i in range(len(seen))])
    areas = masks.mean(axis=(1, 2))
    found = (areas >= LEAST_AREA) & (contrast >= LEAST_CONTRAST)
    for i in range(len(seen)):
        if not masks[i].any():
            masks[i] = _likeliest(level[i], free & ~masks.any(axis=0))
    found |= np.array([i in given for i in range(len(seen))])
    return Parts(masks, contrast, found, spare & found, parted & found)


def _contrast(seen: Grid, i: int, masks: Cells, over: Sequence[tuple[int, int]]) -> float:
    """Attention (H, W) inside of mask `i` by that in the picture, but for what hides the thing."""
    if not masks[i].any():
        return 0.0
    open_to_it = ~np.any([masks[front] for front, back in over if back == i], axis=0)
    return float(seen[masks[i]].mean() / max(seen[np.broadcast_to(open_to_it, seen.shape)].mean(), 1e-12))


def otsu(values: Grid) -> float:
    """The threshold that parts values best into two classes (Otsu, 1979)."""
    ordered = np.sort(values.ravel())
    if len(ordered) < 2 or ordered[0] == ordered[-1]:
        return float(ordered[0]) if len(ordered) else 0.0
    n = np.arange(1, len(ordered))
    total = np.cumsum(ordered)
    below, above = total[:-1] / n, (total[-1] - total[:-1]) / (len(ordered) - n)
    k = int(np.argmax(n * (len(ordered) - n) * (above - below) ** 2))
    return float((ordered[k] + ordered[k + 1]) / 2)


def without_specks(mask: Cells, level: Grid) -> Cells:
    """The connected parts of a mask (H, W) that have a share of its attention worth a thing."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count < 2:
        return mask
    weight = ndimage.sum_labels(level, parts, np.arange(1, count + 1))
    kept: Cells = np.isin(parts, 1 + np.flatnonzero(weight >= SPECK * weight.max()))
    return kept


def soft_masks(masks: Cells, guide: Tensor | None, over: Sequence[tuple[int, int]] = ()) -> Tensor:
    """Masks (N, h, w) with soft edges on the cells of `guide` (c, H, W), which draw the outlines.

    over: pairs of numbers, the first in front of the second: where both reach, it has its way. Of two others
    the nearer has it. No cell is given away more than once.
    """
    rough = torch.from_numpy(masks).float()
    size = rough.shape[1:] if guide is None else guide.shape[1:]
    fine = F.interpolate(rough[None], tuple(size), mode="bilinear", align_corners=False)[0]
    if guide is not None:
        fine = joint_bilateral(fine, guide.float())
    hard = (fine >= 0.5).numpy()
    reach = np.stack(
        [ndimage.distance_transform_edt(~mask) if mask.any() else np.full(size, 1e9) for mask in hard]
    )
    wide = np.stack([each <= SPREAD for each in reach])
    for i, j in permutations(range(len(reach)), 2):
        if (i, j) not in over:
            wide[i] &= reach[i] <= reach[j]
    wide = ndimage.gaussian_filter(wide.astype(float), (0, SOFT, SOFT))
    soft = torch.from_numpy(wide).float()
    for front, back in over:
        soft[back] *= 1 - soft[front]
    return soft / soft.sum(dim=0).clamp(min=1)


def joint_bilateral(masks: Tensor, guide: Tensor, reach: int = 2) -> Tensor:
    """Masks (N, H, W) smoothed along what is alike in a guide (c, H, W) (Kopf et al. 2007, eq. 3)."""
    side = 2 * reach + 1
    height, width = masks.shape[1:]

    def around(x: Tensor) -> Tensor:
        padded = F.pad(x[None], (reach,) * 4, mode="replicate")
        return F.unfold(padded, side).view(len(x), side * side, height, width)

    apart = (around(guide) - guide[:, None]).square().sum(dim=0)
    alike = torch.exp(-apart / (2 * apart.mean().clamp(min=1e-12)))
    steps = torch.arange(-reach, reach + 1).square()
    near = torch.exp(-(steps[:, None] + steps[None, :]) / (2 * reach)).flatten()[:, None, None]
    weight = alike * near
    return (around(masks) * weight).sum(dim=1) / weight.sum(dim=0)


def _scaled(values: Grid, free: Cells) -> Grid:
    """From 0 to 1 where the picture is free, 0 elsewhere."""
    if not free.any():
        return np.zeros_like(values)
    low, high = values[free].min(), values[free].max()
    return np.where(free, (values - low) / max(high - low, 1e-12), 0)


def _classes(nouns: Sequence[str], given: Mapping[int, Cells]) -> list[list[int]]:
    """The numbers of the nouns of each class that have no place yet."""
    groups: dict[str, list[int]] = {}
    for i, noun in enumerate(nouns):
        if i not in given:
            groups.setdefault(noun, []).append(i)
    return list(groups.values())


def _order(group: Sequence[int], left_of: Sequence[tuple[int, int]]) -> list[int] | None:
    """Places in the group from left to right, where the prompt says it of all of them."""
    pairs = [(a, b) for a, b in left_of if a in group and b in group]
    if len(pairs) != len(group) - 1:
        return None
    order = sorted(range(len(group)), key=lambda k: sum(b == group[k] for _, b in pairs))
    firsts = {a for a, _ in pairs}
    return sorted(order, key=lambda k: (group[k] not in firsts, order.index(k)))


def _shared_out(union: Cells, level: Grid, order: Sequence[int] | None) -> tuple[Cells, bool, bool]:
    """The parts of one class, told apart: level (n, H, W) of its n mentions -> masks (n, H, W), whether there
    is another part, and whether one part was cut up.

    Connected parts go to the mentions that attend to them; one part of two things is parted where they
    differ most, from left to right.
    """
    count = len(level)
    parts, spare = _largest(union, level.max(axis=0), count)
    parted = 0 < len(parts) < count
    if parted:
        parts = _split(parts, level)
    masks = np.zeros_like(level, dtype=bool)
    if not parts:
        return masks, False, False
    middles = [ndimage.center_of_mass(part)[1] for part in parts]
    if order is not None:
        taken = dict(zip(order, np.argsort(middles), strict=False))
    else:
        own = np.array([[each[part].mean() for part in parts] for each in level])
        taken = dict(zip(*linear_sum_assignment(-own), strict=True))
    for k, part in taken.items():
        masks[k] = parts[part]
    return masks, spare, parted


def _largest(union: Cells, level: Grid, count: int) -> tuple[list[Cells], bool]:
    """At most `count` connected parts, each with the pieces that are near it, and whether there is another
    part that is no speck."""
    labels, found = ndimage.label(union, structure=np.ones((3, 3)))
    if not found:
        return [], False
    weight = ndimage.sum_labels(level, labels, np.arange(1, found + 1))
    order = 1 + np.argsort(-weight, kind="stable")
    most = weight.max()
    chosen = [k for k in order[:count] if weight[k - 1] >= SPECK * most]
    parts = [labels == k for k in chosen]
    away = np.stack([ndimage.distance_transform_edt(~part) for part in parts])
    spare = False
    for k in order[len(chosen) :]:
        nearest = away[:, labels == k].min(axis=1)
        if nearest.min() <= NEAR:
            parts[int(nearest.argmin())] |= labels == k
        elif weight[k - 1] >= SPECK * most:
            spare = True
    return parts, spare


def _split(parts: list[Cells], level: Grid) -> list[Cells]:
    """As many parts as mentions: by which of them attends to a cell most, where each has enough of all parts,
    else by cutting the largest part across its length."""
    count, parts = len(level), list(parts)
    union, own = np.any(parts, axis=0), level.argmax(axis=0)
    claimed = [union & (own == k) for k in range(count)]
    if min(part.sum() for part in claimed) >= LEAST_SHARE / count * union.sum():
        return claimed
    while len(parts) < count:
        whole = parts.pop(int(np.argmax([part.sum() for part in parts])))
        rows, columns = np.nonzero(whole)
        line = columns if np.ptp(columns) >= np.ptp(rows) else rows
        half = np.zeros_like(whole)
        half[rows, columns] = line <= np.median(line) - 0.5
        if not half.any() or half.sum() == whole.sum():
            return [*parts, whole]
        parts += [half, whole & ~half]
    return parts


def _likeliest(level: Grid, free: Cells) -> Cells:
    """For a thing that was found nowhere: the twentieth of the free cells that attend to it most."""
    if not free.any():
        return free
    bar = np.quantile(level[free], 0.95)
    return free & (level >= bar)
