"""What can go wrong with a registry, as one sentence each: the offending value and the next thing to do."""


class ConceptError(Exception):
    """Base of every error conceptkit raises on purpose; the message is one sentence for a person."""


class BadName(ConceptError):
    """A concept name that cannot be a word in a prompt and a file on every disk."""


class NameTaken(ConceptError):
    """A name already in the registry, without the wish for a new version."""


class UnknownConcept(ConceptError):
    """A name or version that the registry does not hold."""


class BadBlob(ConceptError):
    """Stored bytes that are not what they should be."""


class BadKey(ConceptError):
    """A signing key that is missing, damaged, or not what its name says."""


class BadRemote(ConceptError):
    """A remote that is unknown, cannot be reached, or holds what it should not."""
