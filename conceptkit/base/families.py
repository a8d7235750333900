"""Families of bases: what differs between them, a row each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conceptkit.extension_table import ExtensionTable

PACKAGE = Path(__file__).parents[1]
STORYBOOK = "storybook"
_STORYBOOK_NOUNS = "dog cat rabbit bird fish robot car boat house gate teapot candle chair flower"


@dataclass(frozen=True)
class Family:
    """What is known of all bases of a family.

    guidance_scale: of classifier-free guidance (2207.12598).
    pag_scale: of perturbed-attention guidance (2403.17377); 0 is none.
    pag_layers: where self-attention is perturbed for it, as diffusers names layers.
    side_by_side: whether several things are better drawn in a window each.
    isolate_concepts: whether words of several concepts in one frame are better encoded apart.
    class_nouns: all class nouns that it knows; () when they are more than can be listed.
    captions: the file of captions for regularisation.
    flatness: drawings in flat colours are all that it knows; mean flatness of photos below which it says so.
    weights: the folder of the pipeline, for a base that comes with the package.
    fingerprint: a file with the `Fingerprint` of its base; a pipeline that is this base, or a relative of it,
        is of the family whatever it is called.
    """

    name: str
    guidance_scale: float = 7.5
    pag_scale: float = 0.0
    pag_layers: tuple[str, ...] = ("mid",)
    side_by_side: bool = False
    isolate_concepts: bool = False
    class_nouns: tuple[str, ...] = ()
    captions: Path = PACKAGE / "wordlists" / "general.txt"
    flatness: float = 0.0
    weights: Path | None = None
    fingerprint: Path | None = None


FAMILIES: ExtensionTable[Family] = ExtensionTable("family of bases", "conceptkit.families")
DEFAULT = FAMILIES.register("stable-diffusion", Family("stable-diffusion"))
FAMILIES.register(
    STORYBOOK,
    Family(
        STORYBOOK,
        guidance_scale=3.5,
        pag_scale=1.5,
        pag_layers=("attn1",),
        isolate_concepts=True,
        class_nouns=tuple(_STORYBOOK_NOUNS.split()),
        captions=PACKAGE / "storybook" / "captions.txt",
        flatness=0.65,  # photographs lie between 0.3 and 0.6, the storybook's drawings above 0.7
        weights=PACKAGE / "storybook" / "weights" / "pipeline",
        fingerprint=PACKAGE / "storybook" / "weights" / "fingerprint.json",
    ),
)


def family_of(name: str) -> Family:
    """The family of the base of that name: its own where it comes with the package, else the default."""
    family = FAMILIES.get(name)
    return family if family is not None and family.weights is not None else DEFAULT
