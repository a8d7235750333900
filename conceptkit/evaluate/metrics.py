"""Scores of pictures, with floor and ceiling that make them readable. Pure functions of unit embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from conceptkit.base import quiet

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class SubjectJudge:
    """Who is it? The storybook's own embedder, in the place that DINO has for real photos."""

    def __init__(self, source: str | None = None) -> None:
        from transformers import AutoModel

        from conceptkit import storybook

        with quiet():
            self.model = AutoModel.from_pretrained(
                source or storybook.path("subject"), dtype=torch.float32
            ).eval()

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image], batch: int = 64) -> Tensor:
        """Unit embeddings (n, d) of RGB pictures."""
        parts = [
            self.model(pixels(pictures[k : k + batch], self._size)) for k in range(0, len(pictures), batch)
        ]
        return F.normalize(torch.cat([part.pooler_output.flatten(1) for part in parts]), dim=1)

    @property
    def _size(self) -> int:
        return int(getattr(self.model.config, "image_size", 64))


class AttributeJudge:
    """What is to be seen? The storybook's classifier, one sigmoid per public attribute."""

    def __init__(self, source: Path | str | None = None) -> None:
        from transformers import AutoModelForImageClassification

        from conceptkit import storybook

        folder = str(source or storybook.path("attributes"))
        with quiet():
            self.model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.names: tuple[str, ...] = tuple(
            self.model.config.id2label[k] for k in range(self.model.config.num_labels)
        )

    @torch.no_grad()
    def logits(self, pictures: Sequence[Image.Image], batch: int = 64) -> Tensor:
        """(n, attributes)."""
        return torch.cat(
            [self.model(pixels(pictures[k : k + batch], 64)).logits for k in range(0, len(pictures), batch)]
        )

    def best(self, logits: Tensor, group: str) -> list[str]:
        """For each picture the likeliest attribute of a group, "class", "place", "colour" or "state:dog"."""
        members = [k for k, name in enumerate(self.names) if name.startswith(group + ":")]
        return [self.names[members[int(k)]].removeprefix(group + ":") for k in logits[:, members].argmax(1)]


def pixels(pictures: Sequence[Image.Image], size: int) -> Tensor:
    """RGB pictures as float32 (n, 3, size, size) in [-1, 1]."""
    scaled = [
        p.convert("RGB") if p.size == (size, size) else p.convert("RGB").resize((size, size))
        for p in pictures
    ]
    return torch.from_numpy(np.stack([np.asarray(p) for p in scaled])).permute(0, 3, 1, 2).float() / 127.5 - 1


def round_trips(vae: AutoencoderKL, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """What is left of RGB pictures (64x64) after the storybook's autoencoder."""
    from conceptkit.storybook import evaluators

    return [
        Image.fromarray(p) for p in evaluators.round_trips(vae, np.stack([np.asarray(p) for p in pictures]))
    ]


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
