"""Outlines of things in a picture, and the picture without them, as pure functions of arrays.

Attention says roughly where a thing is, the picture's colours where it ends: pixels that are alike and near
each other belong to the same thing. So attention is the prior of a random walk (Grady, Multilabel random
walker image segmentation using prior models, CVPR 2005) from each pixel to those most like it (Chen et al.,
KNN matting, CVPR 2012). The place of what is taken away is filled from around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg, splu
from scipy.spatial import KDTree
from torch import Tensor

from conceptkit.inference.layout_masks import Cells, Grid, otsu

WALKED = 64
"""Pixels of a picture's longer side at most, on which a walker goes."""
ALIKE = 30
"""How many pixels each pixel is compared with: those most like it."""
COLOUR = 0.025
"""Standard deviation by which colours are alike, in [0, 1]."""
NEAR = 0.18
"""Distance in colour that counts as much as the picture's longer side in place."""
PRIOR = 0.03
"""Weight of what attention says against that of one pixel of the same colour."""
EXACTLY, MOST_STEPS = 0.1, 300
"""How nearly the walk is solved, and the steps after which it is taken as it is; it needs some eighty."""
UNSURE = 0.1
"""Width of the step from no thing to one, in attention from 0 to 1."""
ON_RIM, RIM_WEIGHT = 0.1, 40.0
"""How much less likely a thing is on the outermost pixels, and how much more these weigh, where they show
scenery: that goes on beyond a picture on several of its sides, however much is attended to."""
RIM_COLOUR, MUCH_OF_RIM = 0.1, 0.02
"""Standard deviation by which colours of the rim are alike, and the share of it that is alike on other sides
where it shows scenery."""
SPECK = 0.1
"""A part of a thing apart from its largest one is dropped when it has less than this share of its pixels."""
REACH = 1 / 64
"""How far an outline reaches over its thing, by the picture's longer side: the autoencoder blurs its edge."""
LEVEL = 100.0
"""How much more a filled pixel is like those of its row than of its column: scenery lies level."""
MUCH_OF_ROW, ROW_COLOUR = 0.4, 0.1
"""Share of a row that looks like a pixel of scenery, and by how much it may differ: what is seldom in its row
is some thing that is left over, and says nothing of what was behind another."""
AROUND = 1 / 26
"""How much more is taken away around a thing, by the picture's longer side."""


def outlines(
    picture: Tensor, seen: Tensor, owners: Tensor, least: Sequence[float], rim: float = RIM_WEIGHT
) -> list[Cells]:
    """Which pixels (N, H, W) of a picture (3, H, W) in [0, 1] each of N things has, none of them shared but
    for the reach of their edges; for each of `least`.

    seen (N, h, w): attention to each, see `Watch.outlining`; one that is the same everywhere shows no thing.
    owners (N, h', w'): which of them has which part of what is no ground; all ones for one thing. Where none
    has a part each is half as likely. least: shares of Otsu's threshold of all attention at which a pixel is
    as likely a thing as not. rim: how much more the picture's rim weighs where it shows scenery.
    """
    small = _small(picture)
    size = small.shape[1:]
    level = _scaled(seen.nan_to_num().double().cpu())
    if not level.any():
        return [np.zeros((len(owners), *picture.shape[1:]), dtype=bool) for _ in least]
    top, threshold = _resized(level, size).amax(dim=0), otsu(level.amax(dim=0).numpy())
    scenery = _scenery_of_rim(small)
    share = _resized(owners.nan_to_num().double().cpu(), size).clamp(min=0)
    share = (share + 1e-4) / (share.sum(dim=0) + 2e-4)
    things = [torch.sigmoid((top - each * threshold) / UNSURE) for each in least]
    prior = torch.stack([torch.lerp(thing, ON_RIM * thing, scenery) * share for thing in things])
    weight = PRIOR * (1 + (rim - 1) * scenery)
    likely = random_walk(small, prior.flatten(0, 1).numpy(), weight.numpy()).reshape(prior.shape)
    return [_reaching(of_things, picture.shape[1:]) for of_things in likely]


def random_walk(picture: Tensor, prior: Grid, weight: Grid) -> Grid:
    """Probabilities (K, H, W) of K labels, to some hundredths: x of (L + G) x = G p for each label's prior
    p, with the weights (H, W) of the priors on the diagonal of G and the Laplacian L of the pixels (c, H, W),
    each beside those most like it."""
    weights = weight.ravel()
    system = (_laplacian(*_alike(picture)) + sparse.diags(weights)).tocsr()
    scale = sparse.diags(1 / system.diagonal())
    solved = [
        cg(system, weights * own, x0=own, rtol=EXACTLY, maxiter=MOST_STEPS, M=scale)[0]
        for own in prior.reshape(len(prior), -1)
    ]
    return np.stack(solved).reshape(prior.shape)


def filled(picture: Tensor, hole: Cells) -> Tensor:
    """A picture (3, H, W) whose pixels in a hole (H, W) follow from those around it, as smooth as can be (the
    Laplace equation, by LEVEL smoother along rows), as far as these are scenery.

    The same where the hole is all of it; the mean of the rest where this is thinner than what is walked on.
    """
    if not hole.any() or hole.all():
        return picture
    small, taken = _small(picture), torch.from_numpy(hole).to(picture.device)
    size = small.shape[1:]
    wanted = F.interpolate(torch.from_numpy(hole)[None, None].double(), size, mode="area")[0, 0].numpy() > 0
    if wanted.all():
        mean = picture[:, ~taken].nan_to_num(posinf=1, neginf=0).mean(dim=1).view(3, 1, 1)
        return torch.where(taken, mean, picture)
    scenery = _scenery_of_rows(small, ~wanted)
    inside, rim = np.flatnonzero(~scenery), np.flatnonzero(scenery)
    laplacian = _laplacian(*_beside(size))[inside]
    colours = small.double().cpu().numpy().reshape(3, -1)
    known = laplacian[:, rim] @ np.ascontiguousarray(colours[:, rim].T)
    colours[:, inside] = splu(laplacian[:, inside].tocsc()).solve(-known).T
    smooth = _resized(torch.from_numpy(colours).view(3, *size), picture.shape[1:]).to(picture)
    return torch.where(taken, smooth.clamp(0, 1), picture)


def grown(mask: Cells) -> Cells:
    """A mask (H, W) with what is AROUND it."""
    if not mask.any():
        return mask
    near: Cells = ndimage.distance_transform_edt(~mask) <= AROUND * max(mask.shape)
    return near


def _reaching(likely: Grid, size: torch.Size | tuple[int, ...]) -> Cells:
    """Masks (N, H, W) of things by how likely each pixel (N, h, w) is of them, with their edges' reach."""
    ground = 1 - likely.sum(axis=0, keepdims=True)
    label = np.concatenate([likely, ground]).argmax(axis=0)
    reach = REACH * max(label.shape)
    fine = []
    for i in range(len(likely)):
        mask = _without_specks(label == i)
        near = ndimage.distance_transform_edt(~mask) <= reach if mask.any() else mask
        fine.append(torch.from_numpy(near))
    whole = F.interpolate(torch.stack(fine).float()[None], tuple(size), mode="bilinear")[0]
    found: Cells = (whole >= 0.5).numpy()
    return found


def _scenery_of_rim(picture: Tensor) -> Tensor:
    """(H, W): how much the outermost pixels of a picture (3, H, W) are scenery, from 0 to 1; 0 inside.

    That is how much of the rim on the other sides looks like them: what is cut off by one side is a thing.
    """
    height, width = picture.shape[1:]
    rim = torch.ones(height, width, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    rows, columns = rim.nonzero(as_tuple=True)
    at = torch.stack([rows == 0, rows == height - 1, columns == 0, columns == width - 1]).double()
    colours = picture[:, rim].double().cpu().T
    alike = torch.exp(-torch.cdist(colours, colours).square() / RIM_COLOUR**2 / 2)
    elsewhere = (alike * (at.T @ at == 0)).mean(dim=1)
    found = torch.zeros(height, width, dtype=torch.float64)
    found[rim] = (elsewhere / MUCH_OF_RIM).clamp(max=1)
    return found


def _scenery_of_rows(picture: Tensor, known: Cells) -> Cells:
    """Which known pixels (H, W) of a picture (3, H, W) look like much of their row; all where none does."""
    alike = (picture[:, :, :, None] - picture[:, :, None]).abs().amax(dim=0).cpu().numpy() <= ROW_COLOUR
    share = (alike & known[:, None]).sum(axis=2) / known.sum(axis=1, keepdims=True).clip(min=1)
    found: Cells = known & (share >= MUCH_OF_ROW)
    return found if found.any() else known


def _small(picture: Tensor) -> Tensor:
    """A picture with WALKED pixels on its longer side at most, of numbers from 0 to 1 alone."""
    picture = picture.nan_to_num(posinf=1, neginf=0).clamp(0, 1)
    scale = WALKED / max(picture.shape[1:])
    if scale >= 1:
        return picture
    size = [max(1, round(side * scale)) for side in picture.shape[1:]]
    return F.interpolate(picture[None], size, mode="area")[0]


def _scaled(level: Tensor) -> Tensor:
    """Each of (N, h, w) from 0 to 1; 0 where it is the same everywhere."""
    low, high = level.amin(dim=(1, 2), keepdim=True), level.amax(dim=(1, 2), keepdim=True)
    flat = high - low <= 1e-6 * high.abs()
    return torch.where(flat, 0.0, (level - low) / torch.where(flat, 1.0, high - low))


def _resized(values: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    return F.interpolate(values[None], tuple(size), mode="bilinear", align_corners=False)[0]


def _beside(size: torch.Size | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much pixels are held to each other that stand beside each other, and their numbers, each pair once:
    those of a row by LEVEL, those of a column by 1."""
    numbers = np.arange(size[0] * size[1]).reshape(tuple(size))
    in_rows, in_columns = (numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])
    here, there = (
        np.concatenate([one.ravel(), two.ravel()]) for one, two in zip(in_rows, in_columns, strict=True)
    )
    return np.repeat([LEVEL, 1.0], [in_rows[0].size, in_columns[0].size]), here, there


def _alike(picture: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much alike pixels (c, H, W) are, and the numbers of both, for each and those most like it."""
    height, width = picture.shape[1:]
    rows, columns = NEAR * np.mgrid[:height, :width].reshape(2, -1) / max(height, width)
    points = np.stack([*picture.double().cpu().numpy().reshape(len(picture), -1), rows, columns], axis=1)
    away, there = KDTree(points).query(points, min(ALIKE + 1, len(points)))
    here = np.repeat(np.arange(len(points)), away.size // len(points))
    return np.exp(-np.square(away.ravel() / COLOUR) / 2), here, there.ravel()


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
