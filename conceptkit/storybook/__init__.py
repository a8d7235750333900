"""The embedded base: a small Stable-Diffusion-shaped pipeline, its world, its judges, subjects to teach."""

from __future__ import annotations

from pathlib import Path

from conceptkit.errors import BadRecipe

_HERE = Path(__file__).parent


def path(part: str = "pipeline") -> str:
    """The folder of the pipeline, or of a judge: "subject", "attributes" or "clip".

    `StableDiffusionPipeline.from_pretrained(conceptkit.storybook.path())` loads and draws in plain diffusers.
    """
    return str(_HERE / "weights" / part)


def nouns() -> tuple[str, ...]:
    """The class nouns that the storybook base knows."""
    from conceptkit.storybook.world import CLASSES

    return tuple(CLASSES)


def draw_subject(noun: str, seed: int, n: int, out: Path) -> list[Path]:
    """Draw a subject of the world that the base has never seen, photograph it `n` times, and save the PNGs.

    "moongate" is a noun here too: the round gate that the base has never drawn. Raises BadRecipe on others.
    """
    import numpy as np

    from conceptkit.images import save_png
    from conceptkit.storybook import world

    if noun not in (*world.CLASSES, "moongate"):
        raise BadRecipe(
            f"The storybook cannot draw a {noun!r}: choose one of {', '.join(world.CLASSES)} or moongate"
        )
    rng = np.random.default_rng((17, seed))
    subject = world.moongate(rng) if noun == "moongate" else world.draw_subject(rng, noun, "demo")
    out.mkdir(parents=True, exist_ok=True)
    shots = world.photos(subject, n, seed)
    return [save_png(shot, out / f"{noun}-{seed}-{k}.png") for k, shot in enumerate(shots)]
