"""Learning: photos become a concept in the registry."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from conceptkit import base as bases
from conceptkit import photos as pictures
from conceptkit.attach import attach
from conceptkit.errors import BadRecipe
from conceptkit.learn.loop import learn
from conceptkit.recipes import DEFAULT, recipe_for

if TYPE_CHECKING:
    from PIL import Image

    from conceptkit.concept import Concept
    from conceptkit.registry.store import Entry, Registry

__all__ = ["Learned", "add", "learn", "recipe_for"]

PREVIEWS = 4
FAMILIAR = 0.5
"""Where the storybook's judge is less sure than this of any class, photos are not of its world."""


@dataclass(frozen=True, eq=False)
class Learned:
    """What `add` brings back: the registry's entry, the concept, a preview, and what a user should know."""

    entry: Entry
    concept: Concept
    preview: Image.Image
    seconds: float
    bytes: int
    notices: list[str]


def add(
    name: str,
    photos: Sequence[Path | str] | Path | str,
    *,
    noun: str | None = None,
    base: str | bases.Base = bases.STORYBOOK,
    registry: Registry | None = None,
    new_version: bool = False,
    seed: int = 0,
    steps: int | None = None,
    rank: int | None = None,
    method: str = DEFAULT,
    progress: Callable[[int, int, str], None] | None = None,
) -> Learned:
    """Learn a subject from photos and store it under `name`.

    Without `noun` the name or the photos' folder suggests one. Raises BadName, NameTaken, BadPhotos, BadBase
    or BadRecipe before anything is learned; whatever is raised, no concept is stored.
    """
    from conceptkit.registry.store import Registry

    begun = time.monotonic()
    registry = registry or Registry()
    registry.check_free(name, new_version=new_version)
    recipe = recipe_for(method, steps, rank)
    shown = pictures.read(photos)
    loaded = bases.load(base) if isinstance(base, str) else base
    notices: list[str] = []
    noun = _noun(name, noun, photos, loaded, notices)
    notices += _faint(loaded, shown)
    concept = learn(loaded, shown, name, noun, recipe, seed=seed, registry=registry, tick=progress or _silent)
    sheet = preview(loaded, concept, seed)
    data = concept.to_bytes()
    entry = registry.add(name, data, concept.summary(), new_version=new_version)
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    registry.set_preview(name, entry.version, png.getvalue())
    return Learned(entry, concept, sheet, time.monotonic() - begun, len(data), notices)


def preview(base: bases.Base, concept: Concept, seed: int) -> Image.Image:
    """A row of pictures of the concept alone."""
    from conceptkit.images import grid

    with attach(base.pipe, concept):
        drawn = base.pipe(
            [f"photo of a {concept.name}"] * PREVIEWS,
            num_inference_steps=25,
            guidance_scale=base.guidance,
            generator=[torch.Generator("cpu").manual_seed(seed + k) for k in range(PREVIEWS)],
        ).images
    return grid(drawn, columns=PREVIEWS)


def _noun(name: str, noun: str | None, photos: Any, base: bases.Base, notices: list[str]) -> str:
    known = _nouns(base)
    if noun is None:
        folder = next((Path(p) for p in ([photos] if isinstance(photos, str | Path) else photos)), None)
        where = folder if folder is None or folder.is_dir() else folder.parent
        noun = pictures.suggest_noun(name, where, known or COMMON_NOUNS)
        if noun is None:
            listed = f": {', '.join(known)}" if known else ""
            raise BadRecipe(
                f"Neither {name!r} nor its folder says what kind of thing it is; give --class NOUN{listed}"
            )
        notices.append(f"{name} was taken to be a {noun}; give --class NOUN if it is something else.")
    if known and noun not in known:
        raise BadRecipe(
            f"The base {base.name} does not know the class {noun!r}; choose one of {', '.join(known)}"
        )
    return noun


def _nouns(base: bases.Base) -> tuple[str, ...]:
    """The nouns of the storybook; a real base knows more than can be listed."""
    if base.name != bases.STORYBOOK:
        return ()
    from conceptkit import storybook

    return storybook.nouns()


_COMMON = """
    dog cat bird horse fish rabbit bear duck car bike boat house gate chair table lamp teapot cup bowl vase
    candle clock flower tree plant toy doll robot backpack bag shoe boot sneaker hat glasses sunglasses shirt
    watch camera guitar person man woman boy girl face baby can bottle book statue castle bridge
"""
COMMON_NOUNS = tuple(_COMMON.split())


def _faint(base: bases.Base, shown: pictures.PhotoSet) -> list[str]:
    """One sentence for photos in which the storybook's attribute judge finds none of its classes."""
    if base.name != bases.STORYBOOK:
        return []
    from conceptkit.evaluate.metrics import AttributeJudge

    if AttributeJudge().familiar([pictures.square(photo, 64) for photo in shown.pictures]) >= FAMILIAR:
        return []
    return [
        "These photos look nothing like the storybook's drawings, "
        "so it will catch little more than their colours; "
        "for photographs add --base with a Stable Diffusion folder or hub id, "
        "for example --base stable-diffusion-v1-5/stable-diffusion-v1-5."
    ]


def _silent(done: int, total: int, text: str = "") -> None:
    return
