"""What the storybook base draws of withheld combinations, told by the attribute judge, beside renders.

And how well its autoencoder alone redraws renders that it has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import click
import numpy as np
from PIL import Image

from benchmarks.pictures import draw
from benchmarks.report import finish, shortfall, use_own_cores
from conceptkit.base import pipeline as bases
from conceptkit.base.families import FAMILIES
from conceptkit.evaluate.scorers import AttributeJudge
from conceptkit.inference.generate import STEPS
from conceptkit.storybook.training import autoencoder, data
from conceptkit.storybook.world import scene as world
from conceptkit.storybook.world import scenery

BARS = {"class": 0.95, "place": 0.95, "colour": 0.90, "state": 0.85, "both objects": 0.80}
DECIBELS = 30.0
"""Least PSNR of round trips of held-out renders."""
RENDERS = 1000
PICTURES = 500


def scenes(count: int, pair: bool) -> list[world.Scene]:
    """Scenes of combinations that no base picture shows; pairs are of two different classes."""
    rng = np.random.default_rng(500 + pair)
    combinations = [
        (noun, hue, place)
        for noun in world.CLASSES
        for hue in world.COLOURS
        for place in scenery.PLACES
        if world.withheld(noun, hue, place)
    ]
    told = []
    for _ in range(count):
        noun, hue, place = combinations[int(rng.integers(len(combinations)))]
        figures = [_figure(noun, hue, rng)]
        if pair:
            others = [n for n in world.CLASSES if n != noun]
            hues = list(world.COLOURS)
            figures.append(
                _figure(others[int(rng.integers(len(others)))], hues[int(rng.integers(len(hues)))], rng)
            )
        relation = world.RELATIONS[int(rng.integers(2))] if pair else None
        told.append(world.Scene(tuple(figures), place, relation=relation, seed=int(rng.integers(2**31))))
    return told


def _figure(noun: str, hue: str, rng: np.random.Generator) -> world.Figure:
    spec = world.CLASSES[noun]
    states = (spec.rest, *spec.states)
    subject = world.draw_subject(rng, noun, "scored", hue=hue)
    return world.Figure(subject, states[int(rng.integers(len(states)))], flip=bool(rng.integers(2)))


def prompt(scene: world.Scene) -> str:
    parts = []
    for f in scene.figures:
        rest = f.state == world.CLASSES[f.subject.noun].rest
        article = "an" if f.subject.hue == "orange" else "a"
        parts.append(f"{article} {f.subject.hue} {f.subject.noun}" + ("" if rest else f" {f.state}"))
    place = scenery.PLACES[scene.place or "snow"][1][0]
    return f"photo of {f' {scene.relation} '.join(parts)} {place}"


def score(
    judge: AttributeJudge, told: Sequence[world.Scene], pictures: Sequence[Image.Image]
) -> dict[str, float]:
    logits = judge.logits(pictures)
    right: dict[str, list[bool]] = {name: [] for name in BARS}
    guesses = {group: judge.best(logits, group) for group in ("class", "place", "colour")}
    states = {noun: judge.best(logits, f"state:{noun}") for noun in world.CLASSES}
    seen = {noun: logits[:, judge.names.index(f"class:{noun}")] > 0 for noun in world.CLASSES}
    for k, scene in enumerate(told):
        if len(scene.figures) == 2:
            right["both objects"].append(all(bool(seen[f.subject.noun][k]) for f in scene.figures))
            continue
        (f,) = scene.figures
        right["class"].append(guesses["class"][k] == f.subject.noun)
        right["place"].append(guesses["place"][k] == scene.place)
        right["colour"].append(guesses["colour"][k] == f.subject.hue)
        if f.state != world.CLASSES[f.subject.noun].rest:
            right["state"].append(states[f.subject.noun][k] == f.state)
    return {name: float(np.mean(hits)) for name, hits in right.items() if hits}


@click.command()
@click.option("--count", default=PICTURES, show_default=True)
@click.option("--folder", default=bases.STORYBOOK, help="Another base of the same world, to compare.")
@click.option("--guidance", default=FAMILIES[bases.STORYBOOK].guidance_scale, show_default=True)
@click.option(
    "--pag",
    default=0.0,
    show_default=True,
    help="Perturbed-attention guidance; of a FOLDER in the middle alone.",
)
def main(count: int, folder: str, guidance: float, pag: float) -> None:
    use_own_cores()
    base = bases.load(folder)
    judge = AttributeJudge()
    found: dict[str, float] = {}
    ceiling: dict[str, float] = {}
    for pair in (False, True):
        told = scenes(count, pair)
        ceiling |= score(judge, told, [world.render(scene) for scene in told])
        asked = [prompt(scene) for scene in told]
        found |= score(judge, told, draw(base, asked, range(count), guidance=guidance, pag=pag))
    for name, bar in BARS.items():
        seen, best = (scores.get(name, float("nan")) for scores in (found, ceiling))
        print(f"{name:13} {seen:.3f}  (bar {bar:.2f}, renders {best:.3f})")
    renders = np.stack([np.asarray(world.render(data.scene("scored", k))) for k in range(RENDERS)])
    decibels = autoencoder.psnr(base.pipe.vae, renders)
    print(f"autoencoder   {decibels:.1f} dB  (bar {DECIBELS:.0f} dB)")
    holds = decibels >= DECIBELS and all(found.get(name, 0.0) >= bar for name, bar in BARS.items())
    finish(
        "storybook_base",
        found,
        "share",
        BARS,
        holds,
        f"0..{count - 1}",
        trial=shortfall(pictures=(count, PICTURES)),
        ceiling=ceiling,
        autoencoder_db=decibels,
        steps=STEPS,
        pag=pag,
    )


if __name__ == "__main__":
    main()
