"""Captions for regularisation, a file for each kind of base."""

from importlib.resources import files

from conceptkit.base.pipeline import STORYBOOK


def captions(base_name: str) -> list[str]:
    """Captions for regularisation: the storybook's own, or everyday ones for any other base."""
    package, name = ("storybook", "captions.txt") if base_name == STORYBOOK else ("wordlists", "general.txt")
    return files(f"conceptkit.{package}").joinpath(name).read_text(encoding="utf-8").splitlines()
