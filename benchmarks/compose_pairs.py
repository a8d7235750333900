"""Two unseen subjects in one storybook picture, by every way of merging: what is left of each on its crop.

Similarity of a subject's crop to its photos, where 0 is what the plain class nouns give in the same prompts
and 1 is renders through the autoencoder. The kept share is that by the same of the subject drawn with nobody
else taught: in one frame beside the other's class noun, side by side in a window of its own; the same seeds.
Outside of the concepts' parts a confined picture is compared with the base's own of the class nouns.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor

from benchmarks.pictures import draw, draw_with
from benchmarks.report import finish, shortfall, use_own_cores
from benchmarks.taught import Taught, interval, teach
from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import read
from conceptkit.evaluate import metrics, scorers
from conceptkit.evaluate.scorers import AttributeJudge, SubjectJudge
from conceptkit.inference.attach import attach
from conceptkit.inference.generate import STEPS
from conceptkit.inference.layout import PictureLayout
from conceptkit.inference.split_prompt import clause_of_each
from conceptkit.registry.store import Registry
from conceptkit.storybook.world import scene

PROMPTS = ("a {} next to a {}", "photo of a {} next to a {} on the beach", "a {} next to a {} in a forest")
SIZE = 64
HALVES = ((0, 24, 36, 60), (28, 24, 64, 60))
"""Where the world draws two things side by side in one frame of 64 pixels."""
OLD = {"confine": False}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "confined": {},
    "confined, no detail": {"detail": False},
    "confined, routed": {"merge_method": "routed"},
    "confined, regions": {"regions": True},
    "one frame": OLD,
    "one frame, read together": {**OLD, "isolate_concepts": False},
    "one frame, regions": {**OLD, "regions": True},
    "one frame, auto regions": {"auto_regions": True},
    "one frame, routed": {**OLD, "merge_method": "routed"},
    "custom diffusion": {**OLD, "merge_method": "closed-form", "isolate_concepts": False},
    "sum": {**OLD, "merge_method": "sum"},
    "average": {**OLD, "merge_method": "linear"},
    "svd": {**OLD, "merge_method": "svd"},
    "ties": {**OLD, "merge_method": "ties"},
    "side by side": {"side_by_side": True},
    "side by side, constrained": {"side_by_side": True, "merge_method": "closed-form"},
    "side by side, routed": {"side_by_side": True, "merge_method": "routed"},
    "side by side, sum": {"side_by_side": True, "merge_method": "sum"},
    "side by side, average": {"side_by_side": True, "merge_method": "linear"},
}
BARS = {"different": 0.95, "same": 0.9, "seen twice": 0.05, "missing": 0.03, "outside": 40.0}
"""Lower bounds of the kept share; shares of pictures with one subject twice, or both swapped; things missing
beyond those that the base leaves out; decibels outside of the concepts' parts."""
EMPTY = 1e-3
"""Mask below which a cell has nothing of a concept."""
APART = 5
"""Classes between the two of a pair of different classes."""
PAIRS, SEEDS = 10, 4
KINDS = ("different", "same")


@dataclass(frozen=True, eq=False)
class Bounds:
    """Similarities of both subjects (2,): of class nouns, of renders, and of each as the only one taught.

    missing: shares of crops without their class, of class nouns, of renders, and of each subject as the only
    one taught. plain: the pictures of class nouns. middle (2,): each subject's similarity to crops of
    renders, half of which show it. twice: shares of renders, and of crops that show each subject as the only
    one taught, which are both nearest to one subject.
    """

    floor: np.ndarray
    ceiling: np.ndarray
    alone: np.ndarray
    missing: tuple[float, float, float]
    plain: tuple[Image.Image, ...] = ()
    middle: np.ndarray | float = 0.0
    twice: tuple[float, float] | None = None

    def share(self, scores: np.ndarray) -> np.ndarray:
        return (scores - self.floor) / (self.ceiling - self.floor)


class Scorer:
    """Both judges, and the seeds and steps that all pictures have in common."""

    def __init__(self, base: bases.Base, registry: Registry, seeds: int, steps: int) -> None:
        self.base, self.registry, self.seeds, self.steps = base, registry, list(range(seeds)), steps
        self.who, self.what = SubjectJudge(), AttributeJudge()

    def pictures(
        self, first: str, second: str, layouts: list[PictureLayout] | None = None
    ) -> list[Image.Image]:
        """Three prompts with these words in them, all seeds; `layouts` gets those of the pictures."""
        drawn: list[Image.Image] = []
        for prompt in PROMPTS:
            drawn += draw(
                self.base, [prompt.format(first, second)] * len(self.seeds), self.seeds, steps=self.steps
            )
            attachment = getattr(self.base.pipe.encode_prompt, "attachment", None)
            if layouts is not None and attachment is not None and attachment.layout:
                layouts += attachment.layout.pictures
        return drawn

    def likeness(self, pictures: Sequence[Image.Image], real: Sequence[Tensor]) -> np.ndarray:
        """(pictures, crops, subjects): mean cosine of each crop to each subject's photos."""
        cut = [crop for picture in pictures for crop in crops(picture)]
        seen = self.who.embed(cut)
        scores = torch.stack([(seen @ photos.T).mean(dim=1) for photos in real], dim=1)
        return scores.view(len(pictures), 2, len(real)).numpy()

    def missing(self, pictures: Sequence[Image.Image], sides: np.ndarray, nouns: Sequence[str]) -> float:
        """Share of subjects whose crop shows nothing of their class."""
        cut = [
            [crops(picture)[pair[k]] for picture, pair in zip(pictures, sides, strict=True)]
            for k in range(len(nouns))
        ]
        return float(np.mean([self.without(shown, noun) for shown, noun in zip(cut, nouns, strict=True)]))

    def without(self, pictures: Sequence[Image.Image], noun: str) -> float:
        """Share of pictures that show nothing of a class."""
        logits = self.what.logits(list(pictures))
        return float((logits[:, self.what.names.index(f"class:{noun}")] < 0).float().mean())

    def in_one_frame(self, pair: Sequence[Taught]) -> Bounds:
        """Both in a frame: plain nouns, rendered pairs, each subject beside the other's noun."""
        (a, b), real = pair, [one.real for one in pair]
        with_nouns = [self.pictures(a.noun, b.noun)]
        for one, words in ((a, (a.name, b.noun)), (b, (a.noun, b.name))):
            with attach(self.base.pipe, one.name, registry=self.registry, confine=False):
                with_nouns.append(self.pictures(*words))
        seen = [self.likeness(drawn, real) for drawn in with_nouns]
        plain, *alone = (assigned(each)[0].mean(axis=0) for each in seen)
        rng = np.random.default_rng(11)
        rendered = [
            scene.render(
                scene.Scene(
                    tuple(scene.draw_figure(one.subject, rng, plain=True) for one in pair),
                    "beach" if k % 3 == 1 else None,
                    relation="next to",
                    seed=k,
                )
            )
            for k in range(12)
        ]
        passed = scorers.round_trips(self.base.pipe.vae, rendered)
        best = self.likeness(passed, real)
        middle = best.mean(axis=(0, 1))
        straight, nouns = np.array([0, 1]), [one.noun for one in pair]
        missing = [
            self.missing(shown, np.tile(straight, (len(shown), 1)), nouns)
            for shown in (with_nouns[0], passed)
        ]
        single = [
            self.without([crops(picture)[k] for picture in with_nouns[k + 1]], noun)
            for k, noun in enumerate(nouns)
        ]
        return Bounds(
            plain,
            assigned(best)[0].mean(axis=0),
            np.array([alone[0][0], alone[1][1]]),
            (missing[0], missing[1], float(np.mean(single))),
            tuple(with_nouns[0]),
            middle,
            (one_twice(best - middle), one_twice(own_crops(*seen[1:]) - middle)),
        )

    def in_windows(self, pair: Sequence[Taught]) -> Bounds:
        """Each in a frame of its own: the plain noun, other photos, the subject by itself."""
        a, b = pair
        words = {one.name: f"<{one.name}> {one.noun}" for one in pair}
        told = [clause_of_each(prompt.format(a.name, b.name), words) for prompt in PROMPTS]
        found, missing = [], []
        for one in pair:
            own = read(self.registry, one.name)
            of_noun, of_name = (
                [
                    p
                    for clauses in told
                    for p in draw_with(
                        self.base, which, clauses[one.name].replace(one.name, word), self.seeds, self.steps
                    )
                ]
                for which, word in ((None, one.noun), (own, one.name))
            )
            renders = scorers.round_trips(self.base.pipe.vae, one.shots[len(one.real) :])
            found.append(
                [metrics.similarity(self.who.embed(p), one.real) for p in (of_noun, renders, of_name)]
            )
            missing.append([self.without(p, one.noun) for p in (of_noun, renders, of_name)])
        floor, ceiling, alone = np.array(found).T
        of_nouns, of_renders, of_names = np.mean(missing, axis=0)
        return Bounds(floor, ceiling, alone, (of_nouns, of_renders, of_names))


def crops(picture: Image.Image) -> list[Image.Image]:
    """The two halves of a frame, as large as a frame; or the two windows of a wider picture."""
    if picture.width > SIZE:
        boxes: Sequence[tuple[int, int, int, int]] = (
            (0, 0, SIZE, SIZE),
            (picture.width - SIZE, 0, picture.width, SIZE),
        )
    else:
        boxes = HALVES
    return [picture.crop(box).resize((SIZE, SIZE), Image.Resampling.LANCZOS) for box in boxes]


def one_twice(likeness: np.ndarray) -> float:
    """Share of pictures whose crops are both nearest to the same subject, in likeness beyond its middle."""
    nearest = likeness.argmax(axis=2)
    return float((nearest[:, 0] == nearest[:, 1]).mean())


def own_crops(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Likenesses (n, 2, 2) of two crops to two subjects: the crop of the first subject from the pictures in
    which it alone was taught, that of the second from its own; both (n, crops, subjects)."""
    rows = np.arange(len(first))
    sides = [assigned(each)[1] for each in (first, second)]
    return np.stack([first[rows, sides[0][:, 0]], second[rows, sides[1][:, 1]]], axis=1)


def assigned(likeness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The better of the two ways to find both subjects: scores (n, 2) and sides (n, 2) of each."""
    straight = likeness[:, [0, 1], [0, 1]]
    crossed = likeness[:, [1, 0], [0, 1]]
    better = crossed.sum(axis=1) > straight.sum(axis=1)
    scores = np.where(better[:, None], crossed, straight)
    return scores, np.where(better[:, None], [1, 0], [0, 1])


def score_pair(scorer: Scorer, pair: Sequence[Taught], ways: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each way: scores of both subjects from 0 to 1, alone and together, and what went wrong."""
    base, (a, b) = scorer.base, pair
    real = [one.real for one in pair]
    bounds: dict[bool, Bounds] = {}
    result = {}
    for way in ways:
        options = {"side_by_side": False, **WAYS[way]}
        wide = bool(options["side_by_side"])
        if wide not in bounds:
            bounds[wide] = scorer.in_windows(pair) if wide else scorer.in_one_frame(pair)
        placed = options.pop("regions", False)
        places = [f"{a.name}=left", f"{b.name}=right"] if placed else []
        with attach(
            base.pipe, a.name, b.name, registry=scorer.registry, regions=places, **options
        ) as attachment:
            layouts: list[PictureLayout] = []
            pictures = scorer.pictures(a.name, b.name, layouts)
            kept = [one.words or 0.0 for one in attachment.report.kept] if attachment.report else []
        seen = scorer.likeness(pictures, real)
        scores, sides = assigned(seen)
        swapped = float((sides[:, 0] == 1).mean()) if placed or wide else None
        if wide:  # who is to be where is known, so a swap is no better way to find them
            scores, sides = seen[:, [0, 1], [0, 1]], np.tile([0, 1], (len(seen), 1))
        result[way] = {
            "together": bounds[wide].share(scores.mean(axis=0)),
            "alone": bounds[wide].share(bounds[wide].alone),
            "kept": kept,
            "missing": scorer.missing(pictures, sides, [a.noun, b.noun]),
            "missing bounds": bounds[wide].missing,
            "one twice": one_twice(seen - bounds[wide].middle),
            "twice bounds": bounds[wide].twice,
            "swapped": swapped,
            "outside": unlike_outside(pictures, bounds[wide].plain, layouts),
            "not found": [not picture.complete for picture in layouts],
        }
    return result


def unlike_outside(
    pictures: Sequence[Image.Image], plain: Sequence[Image.Image], layouts: Sequence[PictureLayout]
) -> list[float]:
    """PSNR in decibels of each picture to the base's own of the class nouns, where no concept has a part; of
    those that begin with the same noise."""
    found = []
    for picture, base, layout in zip(pictures, plain, layouts, strict=False):
        if layout.tries > 1:
            continue
        parts = layout.masks.sum(dim=0) if layout.changed is None else layout.changed
        masks = F.interpolate(parts[None, None], (SIZE, SIZE), mode="nearest")[0, 0]
        free = (masks < EMPTY).numpy()
        off = (np.asarray(picture, dtype=float) - np.asarray(base, dtype=float))[free]
        found.append(float(20 * np.log10(255) - 10 * np.log10(max(np.square(off).mean(), 1e-6))))
    return found


def summary(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    together = np.array([pair["together"].mean() for pair in pairs])
    alone = np.array([pair["alone"].mean() for pair in pairs])
    swapped = [pair["swapped"] for pair in pairs if pair["swapped"] is not None]
    outside = [decibels for pair in pairs for decibels in pair["outside"]]
    twice = [pair["twice bounds"] for pair in pairs if pair["twice bounds"] is not None]
    lost = [missing for pair in pairs for missing in pair["not found"]]
    return {
        "share": float(together.mean() / alone.mean()),
        "interval": interval(together, alone),
        "gap": float(together.mean()),
        "alone": float(alone.mean()),
        "kept": float(np.mean([pair["kept"] for pair in pairs])),
        "missing": float(np.mean([pair["missing"] for pair in pairs])),
        "missing of class nouns, renders and each alone": np.mean(
            [p["missing bounds"] for p in pairs], axis=0
        ).tolist(),
        "one twice": float(np.mean([pair["one twice"] for pair in pairs])),
        "one twice of renders and each alone": np.mean(twice, axis=0).tolist() if twice else None,
        "swapped": float(np.mean(swapped)) if swapped else None,
        "outside": float(np.mean(outside)) if outside else None,
        "not found": float(np.mean(lost)) if lost else None,
    }


def _holds(kind: str, line: Mapping[str, Any]) -> bool:
    """Whether one kind of pairs holds its bars."""
    return bool(
        line["interval"][0] >= BARS[kind]
        and line["one twice"] <= BARS["seen twice"]
        and line["missing"] <= line["missing of class nouns, renders and each alone"][0] + BARS["missing"]
        and line["outside"] is not None
        and line["outside"] >= BARS["outside"]
    )


@click.command()
@click.option(
    "--pairs", default=PAIRS, show_default=True, help="Of different classes, and again of one class."
)
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), help="Only these.")
@click.option("--steps", default=STEPS, show_default=True, help="Denoising steps.")
@click.option("--learning-steps", type=int, help="Training steps of each subject.  [default: the recipe's]")
@click.option(
    "--base", "base_name", default=bases.STORYBOOK, show_default=True, help="Windows take storybook."
)
@click.option("--kind", "chosen", multiple=True, type=click.Choice(KINDS), help="Only these pairs.")
@click.option("--home", default="build/taught", show_default=True, help="Keeps what was taught.")
def main(
    pairs: int,
    seeds: int,
    ways: tuple[str, ...],
    steps: int,
    learning_steps: int | None,
    base_name: str,
    chosen: tuple[str, ...],
    home: str,
) -> None:
    use_own_cores()
    warnings.simplefilter("ignore")
    classes = len(scene.CLASSES)
    kinds = {
        "different": [(k, k + classes + APART) for k in range(pairs)],
        "same": [(k, k + classes) for k in range(pairs)],
    }
    kinds = {kind: wanted for kind, wanted in kinds.items() if kind in (chosen or KINDS)}
    found: dict[str, dict[str, Any]] = {}
    with Registry(Path(home)) as registry:
        base = bases.load(base_name)
        scorer = Scorer(base, registry, seeds, steps)
        for kind, wanted in kinds.items():
            lines: dict[str, list[dict[str, Any]]] = {way: [] for way in ways or WAYS}
            for numbers in track(wanted, f"{kind} classes"):
                pair = [teach(base, scorer.who, registry, n, learning_steps) for n in numbers]
                for way, line in score_pair(scorer, pair, list(lines)).items():
                    lines[way].append(line)
            found[kind] = {way: summary(line) for way, line in lines.items()}
            for way, line in found[kind].items():
                low, high = line["interval"]
                of_nouns, of_renders, of_names = line["missing of class nouns, renders and each alone"]
                share = f"{line['share']:.2f} [{low:.2f}, {high:.2f}]"
                print(
                    f"{kind:9} {way:22} kept share {share}, "
                    f"gap {line['gap']:.2f}, alone {line['alone']:.2f}, "
                    f"missing {line['missing']:.0%} (class nouns {of_nouns:.0%}, renders {of_renders:.0%}, "
                    f"each alone {of_names:.0%}), "
                    f"one twice {line['one twice']:.0%} "
                    f"(renders, each alone {line['one twice of renders and each alone']}), "
                    f"swapped {line['swapped']}, outside {line['outside']}, not found {line['not found']}",
                    flush=True,
                )
    ours = {kind: lines.get("confined") for kind, lines in found.items()}
    different = ours.get("different")
    finish(
        "compose_pairs",
        different["interval"][0] if different else None,
        "lower 95 % bound of the kept share, confined in one frame, different classes",
        BARS,
        all(_holds(kind, line) for kind, line in ours.items() if line) if all(ours.values()) else None,
        f"0..{seeds - 1}",
        trial=shortfall(
            learning_steps,
            pairs=(pairs, PAIRS),
            seeds=(seeds, SEEDS),
            denoising_steps=(steps, STEPS),
            kinds_of_pairs=(len(kinds), len(KINDS)),
            storybooks=(int(base_name == bases.STORYBOOK), 1),
        ),
        pairs=pairs,
        found=found,
    )


if __name__ == "__main__":
    main()
