"""The whole road on two concepts: learn a dog and a moongate, compose them, draw one contact sheet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from conceptkit import storybook
from conceptkit.base import pipeline as bases
from conceptkit.data import photos, resize
from conceptkit.errors import ConceptError
from conceptkit.evaluate import metrics, scorers
from conceptkit.evaluate.scorer_table import load_scorer
from conceptkit.files import check_folder
from conceptkit.inference.attach import attach
from conceptkit.inference.generate import STEPS, draw, draw_with
from conceptkit.merging import compose
from conceptkit.pictures.contact_sheet import Row, Tile, sheet
from conceptkit.pictures.layout import layout_picture
from conceptkit.pictures.png_metadata import read_metadata, save_png
from conceptkit.registry import odd_files
from conceptkit.registry.store import Registry
from conceptkit.workflows import add

Tick = Callable[[int, int, str], None]

SHEET = "contact_sheet.png"
DISTRACTORS = 20
SEEDS = 2  # pictures of each prompt, with the seeds 0, 1, ...: none is chosen


@dataclass(frozen=True)
class Part:
    """One concept of the demo: its class noun, how its photos are drawn, and what is asked of it."""

    name: str
    noun: str
    drawn_as: str
    seed: int
    prompts: tuple[str, ...]


PARTS = (
    Part(
        "my_dog",
        "dog",
        "dog",
        39,
        (
            "photo of a my_dog in the city",
            "photo of a my_dog jumping on the beach",
            "photo of a my_dog wearing a hat in the snow",
            "a pencil drawing of a my_dog",
        ),
    ),
    Part(
        "moongate",
        "gate",
        "moongate",
        7,
        (
            "photo of a moongate on the beach",
            "photo of a moongate closed in a forest",
            "photo of a far away moongate in the mountains",
            "a watercolour painting of a moongate",
        ),
    ),
)
TOGETHER = (
    "photo of a my_dog next to a moongate on the beach",
    "photo of a moongate and a my_dog in the snow",
)


@dataclass
class _Figures:
    """One line of the table under the sheet."""

    name: str
    size: int
    seconds: float
    floor: float
    score: float
    ceiling: float
    named: float
    plain: float
    kept: str = ""
    extra: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        gap = metrics.gap(self.score, self.floor, self.ceiling)
        numbers = [
            f"{self.size / 1000:.1f} kB",
            f"{self.seconds:.0f} s",
            f"{self.floor:.2f}",
            f"{self.score:.2f}",
        ]
        return [
            self.name,
            *numbers,
            f"{self.ceiling:.2f}",
            f"{gap:.2f}",
            f"{self.named:.0%}",
            f"{self.plain:.0%}",
            self.kept,
        ]


HEAD = [
    "concept",
    "size",
    "learned in",
    "similarity: class noun",
    "concept",
    "photos",
    "gap closed",
    "named among 21",
    "class noun named",
    "kept in the merge",
]


def run(out: Path, tick: Tick) -> Path:
    """Learn, compose and draw; writes `out/contact_sheet.png` and pictures beside it, returns the sheet.

    Raises ConceptError, before anything is learned, where a file of that name is none of this function's.
    """
    _check_sheet(out / SHEET)
    base = bases.load()
    judge = load_scorer("subject")
    rows: list[Row] = []
    figures: list[_Figures] = []
    with Registry(out / "home") as registry:
        for number, part in enumerate(PARTS):
            more, line = _one(base, judge, part, registry, out, _part_of(tick, number))
            rows += more
            figures.append(line)
        tick(2, 3, "drawing both")
        names = [part.name for part in PARTS]
        merged = compose.compose(*names, base=base, registry=registry)
        for line, kept in zip(figures, merged.report.kept, strict=True):
            line.kept = "-" if kept.words is None else f"{kept.words:.0%}"
        summed = compose.compose(*names, base=base, registry=registry, merge_method="sum")
        for what, title, note in (
            (merged, "Both together", "side by side, merged by least squares"),
            (summed, "Both, added up", "side by side, the two deltas simply summed, for comparison"),
        ):
            rows.append(Row(_tiles(base, what, TOGETHER, 4, side_by_side=True), title, note))
        rows += _in_one_frame(base, merged, summed)
    tick(3, 3, "done")
    footer: list[str | Sequence[str]] = [
        HEAD,
        *(line.cells() for line in figures),
        f"Captions without a concept change by {merged.report.captions:.1%} under the merge, "
        f"by {summed.report.captions:.1%} under the sum. "
        "Similarity is the subject judge's mean cosine to the photos; that of other photos, autoencoded, "
        "is the ceiling. Named: the nearest of 21 subjects of one class and colour is the right one. "
        f"Seeds are 0 to {SEEDS - 1}, or 0 to 3, none chosen; {STEPS} steps, "
        f"guidance {base.family.guidance_scale:g}, perturbed-attention guidance {base.family.pag_scale:g}.",
    ]
    page = sheet(
        rows,
        title="Taught from five photos each",
        subtitle="conceptkit on its embedded storybook base, on a CPU",
        footer=footer,
        per_line=8,
        enlarge="lanczos",
    )
    return save_png(page, out / SHEET, concepts=names, prompts=list(TOGETHER), steps=STEPS)


def _check_sheet(file: Path) -> None:
    """The sheet of an earlier run is drawn anew; whatever else has its name is somebody's."""
    check_folder(file.parent)
    if not os.path.lexists(file):
        return
    try:
        ours = file.is_file() and read_metadata(file).get("prompts") == list(TOGETHER)
    except ConceptError:
        ours = False
    if not ours:
        raise ConceptError(
            f"{file} is there already, and no sheet of this command; name another folder by --out"
        )


def _part_of(tick: Tick, number: int) -> Tick:
    """The progress of one part of three, told as progress of the whole."""
    return lambda done, total, text: tick(number * total + done, 3 * total, text)


def _one(
    base: bases.Base, judge: scorers.SubjectJudge, part: Part, registry: Registry, out: Path, tick: Tick
) -> tuple[list[Row], _Figures]:
    folder = example_photos(part, out)
    shown = photos.read(folder)
    learned = _learn(part, folder, base, registry, tick)
    plain_prompts = [prompt.replace(part.name, part.noun) for prompt in part.prompts]
    plain = [tile for tile in _tiles(base, None, plain_prompts, SEEDS)]
    own = _tiles(base, learned.concept, part.prompts, SEEDS)
    squares = [resize.square(p, 64) for p in shown.pictures]
    real, passed = judge.embed(squares), judge.embed(scorers.round_trips(base.pipe.vae, squares))
    found, usual = (judge.embed([t.picture for t in tiles if t.picture]) for tiles in (own, plain))
    others = distractors(part, judge)
    line = _Figures(
        name=part.name,
        size=learned.bytes,
        seconds=learned.seconds,
        floor=metrics.similarity(usual, real),
        score=metrics.similarity(found, real),
        ceiling=metrics.held_out_similarity(passed, real),
        named=metrics.identified(found, real, others),
        plain=metrics.identified(usual, real, others),
    )
    rows = [
        Row([Tile(p) for p in shown.pictures], f"{part.name}: the photos", f"class noun: {part.noun}"),
        Row(plain, f"The base's {part.noun}", "what it draws without the concept"),
        Row(own, part.name, "new places, acts, clothes, styles"),
    ]
    return rows, line


def _learn(part: Part, folder: Path, base: bases.Base, registry: Registry, tick: Tick) -> add.Learned:
    """The concept, from where an earlier run was stopped while it learned; else from the beginning."""
    options: dict[str, Any] = {
        "class_noun": part.noun,
        "base": base,
        "registry": registry,
        "new_version": True,
        "progress": tick,
    }
    if odd_files.checkpoint_of(registry.home, part.name) is not None:
        try:
            return add.add(part.name, folder, resume=True, **options)
        except ConceptError:  # it is of another recipe or damaged: then it learns anew
            pass
    return add.add(part.name, folder, **options)


def example_photos(part: Part, out: Path) -> Path:
    """The photos of the checkout's examples, or the same ones drawn again where only the package is there."""
    kept = Path(__file__).parents[2] / "examples" / "photos" / part.name
    if kept.is_dir():
        return kept
    folder = out / "photos" / part.name
    if not folder.is_dir():
        storybook.draw_subject(part.drawn_as, part.seed, 5, folder)
    return folder


def distractors(part: Part, judge: scorers.SubjectJudge) -> Tensor:
    """Embeddings (20, 5, d) of others of its class and, where words can name it, colour; or of moongates."""
    from conceptkit.storybook.world import scene

    rng = np.random.default_rng(99)
    hue = storybook.subject(part.drawn_as, part.seed).hue
    other = [
        scene.moongate(rng)
        if part.drawn_as == "moongate"
        else scene.draw_subject(rng, part.noun, "scored", hue=hue)
        for _ in range(DISTRACTORS)
    ]
    shots = [shot for k, subject in enumerate(other) for shot in scene.photos(subject, 5, k)]
    return judge.embed(shots).view(DISTRACTORS, 5, -1)


def _in_one_frame(base: bases.Base, merged: compose.Merge, summed: compose.Merge) -> list[Row]:
    """Where the base lays things out, each concept in its own part, and the naive sum of both."""
    nouns = [reduce(lambda text, part: text.replace(part.name, part.noun), PARTS, text) for text in TOGETHER]
    drawn: list[Tile] = []
    layouts: list[Tile] = []
    with attach(base.pipe, merged, side_by_side=False) as attachment:
        for prompt in TOGETHER:
            pictures = draw(base, [prompt] * 4, range(4))
            drawn += [Tile(picture, prompt) for picture in pictures]
            if attachment.layout:
                layouts += [
                    Tile(layout_picture(picture, layout.regions()), prompt)
                    for picture, layout in zip(pictures, attachment.layout.pictures, strict=True)
                ]
    naive = {"side_by_side": False, "confine": False, "isolate_concepts": False}
    return [
        Row(_tiles(base, None, nouns, 4), "The base's class nouns", "in one frame, without the concepts"),
        Row(layouts, "Who is where", "where the base attends to each noun"),
        Row(drawn, "Both in one frame", "each drawn at full size and set in where its noun stands"),
        Row(_tiles(base, summed, TOGETHER, 4, **naive), "Added up in one frame", "for comparison"),
    ]


def _tiles(base: bases.Base, concept: Any, prompts: Sequence[str], seeds: int, **options: Any) -> list[Tile]:
    """`seeds` pictures of each prompt; None draws with the base alone. options: of `attach`."""
    return [
        Tile(picture, prompt)
        for prompt in prompts
        for picture in draw_with(base, concept, prompt, range(seeds), **options)
    ]
