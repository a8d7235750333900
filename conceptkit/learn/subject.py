"""A subject as learning knows it: its name, its class, its photos and what was said about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from conceptkit.data.photos import PhotoSet


class StateAndPlace(NamedTuple):
    """What a thing does and where it is, as words that go on after its own: "running", "in a kitchen"."""

    state: str | None = None
    place: str | None = None

    def __str__(self) -> str:
        return " ".join(words for words in self if words)


NO_CAPTION = StateAndPlace()


@dataclass(frozen=True, eq=False)
class Subject:
    """captions, masks: one for each photo, None where there is none; or empty. Masks are white on it.

    scene: of all photos, where no caption says it.
    """

    name: str
    noun: str | None
    photos: PhotoSet
    kind: str = "subject"
    captions: tuple[str | None, ...] = ()
    masks: tuple[Image.Image | None, ...] = ()
    scene: StateAndPlace = NO_CAPTION

    @property
    def token(self) -> str:
        return f"<{self.name}>"

    @property
    def words(self) -> str:
        """What the subject's name stands for in a prompt."""
        return f"{self.token} {self.noun}" if self.noun else self.token

    def doing(self, state: str, prompt: str) -> str:
        """A prompt of its photos with another state in the place of the one it was learned in.

        A prompt that is a photo's caption stays as it is.
        """
        if any(self.captions):
            return prompt
        here = f"{self.words} {self.scene}".rstrip()
        there = self.scene._replace(state=state)
        return prompt.replace(here, f"{self.words} {there}")
