"""A subject as learning knows it: its name, its class, its photos and what was said about them."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from conceptkit.photos import PhotoSet


@dataclass(frozen=True, eq=False)
class Subject:
    """captions, masks, states: one for each photo, None where there is none; or empty.

    Masks are white on it. A state is a word for what it does there, where no caption says so.
    """

    name: str
    noun: str | None
    photos: PhotoSet
    kind: str = "subject"
    captions: tuple[str | None, ...] = ()
    masks: tuple[Image.Image | None, ...] = ()
    states: tuple[str | None, ...] = ()

    @property
    def token(self) -> str:
        return f"<{self.name}>"

    @property
    def words(self) -> str:
        """What the subject's name stands for in a prompt."""
        return f"{self.token} {self.noun}" if self.noun else self.token
