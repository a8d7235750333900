"""What came of a merge: what each concept keeps, who disturbs whom, and what happens to everything else."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from conceptkit.concepts.delta import Delta
from conceptkit.features.caption_statistics import CaptionStatistics
from conceptkit.merging import delta_norms
from conceptkit.merging.delta_norms import Pairings
from conceptkit.merging.merge_inputs import Prepared
from conceptkit.pictures import html

MOST_LINES = 12
"""Concepts of which the terminal shows a line each; of more it shows those that keep least."""
MOST_PAIRED = 100
"""Concepts up to which everybody's effect on everybody is worked out: N^2 figures to look at."""
AUDIT_FACTOR = 1.35
AUDIT_LEAST = 0.05
"""A caption is reported when the merge moves it AUDIT_FACTOR times as far as unrelated parts would, which is
the root of their squares' sum, and by AUDIT_LEAST of what the base makes of it. Adapters harmless alone can
be made to act together: even halves of one secret come to 1.41 times that, honest sums of up to ten to 1.3 at
most (`benchmarks.compose_audit`)."""


@dataclass(frozen=True)
class Kept:
    """What a concept keeps: 1 - ||(D - D_i) X|| / ||D_i X|| over held-out prompts X that contain it.

    words: at its own words. prompt: at all positions. None when the concept adds nothing there to keep.
    """

    name: str
    words: float | None
    prompt: float | None

    def text(self) -> str:
        """Both figures in words."""
        return f"{_percent(self.words)} on its own words, {_percent(self.prompt)} over whole prompts"


@dataclass(frozen=True)
class Solved:
    """How the constraints were met, see `features.closed_form`; `missed` is ||D C^T - R^T|| / ||R||."""

    condition: float | None = None
    damping: float = 0.0
    problem: str = "none"
    shared: int = 0
    rows: int = 0
    missed: float = 0.0


NO_CONSTRAINTS = Solved()


@dataclass(frozen=True)
class Report:
    """How a merge came out.

    captions: ||D Y|| / ||W0 Y|| over held-out captions Y that mention no concept, of the maps that read text;
        what a concept changes in text encoders or elsewhere comes on top.
    condition, damping: of the constraint rows, see `features.closed_form`; None: dependent, or none.
    rows, width: s constraint rows where there is room for d. problem, missed: see `Solved`.
    interference: `[i][j]` is what j's share of the merge adds at i's own words, by what i alone adds there.
    audit: captions that the merge moves far more than unrelated parts would.
    precision: in which all this is so.
    """

    merge_method: str
    kept: tuple[Kept, ...]
    captions: float
    condition: float | None
    damping: float
    rows: int
    width: int
    notices: tuple[str, ...] = ()
    problem: str = "none"
    missed: float = 0.0
    interference: tuple[tuple[float, ...], ...] = ()
    audit: tuple[str, ...] = ()
    precision: str = "float32"

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts, in their order."""
        return tuple(kept.name for kept in self.kept)

    def text(self) -> str:
        """A few lines for the terminal."""
        least = sorted(self.kept, key=lambda kept: 1.0 if kept.words is None else kept.words)
        shown = self.kept if len(self.kept) <= MOST_LINES else least[:MOST_LINES]
        lines = [f"{kept.name} keeps {kept.text()}" for kept in shown]
        if len(shown) < len(self.kept):
            rest = least[MOST_LINES:]
            worst, best = _percent(rest[0].words), _percent(rest[-1].words)
            lines.append(f"{len(rest)} more keep {worst} to {best} on their own words")
        lines.append(f"captions without a concept change by {self.captions:.1%}")
        if self.rows:
            condition = "dependent" if self.condition is None else f"of condition {self.condition:.3g}"
            share = f"{self.rows} of {self.width} directions are taken (s/d = {self.rows / self.width:.2f})"
            lines.append(f"{share}, {condition}")
        far = "is moved far more than unrelated parts would move it"
        audit = [f'audit: "{caption}" {far}' for caption in self.audit]
        return "\n".join([*lines, *self.notices, *audit])

    def _repr_html_(self) -> str:
        """What a notebook shows: what each concept keeps, and every notice."""
        rows = [(kept.name, _percent(kept.words), _percent(kept.prompt)) for kept in self.kept]
        kept = html.table("What each concept keeps", ("concept", "its own words", "whole prompts"), rows)
        moved = [("captions without a concept change by", f"{self.captions:.1%}")]
        return kept + html.table("Everything else", (), moved + [("note", text) for text in self.notices])

    def to_json(self) -> dict[str, Any]:
        """All fields, for programs."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Measured:
    """What a report is about, part by part.

    alone: each concept's own delta at its strength. inputs: the prompts that each is measured on.
    ordinary: captions without any of them. dtype: the precision in which all is drawn, and measured.
    """

    merge_method: str
    names: Sequence[str]
    alone: Sequence[Delta]
    inputs: Sequence[Prepared]
    ordinary: CaptionStatistics
    dtype: torch.dtype


def measure(
    of: Measured, merged: Delta, shares: Sequence[Delta], solved: Solved, notices: Sequence[str] = ()
) -> Report:
    """Measure a merge; shares: what each part contributes to it."""
    names, alone, prepared, ordinary, dtype = of.names, of.alone, of.inputs, of.ordinary, of.dtype
    single = len(alone) == 1
    whole = delta_norms.loaded(merged, dtype)
    parts = [delta_norms.loaded(delta, dtype) for delta in alone]
    total = delta_norms.pair(whole, whole)
    own = [delta_norms.pair(part, part) for part in parts]
    across = [total if single else delta_norms.pair(whole, part) for part in parts]
    kept = tuple(_kept(*each, total) for each in zip(names, across, own, prepared, strict=True))
    watched = ordinary.audit
    moved = watched.total(delta_norms.products(total, watched.rows).clamp(min=0))
    each = [watched.total(delta_norms.products(pairing, watched.rows).clamp(min=0)) for pairing in own]
    finite = solved.condition if solved.condition is not None and math.isfinite(solved.condition) else None
    return Report(
        merge_method=of.merge_method,
        kept=kept,
        captions=math.sqrt(delta_norms.squared(total, ordinary.held_out)) / ordinary.size,
        condition=finite,
        damping=solved.damping,
        rows=solved.rows,
        width=ordinary.gram.shape[0],
        notices=(*notices, *_cost(solved, names)),
        problem=solved.problem,
        missed=solved.missed,
        interference=() if single else _interference(shares, own, prepared, dtype),
        audit=() if single else _suspicious(moved, torch.stack(each), ordinary),
        precision=str(dtype).removeprefix("torch."),
    )


def measure_routed(of: Measured, padding_delta: str, notices: Sequence[str] = ()) -> Report:
    """The same for routing, on prompts that name one concept: exact at its words, nothing at other ones."""
    names, alone, prepared, dtype = of.names, of.alone, of.inputs, of.dtype
    kept = []
    for name, delta, its in zip(names, alone, prepared, strict=True):
        part = delta_norms.loaded(delta, dtype)
        pairing = delta_norms.pair(part, part)
        own, end, rest = (delta_norms.squared(pairing, rows) for rows in (its.own, its.end, its.rest))
        lost = rest + (end if padding_delta == "drop" else 0.0)
        size = own + end + rest
        kept.append(Kept(name, 1.0 if own > 0 else None, 1 - math.sqrt(lost / size) if size > 0 else None))
    nothing = tuple(tuple(float(i == j) for j in range(len(names))) for i in range(len(names)))
    return Report(
        merge_method=of.merge_method,
        kept=tuple(kept),
        captions=0.0,
        condition=None,
        damping=0.0,
        rows=0,
        width=of.ordinary.gram.shape[0],
        notices=tuple(notices),
        interference=nothing if 1 < len(names) <= MOST_PAIRED else (),
        precision=str(dtype).removeprefix("torch."),
    )


def _kept(name: str, across: Pairings, own: Pairings, its: Prepared, total: Pairings) -> Kept:
    places = (its.own, its.end, its.rest)
    if across is total:
        lost = [0.0, 0.0, 0.0]
    else:
        lost = [delta_norms.missed(total, across, own, rows) for rows in places]
    size = [delta_norms.squared(own, rows) for rows in places]
    return Kept(name, _share(lost[0], size[0]), _share(sum(lost), sum(size)))


def _interference(
    shares: Sequence[Delta], own: Sequence[Pairings], prepared: Sequence[Prepared], dtype: torch.dtype
) -> tuple[tuple[float, ...], ...]:
    if len(shares) > MOST_PAIRED:
        return ()
    contributions = []
    for share in shares:
        part = delta_norms.loaded(share, dtype)
        contributions.append(delta_norms.pair(part, part))
    table = []
    for alone, its in zip(own, prepared, strict=True):
        size = delta_norms.squared(alone, its.own)
        added = [delta_norms.squared(other, its.own) for other in contributions]
        table.append(tuple(math.sqrt(square / size) if size > 0 else 0.0 for square in added))
    return tuple(table)


def _suspicious(moved: torch.Tensor, each: torch.Tensor, ordinary: CaptionStatistics) -> tuple[str, ...]:
    """moved (n,): how far the merge moves each caption; each (N, n): how far its parts do alone."""
    sizes = ordinary.audit.sizes
    unrelated = each.square().sum(dim=0).sqrt()
    far = (moved > AUDIT_FACTOR * unrelated) & (moved > AUDIT_LEAST * sizes)
    worst = sorted(far.nonzero().flatten().tolist(), key=lambda i: -float(moved[i] / sizes[i]))
    return tuple(ordinary.audit.texts[i] for i in worst[:3])


def _cost(solved: Solved, names: Sequence[str]) -> list[str]:
    """What it took to have them all in one delta, in a sentence each."""
    said = []
    who = " and ".join(names) if len(names) <= 3 else f"these {len(names)} concepts"
    if (solved.shared or solved.problem == "damped") and solved.missed > 0.005:
        said.append(
            f"words of {who} nearly coincide on this base, so each gives way a little "
            f"(they miss {solved.missed:.0%} of what they ask for)"
        )
    if solved.problem == "span":
        said.append(
            f"{solved.rows} rows leave ordinary captions no room, so the merge acts only in directions that "
            f"captions hardly use; its concepts miss {solved.missed:.0%} of what they ask for"
        )
    return said


def _share(lost: float, size: float) -> float | None:
    return 1 - math.sqrt(lost / size) if size > 0 else None


def _percent(share: float | None) -> str:
    return "nothing to lose" if share is None else f"{max(share, 0):.0%}"
