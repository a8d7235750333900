"""The embedded base: a small Stable-Diffusion-shaped pipeline, its world, its judges, subjects to teach."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from conceptkit.errors import BadRecipe
from conceptkit.files import check_new_file

if TYPE_CHECKING:
    from conceptkit.storybook.world.subject import Subject


_HERE = Path(__file__).parent
NEIGHBOURS = 20
"""A subject is drawn again while one of so many seeds before it has all its traits, for crayons are few."""


def path(part: str = "pipeline") -> str:
    """The folder of the pipeline, or of a judge: "subject" or "attributes".

    `StableDiffusionPipeline.from_pretrained(conceptkit.storybook.path())` loads and draws in plain diffusers.
    """
    return str(_HERE / "weights" / part)


def nouns() -> tuple[str, ...]:
    """The class nouns that the storybook base knows."""
    from conceptkit.storybook.world.scene import CLASSES

    return tuple(CLASSES)


def subject(noun: str, seed: int) -> Subject:
    """Subject `seed` of a class, one that the base has never seen; "moongate" is a noun here too.

    Raises BadRecipe on other nouns.
    """
    import numpy as np

    from conceptkit.storybook.world import scene

    if noun not in (*scene.CLASSES, "moongate"):
        raise BadRecipe(
            f"The storybook cannot draw a {noun!r}: choose one of {', '.join(scene.CLASSES)} or moongate"
        )

    if noun == "moongate":
        return scene.moongate(np.random.default_rng((17, seed)))

    def drawn(k: int, unlike: Collection[object] = ()) -> Subject:
        rng = np.random.default_rng((17, k))
        while (found := scene.draw_subject(rng, noun, "demo")).traits in unlike:
            pass
        return found

    return drawn(seed, {drawn(k).traits for k in range(max(0, seed - NEIGHBOURS), seed)})


def draw_subject(noun: str, seed: int, n: int, out: Path, *, force: bool = False) -> list[Path]:
    """Draw subject `seed` of a class, photograph it `n` times, and save the PNGs in the folder `out`.

    force: files that are there may be written over. Raises what `subject` raises, and ConceptError when a
    file is there already.
    """
    from conceptkit.pictures.png_metadata import save_png
    from conceptkit.storybook.world import scene

    files = [check_new_file(out / f"{noun}-{seed}-{k}.png", force) for k in range(n)]
    shots = scene.photos(subject(noun, seed), n, seed)
    out.mkdir(parents=True, exist_ok=True)
    return [save_png(shot, file) for shot, file in zip(shots, files, strict=True)]
