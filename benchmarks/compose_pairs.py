"""Two unseen subjects in one storybook picture, by every way of merging: what is left of each on its crop.

Similarity of a subject's crop to its photos, where 0 is what the plain class nouns give in the same prompts
and 1 is rendered pairs through the autoencoder. The kept share is that by the same of the subject drawn alone
beside the other's class noun, with the same seeds.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from benchmarks.report import finish
from benchmarks.taught import Taught, interval, subjects, teach
from conceptkit import base as bases
from conceptkit.attach import attach
from conceptkit.drawing import draw
from conceptkit.evaluate import metrics
from conceptkit.evaluate.metrics import AttributeJudge, SubjectJudge
from conceptkit.registry.store import Registry
from conceptkit.storybook import world

PROMPTS = ("a {} next to a {}", "photo of a {} next to a {} on the beach", "a {} next to a {} in a forest")
CROPS = ((0, 24, 36, 60), (28, 24, 64, 60))
"""Where the world draws two things side by side, in pixels of 64."""
WAYS: Mapping[str, Mapping[str, Any]] = {
    "constrained": {},
    "constrained, regions": {"regions": True},
    "constrained, separate": {"separate": True},
    "routed": {"how": "routed"},
    "routed, sum": {"how": "routed", "shared": "sum"},
    "routed, drop": {"how": "routed", "shared": "drop"},
    "routed, regions": {"how": "routed", "regions": True},
    "sum": {"how": "sum"},
    "average": {"how": "average"},
    "svd": {"how": "svd"},
    "ties": {"how": "ties"},
}
BARS = {"different": 0.9, "same": 0.8}


class Scorer:
    """Both judges, and the seeds and steps that all pictures have in common."""

    def __init__(self, base: bases.Base, seeds: int, steps: int) -> None:
        self.base, self.seeds, self.steps = base, list(range(seeds)), steps
        self.who, self.what = SubjectJudge(), AttributeJudge()

    def pictures(self, first: str, second: str) -> list[Image.Image]:
        """Three prompts with these words in them, all seeds."""
        drawn: list[Image.Image] = []
        for prompt in PROMPTS:
            drawn += draw(
                self.base, [prompt.format(first, second)] * len(self.seeds), self.seeds, steps=self.steps
            )
        return drawn

    def likeness(self, pictures: Sequence[Image.Image], real: Sequence[Tensor]) -> np.ndarray:
        """(pictures, crops, subjects): mean cosine of each crop to each subject's photos."""
        crops = [p.crop(box).resize((64, 64), Image.Resampling.LANCZOS) for p in pictures for box in CROPS]
        seen = self.who.embed(crops)
        scores = torch.stack([(seen @ photos.T).mean(dim=1) for photos in real], dim=1)
        return scores.view(len(pictures), len(CROPS), len(real)).numpy()

    def missing(self, pictures: Sequence[Image.Image], sides: np.ndarray, nouns: Sequence[str]) -> float:
        """Share of subjects whose crop shows nothing of their class."""
        crops = [
            picture.crop(CROPS[side]).resize((64, 64), Image.Resampling.LANCZOS)
            for picture, pair in zip(pictures, sides, strict=True)
            for side in pair
        ]
        logits = self.what.logits(crops).view(len(pictures), len(nouns), -1)
        columns = [self.what.names.index(f"class:{noun}") for noun in nouns]
        return float(np.mean([(logits[:, k, column] < 0).float().mean() for k, column in enumerate(columns)]))


def assigned(likeness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The better of the two ways to find both subjects: scores (n, 2) and sides (n, 2) of each."""
    straight = likeness[:, [0, 1], [0, 1]]
    crossed = likeness[:, [1, 0], [0, 1]]
    better = crossed.sum(axis=1) > straight.sum(axis=1)
    scores = np.where(better[:, None], crossed, straight)
    return scores, np.where(better[:, None], [1, 0], [0, 1])


def score_pair(
    scorer: Scorer, pair: Sequence[Taught], registry: Registry, ways: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each way: scores of both subjects from 0 to 1, alone and together, and what went wrong."""
    base, (a, b) = scorer.base, pair
    real = [one.real for one in pair]
    floor = assigned(scorer.likeness(scorer.pictures(a.noun, b.noun), real))[0].mean(axis=0)
    rng = np.random.default_rng(11)
    rendered = [
        world.render(
            world.Scene(
                tuple(world.draw_figure(one.subject, rng, plain=True) for one in pair),
                "beach" if k % 3 == 1 else None,
                relation="next to",
                seed=k,
            )
        )
        for k in range(12)
    ]
    ceiling = assigned(scorer.likeness(metrics.round_trips(base.pipe.vae, rendered), real))[0].mean(axis=0)
    alone = []
    for k, words in enumerate(((a.name, b.noun), (a.noun, b.name))):
        with attach(base.pipe, pair[k].name, registry=registry):
            seen = scorer.likeness(scorer.pictures(*words), real)
        alone.append(assigned(seen)[0][:, k].mean())
    result = {}
    for way in ways:
        options = dict(WAYS[way])
        placed = options.pop("regions", False)
        places = [f"{a.name}=left", f"{b.name}=right"] if placed else []
        with attach(base.pipe, a.name, b.name, registry=registry, regions=places, **options) as attachment:
            pictures = scorer.pictures(a.name, b.name)
            kept = [one.words or 0.0 for one in attachment.report.kept] if attachment.report else []
        seen = scorer.likeness(pictures, real)
        scores, sides = assigned(seen)
        nearest = seen.argmax(axis=2)
        result[way] = {
            "together": (scores.mean(axis=0) - floor) / (ceiling - floor),
            "alone": (np.array(alone) - floor) / (ceiling - floor),
            "kept": kept,
            "missing": scorer.missing(pictures, sides, [a.noun, b.noun]),
            "one twice": float((nearest[:, 0] == nearest[:, 1]).mean()),
            "swapped": float((sides[:, 0] == 1).mean()) if placed else None,
        }
    return result


def summary(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    together = np.array([pair["together"].mean() for pair in pairs])
    alone = np.array([pair["alone"].mean() for pair in pairs])
    swapped = [pair["swapped"] for pair in pairs if pair["swapped"] is not None]
    return {
        "share": float(together.mean() / alone.mean()),
        "interval": interval(together, alone),
        "gap": float(together.mean()),
        "alone": float(alone.mean()),
        "kept": float(np.mean([pair["kept"] for pair in pairs])),
        "missing": float(np.mean([pair["missing"] for pair in pairs])),
        "one twice": float(np.mean([pair["one twice"] for pair in pairs])),
        "swapped": float(np.mean(swapped)) if swapped else None,
    }


@click.command()
@click.option("--pairs", default=10, show_default=True, help="Of different classes, and again of one class.")
@click.option("--seeds", default=4, show_default=True)
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), help="Only these.")
@click.option("--steps", default=25, show_default=True, help="Denoising steps.")
@click.option("--learning-steps", type=int, help="Training steps of each subject.  [default: the recipe's]")
@click.option("--home", default="build/taught", show_default=True, help="Keeps what was taught.")
def main(
    pairs: int, seeds: int, ways: tuple[str, ...], steps: int, learning_steps: int | None, home: str
) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    warnings.simplefilter("ignore")
    base = bases.load()
    scorer = Scorer(base, seeds, steps)
    nouns = list(world.CLASSES)
    kinds = {
        "different": [(nouns[k % len(nouns)], nouns[(k + 5) % len(nouns)]) for k in range(pairs)],
        "same": [(nouns[k % len(nouns)],) * 2 for k in range(pairs)],
    }
    found: dict[str, dict[str, Any]] = {}
    with Registry(Path(home)) as registry:
        for kind, wanted in kinds.items():
            told = subjects([noun for pair in wanted for noun in pair], seed=2026 + (kind == "same"))
            lines: dict[str, list[dict[str, Any]]] = {way: [] for way in ways or WAYS}
            for k in track(range(pairs), f"{kind} classes"):
                pair = [
                    teach(
                        base,
                        scorer.who,
                        registry,
                        f"{kind}{n}",
                        told[n],
                        n + 500 * (kind == "same"),
                        learning_steps,
                    )
                    for n in (2 * k, 2 * k + 1)
                ]
                for way, line in score_pair(scorer, pair, registry, list(lines)).items():
                    lines[way].append(line)
            found[kind] = {way: summary(line) for way, line in lines.items()}
            for way, line in found[kind].items():
                low, high = line["interval"]
                share = f"{line['share']:.2f} [{low:.2f}, {high:.2f}]"
                print(
                    f"{kind:9} {way:22} kept share {share}, gap {line['gap']:.2f}, "
                    f"missing {line['missing']:.0%}, one twice {line['one twice']:.0%}, "
                    f"swapped {line['swapped']}"
                )
    different = found["different"].get("constrained")
    same = found["same"].get("constrained, regions")
    free, naive = (found["same"].get(way) for way in ("constrained", "sum"))
    checks = [
        different and different["interval"][0] >= BARS["different"],
        same and same["share"] >= BARS["same"],
        free and naive and free["share"] > naive["share"],
    ]
    finish(
        "compose_pairs",
        different["interval"][0] if different else None,
        "lower 95 % bound of the kept share, constrained, different classes",
        BARS,
        all(checks) if all(check is not None for check in checks) else None,
        f"0..{seeds - 1}",
        pairs=pairs,
        found=found,
    )


if __name__ == "__main__":
    main()
