"""Models that score pictures: is it the subject, and which attributes does it show?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from conceptkit.base.loading import quiet

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
    from conceptkit.storybook.training import judges

    return [Image.fromarray(p) for p in judges.round_trips(vae, np.stack([np.asarray(p) for p in pictures]))]
