"""Everything a user can get wrong, as one sentence each: the offending value and the next thing to do."""

from conceptkit.registry.errors import (
    BadBlob,
    BadKey,
    BadName,
    BadRemote,
    ConceptError,
    NameTaken,
    UnknownConcept,
)

__all__ = [
    "BadBase",
    "BadBlob",
    "BadDevice",
    "BadKey",
    "BadName",
    "BadPhotos",
    "BadPrompt",
    "BadRecipe",
    "BadRegion",
    "BadRemote",
    "BaseMismatch",
    "ConceptError",
    "NameTaken",
    "NoEffect",
    "UnknownConcept",
]


class BadPhotos(ConceptError):
    """Photos that are missing, unreadable or too small to learn from."""


class BadBase(ConceptError):
    """A base that cannot be found or is not a text-to-image pipeline with cross-attention."""


class BaseMismatch(ConceptError):
    """A concept learned on another base than the one it is put on."""


class BadPrompt(ConceptError):
    """A prompt that cannot be drawn."""


class BadRegion(ConceptError):
    """A part of the picture that cannot be read, is empty, or is claimed twice."""


class NoEffect(ConceptError):
    """A concept that would change nothing."""


class BadRecipe(ConceptError):
    """Hyper-parameters that make no sense together."""


class BadDevice(ConceptError):
    """A device that this machine does not have."""
