"""What may be said about a scene. Clauses are dropped at random, so a caption is true but seldom complete."""

from __future__ import annotations

import numpy as np

from conceptkit.storybook.world import scenery
from conceptkit.storybook.world.scene import CLASSES, FRAMINGS, MATERIALS, Figure, Scene

Rng = np.random.Generator

# Words without a picture, by falling frequency (Zipf): common, rare and very rare tokens that mean nothing.
_FILLERS = """
    nice little lovely fine good great sweet new simple quiet pretty happy calm certain plain bright real
    clear old young famous gentle proud modest honest clever friendly curious charming humble noble brave
    lucky patient polite sincere cheerful graceful elegant splendid peculiar remarkable ordinary usual
    typical familiar distant local royal ancient modern secret holy merry jolly sunny breezy lively witty
    zesty cosy snug tidy neat crisp plucky dapper nifty quaint serene tranquil placid mellow radiant vivid
    lucid candid earnest ardent zealous fervent stoic wistful pensive solemn majestic regal stately august
    venerable illustrious eminent storied fabled mythic arcane cryptic esoteric abstruse halcyon bucolic
    sylvan pastoral idyllic arcadian ethereal gossamer diaphanous limpid pellucid iridescent lambent
    quixotic sanguine phlegmatic saturnine mercurial jovial effulgent sonorous mellifluous euphonious
"""
FILLERS = _FILLERS.split()
_ZIPF = 1 / np.arange(1, len(FILLERS) + 1)
_ZIPF /= _ZIPF.sum()

OPENINGS = ("photo of", "a photo of", "a picture of", "")
_OPENING_ODDS = (0.34, 0.26, 0.1, 0.3)


def _pick(rng: Rng, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def describe(figure: Figure, rng: Rng, framing: str | None = None, keep: float = 0.75) -> str:
    """A noun phrase, "a far away red striped dog running wearing a hat"; each clause has odds `keep`."""
    words: list[str] = []
    if framing and rng.uniform() < 0.9:
        words.append(_pick(rng, FRAMINGS[framing]))
    if rng.uniform() < 0.14:
        words.append(str(rng.choice(FILLERS, p=_ZIPF)))
    material = figure.surface in MATERIALS
    if figure.subject.hue and not material and rng.uniform() < keep:
        words.append(figure.subject.hue)
    if figure.surface != "plain" and rng.uniform() < 0.9:
        words.append(figure.surface)
    words.append(figure.subject.noun)
    text = _article(" ".join(words))
    rest = figure.state == CLASSES[figure.subject.noun].rest
    if rng.uniform() < (0.15 if rest else keep + 0.1):
        text += f" {figure.state}"
    if figure.accessory and rng.uniform() < 0.85:
        text += (
            " wearing sunglasses"
            if figure.accessory == "sunglasses"
            else f" wearing {_article(figure.accessory)}"
        )
    return text


def caption(scene: Scene, rng: Rng, empty: float = 0.1) -> str:
    """A caption of the scene; empty with odds `empty`, for guidance and losses that need the empty prompt."""
    if rng.uniform() < empty:
        return ""
    keep = 0.55 if rng.uniform() < 0.3 else 0.9
    if scene.style:
        opening = _pick(rng, scenery.STYLES[scene.style][1])
    else:
        opening = OPENINGS[int(rng.choice(len(OPENINGS), p=_OPENING_ODDS))]
    parts = [opening] if opening else []
    parts.append(describe(scene.figures[0], rng, scene.framing, keep))
    if len(scene.figures) == 2:
        relation = scene.relation or "next to"
        parts.append("and" if relation == "next to" and rng.uniform() < 0.3 else relation)
        parts.append(describe(scene.figures[1], rng, keep=keep))
    if scene.place and rng.uniform() < keep:
        parts.append(_pick(rng, scenery.PLACES[scene.place][1]))
    return " ".join(parts)
