"""How photos become views and prompts: framing, mirroring and wording."""

from __future__ import annotations

from dataclasses import dataclass

from conceptkit.data.augmentation import CROP, GENTLE, SMALL, STYLE, Framing
from conceptkit.learn.train_config import TrainConfig


@dataclass(frozen=True)
class ViewOptions:
    """augmentation, center_crop, random_flip, instance_prompt, sample_latents: as a recipe has them.

    auto_caption: what goes on after the subject's words.
    """

    augmentation: str = "zoom"
    center_crop: bool = False
    random_flip: bool = True
    instance_prompt: str = ""
    auto_caption: str = ""
    sample_latents: bool = False

    @classmethod
    def of(cls, recipe: TrainConfig, auto_caption: str = "") -> ViewOptions:
        """Those of a recipe."""
        return cls(
            recipe.augmentation,
            recipe.center_crop,
            recipe.random_flip,
            recipe.instance_prompt,
            auto_caption,
            recipe.sample_latents,
        )

    def framing(self, size: int, kind: str) -> Framing:
        """How views of photos of a subject, or of a "style", are cut for pictures of `size` pixels."""
        if self.augmentation == "crop":
            return CROP
        if kind == "style":
            return STYLE
        return GENTLE if size < SMALL else Framing()


USUAL = ViewOptions()
