"""Everything a user can get wrong, as one sentence each: the offending value and the next thing to do."""


class ConceptError(Exception):
    """Base of every error conceptkit raises on purpose; the message is one sentence for a person."""


class BadName(ConceptError):
    """A concept name that cannot be a word in a prompt and a file on every disk."""


class NameTaken(ConceptError):
    """A name already in the registry, without the wish for a new version."""


class UnknownConcept(ConceptError):
    """A name or version that the registry does not hold."""


class BadPhotos(ConceptError):
    """Photos that are missing, unreadable or too small to learn from."""


class BadBase(ConceptError):
    """A base that cannot be found or is not a text-to-image pipeline with cross-attention."""


class BaseMismatch(ConceptError):
    """A concept learned on another base than the one it is put on."""


class BadPrompt(ConceptError):
    """A prompt that cannot be drawn."""


class BadBlob(ConceptError):
    """Stored bytes that are not what they should be."""


class BadRegion(ConceptError):
    """A part of the picture that cannot be read, is empty, or is claimed twice."""


class NoEffect(ConceptError):
    """A concept that would change nothing."""


class BadRecipe(ConceptError):
    """Hyper-parameters that make no sense together."""


class BadDevice(ConceptError):
    """A device that this machine does not have."""


class BadKey(ConceptError):
    """A signing key that is missing, damaged, or not what its name says."""


class BadRemote(ConceptError):
    """A remote that is unknown, cannot be reached, or holds what it should not."""
