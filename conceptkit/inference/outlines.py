"""Outlines of things in a picture, and the picture without them, as pure functions of arrays.

Attention says roughly where a thing is, the picture's own edges where it ends: a random walker with priors
(Grady, Multilabel random walker image segmentation using prior models, CVPR 2005). The place of what is taken
away is filled from around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from conceptkit.inference.layout_masks import Cells, Grid, otsu

WALKED = 128
"""Pixels of a picture's longer side at most, on which a walker goes: a sparse system of all of them."""
EDGES = 90.0
"""How far a step between two pixels is hindered by the square of their difference in colour, in [0, 1]."""
PRIOR = 0.02
"""Weight of what attention says against what is beside a pixel."""
UNSURE = 0.1
"""Width of the step from no thing to one, in attention from 0 to 1."""
FLOODED = 1.5
"""Times the area of a thing's surest outline, beyond which an outline is its background too."""
SPECK = 0.1
"""A part of a thing apart from its largest one is dropped when it has less than this share of its pixels."""
REACH = 1 / 43
"""How far an outline reaches over its thing, by the picture's longer side: the autoencoder blurs its edge."""
AROUND = 1 / 32
"""How much more is taken away around a thing, by the picture's longer side."""


def outlines(picture: Tensor, spread: Tensor, owners: Tensor, least: float) -> Cells:
    """Which pixels (N, H, W) of a picture (3, H, W) in [0, 1] each of N things has, none of them shared but
    for the reach of their edges.

    spread (N, h, w): attention to each, see `Watch.maps`; one that is the same everywhere shows no thing.
    owners (N, h', w'): which of them has which part of what is no ground; all ones for one thing. least:
    attention at which a pixel is as likely a thing as not, by Otsu's threshold of all of it.
    """
    small = _small(picture)
    size = small.shape[1:]
    level = spread.double().cpu()
    low, high = (edge.view(-1, 1, 1) for edge in (level.flatten(1).amin(1), level.flatten(1).amax(1)))
    if bool((high - low <= 1e-6 * high.abs()).any()):
        return np.zeros((len(owners), *picture.shape[1:]), dtype=bool)
    level = (level - low) / (high - low)
    top = _resized(level, size).amax(dim=0)
    thing = torch.sigmoid((top - least * otsu(level.amax(dim=0).numpy())) / UNSURE)
    share = _resized(owners.double().cpu(), size).clamp(min=0) + 1e-4
    prior = torch.cat([thing * share / share.sum(dim=0), (1 - thing)[None]])
    label = random_walk(small, prior.numpy()).argmax(axis=0)
    reach = REACH * max(size)
    fine = []
    for i in range(len(owners)):
        mask = _without_specks(label == i)
        near = ndimage.distance_transform_edt(~mask) <= reach if mask.any() else mask
        fine.append(torch.from_numpy(near))
    whole = F.interpolate(torch.stack(fine).float()[None], picture.shape[1:], mode="bilinear")[0]
    found: Cells = (whole >= 0.5).numpy()
    return found


def widest(picture: Tensor, spread: Tensor, owners: Tensor, leasts: Sequence[float]) -> Cells:
    """Outlines by `leasts`, from the highest to the lowest: each thing's last one before it flows out over
    its background, by FLOODED."""
    found = outlines(picture, spread, owners, leasts[0])
    most = FLOODED * found.sum(axis=(1, 2))
    for least in leasts[1:]:
        wider = outlines(picture, spread, owners, least)
        kept = wider.sum(axis=(1, 2)) <= most
        found[kept] = wider[kept]
    return found


def random_walk(picture: Tensor, prior: Grid) -> Grid:
    """Probabilities (K, H, W) of K labels: x of (L + g) x = g p for each label's prior p, with g = PRIOR and
    the Laplacian L of the pixels (c, H, W), each beside four others."""
    colours = picture.double().cpu().numpy().reshape(len(picture), -1)
    here, there = _beside(picture.shape[1:])
    weights = np.exp(-EDGES * np.square(colours[:, here] - colours[:, there]).sum(axis=0)) + 1e-4
    system = _laplacian(weights, here, there) + PRIOR * sparse.identity(colours.shape[1])
    solved: Grid = splu(system.tocsc()).solve(PRIOR * prior.reshape(len(prior), -1).T)
    return np.ascontiguousarray(solved.T).reshape(prior.shape)


def filled(picture: Tensor, hole: Cells) -> Tensor:
    """A picture (3, H, W) whose pixels in a hole (H, W) follow from those around it, as smooth as can be (the
    Laplace equation); the same where the hole is all of it."""
    if not hole.any() or hole.all():
        return picture
    small = _small(picture)
    size = small.shape[1:]
    wanted = F.interpolate(torch.from_numpy(hole)[None, None].double(), size, mode="area")[0, 0].numpy() > 0
    if wanted.all():
        return picture
    inside = np.flatnonzero(wanted)
    rim = np.flatnonzero(~wanted)
    here, there = _beside(size)
    laplacian = _laplacian(np.ones(len(here)), here, there)[inside]
    colours = small.double().cpu().numpy().reshape(3, -1)
    known = laplacian[:, rim] @ np.ascontiguousarray(colours[:, rim].T)
    colours[:, inside] = splu(laplacian[:, inside].tocsc()).solve(-known).T
    smooth = _resized(torch.from_numpy(colours).view(3, *size), picture.shape[1:]).to(picture)
    return torch.where(torch.from_numpy(hole).to(picture.device), smooth.clamp(0, 1), picture)


def grown(mask: Cells) -> Cells:
    """A mask (H, W) with what is AROUND it."""
    if not mask.any():
        return mask
    near: Cells = ndimage.distance_transform_edt(~mask) <= AROUND * max(mask.shape)
    return near


def _small(picture: Tensor) -> Tensor:
    """A picture with WALKED pixels on its longer side at most, of numbers alone."""
    picture = picture.nan_to_num()
    scale = WALKED / max(picture.shape[1:])
    if scale >= 1:
        return picture
    size = [max(1, round(side * scale)) for side in picture.shape[1:]]
    return F.interpolate(picture[None], size, mode="area")[0]


def _resized(values: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    return F.interpolate(values[None], tuple(size), mode="bilinear", align_corners=False)[0]


def _beside(size: torch.Size | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of all pixels that stand beside each other, each pair once."""
    numbers = np.arange(size[0] * size[1]).reshape(tuple(size))
    here = np.concatenate([numbers[:, :-1].ravel(), numbers[:-1].ravel()])
    return here, np.concatenate([numbers[:, 1:].ravel(), numbers[1:].ravel()])


def _laplacian(weights: np.ndarray, here: np.ndarray, there: np.ndarray) -> sparse.csr_matrix:
    """D - W of a graph with these edges."""
    count = int(max(here.max(), there.max())) + 1 if len(here) else 1
    one_way = sparse.coo_matrix((weights, (here, there)), shape=(count, count)).tocsr()
    both = one_way + one_way.T
    return (sparse.diags(np.asarray(both.sum(axis=1)).ravel()) - both).tocsr()


def _without_specks(mask: Cells) -> Cells:
    """The connected parts of a mask (H, W) that have a share of its pixels worth a thing."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())[1:]
    kept: Cells = np.isin(parts, 1 + np.flatnonzero(sizes >= SPECK * sizes.max()))
    return kept
