"""Captions for regularisation, a file for each family of bases."""

from conceptkit.base.families import family_of


def captions(base_name: str) -> list[str]:
    """The captions of the family of the base of that name, a line each."""
    return family_of(base_name).captions.read_text(encoding="utf-8").splitlines()
