"""A subject as learning knows it: its name, its class, and its photos with what lies beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
    """A thing to learn, or a style.

    noun: its class. kind: "subject" or "style". class_images: pictures of its class to hold on to.
    auto_caption: of all photos, where no caption says it.
    own_token: what stands for it in prompts, where that of its name stands for something else already.
    """

    name: str
    noun: str | None
    photos: PhotoSet
    kind: str = "subject"
    class_images: PhotoSet | None = None
    auto_caption: StateAndPlace = NO_CAPTION
    own_token: str | None = None

    @property
    def token(self) -> str:
        """The text of its token: "<my_dog>"."""
        return self.own_token or f"<{self.name}>"

    @property
    def words(self) -> str:
        """What the subject's name stands for in a prompt."""
        return f"{self.token} {self.noun}" if self.noun else self.token

    def doing(self, state: str, prompt: str) -> str:
        """A prompt of its photos with another state in the place of the one it was learned in.

        A prompt that is a photo's caption stays as it is.
        """
        if any(self.photos.captions):
            return prompt
        here = f"{self.words} {self.auto_caption}".rstrip()
        there = self.auto_caption._replace(state=state)
        return prompt.replace(here, f"{self.words} {there}")
