"""How much of a subject is learned: gap closed, alone and after a merge; identification and side effects."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from typing import Any

import click
import numpy as np
from rich.progress import track

from benchmarks.pictures import draw_with
from benchmarks.report import finish, shortfall, use_own_cores
from conceptkit.base import pipeline as bases
from conceptkit.data.photos import PhotoSet
from conceptkit.evaluate import metrics, scorers
from conceptkit.learn import config, trainer
from conceptkit.merging import compose
from conceptkit.registry.store import Registry
from conceptkit.storybook.world import scene

PROMPTS = (
    "photo of a {}",
    "photo of a {} in the city",
    "photo of a {} on the beach",
    "photo of a {} in a forest",
)
DISTRACTORS = 20
SUBJECTS, SEEDS = 10, 2


@click.command()
@click.option("--count", default=SUBJECTS, show_default=True, help="Unseen subjects.")
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe.")
def main(count: int, seeds: int, changes: tuple[str, ...]) -> None:
    use_own_cores()
    base, judge = bases.load(), scorers.SubjectJudge()
    recipe = config.config_for()
    for change in changes:
        field, _, value = change.partition("=")
        recipe = replace(recipe, **{field: type(getattr(recipe, field))(float(value))})
    rng = np.random.default_rng(2026)
    nouns = list(scene.CLASSES)
    told = [scene.draw_subject(rng, nouns[k % len(nouns)], "scored") for k in range(count)]
    lines: list[dict[str, Any]] = []
    concepts = []
    with Registry(tempfile.mkdtemp()) as registry:
        for k, subject in enumerate(track(told, "learning")):
            shots = tuple(scene.photos(subject, 10, 1000 + k))
            shown = PhotoSet(shots[:5], tuple(str(n) for n in range(5)), str(k))
            name = f"thing{k}"
            begun = time.process_time()
            concept = trainer.learn(base, shown, name, subject.noun, recipe, registry=registry)
            seconds = time.process_time() - begun
            concepts.append(concept)
            lines.append(
                _judge(base, judge, subject, shots, concept, seeds, name, registry) | {"cpu_seconds": seconds}
            )
            print(
                {
                    key: round(v, 3) if isinstance(v, float) else v
                    for key, v in lines[-1].items()
                    if key != "real"
                },
                flush=True,
            )
        merged = []
        for k in range(0, count - 1, 2):
            merge_of = compose.compose(*concepts[k : k + 2], base=base, registry=registry)
            merged.append(merge_of)
            for line, concept in zip(lines[k : k + 2], concepts[k : k + 2], strict=True):
                drawn = [
                    p
                    for text in PROMPTS
                    for p in draw_with(base, merge_of, text.format(concept.name), range(seeds))
                ]
                score = metrics.similarity(judge.embed(drawn), line.pop("real"))
                line["merged"] = metrics.gap(score, line["floor"], line["ceiling"])
    keys = ("gap", "named", "plain", "captions", "cpu_seconds")
    figures = {key: float(np.mean([line[key] for line in lines])) for key in keys}
    figures["merged_gap"] = float(np.mean([line["merged"] for line in lines if "merged" in line]))
    figures["kept_words"] = float(np.mean([k.words or 0 for m in merged for k in m.report.kept]))
    figures["kept_prompt"] = float(np.mean([k.prompt or 0 for m in merged for k in m.report.kept]))
    figures["merged_captions"] = float(np.mean([m.report.captions for m in merged]))
    gaps = np.array([line["gap"] for line in lines])
    picks = np.random.default_rng(0).integers(len(gaps), size=(2000, len(gaps)))
    low, high = np.percentile(gaps[picks].mean(1), [2.5, 97.5])
    finish(
        "subjects",
        figures["gap"],
        "share of the gap between class noun and held-out photos",
        0.8,
        figures["gap"] >= 0.8,
        f"0..{seeds - 1}",
        trial=shortfall(subjects=(count, SUBJECTS), seeds=(seeds, SEEDS)),
        interval=[float(low), float(high)],
        subjects=count,
        recipe=recipe.to_json(),
        **{k: v for k, v in figures.items() if k != "gap"},
    )


def _judge(
    base: Any, judge: Any, subject: Any, shots: Any, concept: Any, seeds: int, name: str, registry: Any
) -> dict[str, Any]:
    real, held_out = judge.embed(shots[:5]), judge.embed(scorers.round_trips(base.pipe.vae, shots[5:]))
    drawn = [p for text in PROMPTS for p in draw_with(base, concept, text.format(name), range(seeds))]
    usual = [p for text in PROMPTS for p in draw_with(base, None, text.format(subject.noun), range(seeds))]
    found, plain = judge.embed(drawn), judge.embed(usual)
    rng = np.random.default_rng(7)
    others = [scene.draw_subject(rng, subject.noun, "scored", hue=subject.hue) for _ in range(DISTRACTORS)]
    rivals = judge.embed([s for k, other in enumerate(others) for s in scene.photos(other, 5, k)]).view(
        DISTRACTORS, 5, -1
    )
    floor, score = metrics.similarity(plain, real), metrics.similarity(found, real)
    ceiling = metrics.similarity(held_out, real)
    return {
        "noun": subject.noun,
        "gap": metrics.gap(score, floor, ceiling),
        "floor": floor,
        "score": score,
        "ceiling": ceiling,
        "named": metrics.identified(found, real, rivals),
        "plain": metrics.identified(plain, real, rivals),
        "captions": compose.compose(concept, base=base, registry=registry).report.captions,
        "bytes": len(concept.to_bytes()),
        "real": real,
    }


if __name__ == "__main__":
    main()
