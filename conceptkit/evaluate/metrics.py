"""Scores of pictures, with floor and ceiling that make them readable. Pure functions of unit embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def similarity(found: Tensor, real: Tensor) -> float:
    """Mean pairwise cosine of unit embeddings (m, d) and (n, d): the form of CLIP-I and DINO (2208.12242)."""
    return float((found @ real.T).mean())


def held_out_similarity(found: Tensor, real: Tensor) -> float:
    """Mean cosine of the round trip (n, d) of each photo with all other photos (n, d): the ceiling.

    A learned concept cannot look more like the photos than other photos of the subject do, once they have
    been through the autoencoder that draws it. One photo alone is compared with itself.
    """
    n = len(real)
    cosines = found @ real.T
    return float(cosines.sum() - cosines.trace()) / (n * (n - 1)) if n > 1 else float(cosines)


def gap(score: float, floor: float, ceiling: float) -> float:
    """(score - floor) / (ceiling - floor): 0 is the class noun alone, 1 is real photos."""
    return (score - floor) / (ceiling - floor) if ceiling > floor else float("nan")


def identified(found: Tensor, real: Tensor, distractors: Tensor) -> float:
    """Share of pictures (m, d) whose nearest subject is the right one.

    real (n, d) are the subject's photos, distractors (k, p, d) those of k others; a subject is the
    mean of its photos.
    """
    gallery = F.normalize(torch.cat([real.mean(0, keepdim=True), distractors.mean(1)]), dim=1)
    return float((found @ gallery.T).argmax(1).eq(0).float().mean())
