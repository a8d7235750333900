"""Captions for regularisation, a file for each family of bases."""

from conceptkit.base.families import DEFAULT, FAMILIES


def captions(family: str) -> list[str]:
    """The captions of the family of bases of that name, a line each; of an unknown one the default's."""
    return FAMILIES.get(family, DEFAULT).captions.read_text(encoding="utf-8").splitlines()
