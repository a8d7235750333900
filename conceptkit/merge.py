"""Several concepts in one: the closed-form merge, and a report of what each of them keeps."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conceptkit import metric
from conceptkit.base import Base, check_fits, load
from conceptkit.compose import MAX_CONDITION, RIDGE, balanced, closed_form, factor
from conceptkit.concept import Concept, Delta, Factors, apply, delta_dense, delta_rows, read
from conceptkit.contexts import constraint_rows, context_prompts, word_features
from conceptkit.errors import BadRecipe, ConceptError
from conceptkit.metric import Metric

if TYPE_CHECKING:
    from conceptkit.registry.store import Registry

__all__ = ["HOW", "Kept", "Merge", "Report", "compose", "constraint_rows", "context_prompts"]

HOW = ("constrained", "sum")


@dataclass(frozen=True)
class Kept:
    """What a concept keeps: 1 - ||(D - D_i) X|| / ||D_i X|| over held-out prompts X that contain it.

    words: at its own words. prompt: at all positions. None when the concept adds nothing there to keep.
    """

    name: str
    words: float | None
    prompt: float | None

    def text(self) -> str:
        return f"{_percent(self.words)} on its own words, {_percent(self.prompt)} over whole prompts"


@dataclass(frozen=True)
class Report:
    """How a merge came out.

    captions: ||D Y|| / ||W0 Y|| over held-out captions Y that mention no concept.
    condition, damping: of the constraint rows, see `compose.closed_form`; None: dependent, or no constraints.
    rows, width: s constraint rows where there is room for d.
    """

    how: str
    kept: tuple[Kept, ...]
    captions: float
    condition: float | None
    damping: float
    rows: int
    width: int
    notices: tuple[str, ...] = ()

    def text(self) -> str:
        """A few lines for the terminal."""
        lines = [f"{kept.name} keeps {kept.text()}" for kept in self.kept]
        lines.append(f"captions without a concept change by {self.captions:.1%}")
        return "\n".join([*lines, *self.notices])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Merge:
    """A merge is a concept, and a report about it."""

    concept: Concept
    report: Report


@dataclass(frozen=True, eq=False)
class _Part:
    """A concept in a merge, at its strength; `source` is how it was named."""

    source: str
    concept: Concept
    weight: float

    @property
    def delta(self) -> Delta:
        return self.concept.delta if self.weight == 1 else _scaled(self.concept.delta, self.weight)


@dataclass(frozen=True, eq=False)
class _Joined:
    """What a way of merging makes of the parts; `counts` says how many of the rows are whose."""

    delta: Delta
    rows: Tensor | None = None
    counts: tuple[int, ...] = ()
    condition: float | None = None
    damping: float = 0.0


def compose(
    *concepts: Concept | Merge | str,
    base: Base | None = None,
    registry: "Registry | None" = None,
    name: str | None = None,
    weights: Sequence[float] | None = None,
    how: str = "constrained",
) -> Merge:
    """Merge concepts, or names in the registry, into one delta of low rank; one alone stays as it is.

    `weights` scale what each concept adds. `how`: "constrained" is the closed form, "sum" the naive addition.
    Raises BaseMismatch when a concept does not fit the base, UnknownConcept for a name that is not in the
    registry, ConceptError when two concepts answer to one name.
    """
    if how not in HOW:
        raise BadRecipe(f"There is no way of composing called {how!r}; use {' or '.join(HOW)}")
    if not concepts:
        raise ConceptError("There is nothing to compose; name at least one concept")
    registry = _default_registry() if registry is None else registry
    parts = _read(concepts, weights, registry)
    _check_distinct(parts)
    base = load(parts[0].concept.base_name) if base is None else base
    fits = [check_fits(p.concept.base, base, p.concept.name, p.concept.base_name) for p in parts]
    ordinary = metric.of_base(base, registry)

    if len(parts) == 1:
        joined = _Joined(parts[0].delta, parts[0].concept.rows)
    else:
        joined = _constrained(parts, base, ordinary) if how == "constrained" else _Joined(_sum(parts))
    concept = _as_concept(parts, joined, base, name, how)
    return Merge(concept, _report(parts, concept, joined, base, ordinary, how, [fit for fit in fits if fit]))


def _constrained(parts: list[_Part], base: Base, ordinary: Metric) -> _Joined:
    """The closed form over all concepts' rows at once; maps that no concept changes stay out of it."""
    shape = factor(ordinary.gram)
    rows = [constraint_rows(part.concept, base, shape) for part in parts]
    sizes = {name: o for name, o in base.sizes.items() if any(name in part.delta for part in parts)}
    stacked, counts = torch.cat(rows), tuple(len(own) for own in rows)
    if not sizes:
        return _Joined({}, stacked, counts)
    targets = torch.cat([delta_rows(part.delta, sizes, own) for part, own in zip(parts, rows, strict=True)])
    solution = closed_form(stacked, targets, shape)
    down, up = balanced(solution.down, solution.up)
    shared = down.float()
    delta = {
        name: (block.float(), shared)
        for name, block in zip(sizes, up.split(list(sizes.values())), strict=True)
    }
    condition = solution.condition if math.isfinite(solution.condition) else None
    return _Joined(delta, stacked, counts, condition, solution.damping)


def _sum(parts: list[_Part]) -> Delta:
    """D_1 + D_2 + ...: low ranks side by side, full matrices added where a concept has one."""
    names = dict.fromkeys(name for part in parts for name in part.delta)
    return {name: _add([part.delta[name] for part in parts if name in part.delta]) for name in names}


def _add(summands: list[Factors]) -> Factors:
    if all(len(factors) == 2 for factors in summands):
        ups, downs = zip(*summands, strict=True)
        return torch.cat(ups, dim=1), torch.cat(downs)
    return (torch.stack([delta_dense(factors) for factors in summands]).sum(dim=0),)


def _scaled(delta: Delta, weight: float) -> Delta:
    return {name: (weight * factors[0], *factors[1:]) for name, factors in delta.items()}


def _as_concept(parts: list[_Part], joined: _Joined, base: Base, name: str | None, how: str) -> Concept:
    """The result in the precision in which it is stored: what is measured and drawn is what is kept."""
    if len(parts) == 1:
        only = parts[0].concept
        return replace(only, name=name or only.name, delta=joined.delta)
    concept = Concept(
        name=name or "-".join(part.concept.name for part in parts)[:64],
        kind="merge",
        noun=None,
        base=base.fingerprint,
        base_name=base.name,
        tokens={token: rows for part in parts for token, rows in part.concept.tokens.items()},
        words={word: text for part in parts for word, text in part.concept.words.items()},
        delta=joined.delta,
        recipe={
            "method": how,
            "weights": [part.weight for part in parts],
            "rows": list(joined.counts),
            "ridge": RIDGE,
            "max_condition": MAX_CONDITION,
        },
        provenance={
            "parents": [part.source for part in parts],
            "parent_sha256": [hashlib.sha256(part.concept.to_bytes()).hexdigest() for part in parts],
        },
        rows=joined.rows,
    )
    return Concept.from_bytes(concept.to_bytes())


def _report(
    parts: list[_Part],
    merged: Concept,
    joined: _Joined,
    base: Base,
    ordinary: Metric,
    how: str,
    notices: list[str],
) -> Report:
    kept = []
    for part in parts:
        features, own = word_features(part.concept, base, "held-out")
        everywhere = features.hidden.flatten(0, 1)
        kept.append(
            Kept(
                part.concept.name,
                _kept(merged.delta, part.delta, features.hidden[own]),
                _kept(merged.delta, part.delta, everywhere),
            )
        )
    if joined.damping > 0:
        names = " and ".join(part.concept.name for part in parts)
        notices = [*notices, f"words of {names} nearly coincide on this base, so each gives way a little"]
    return Report(
        how=how,
        kept=tuple(kept),
        captions=_norm(merged.delta, ordinary.held_out) / ordinary.size,
        condition=joined.condition,
        damping=joined.damping,
        rows=0 if joined.rows is None else len(joined.rows),
        width=base.width,
        notices=tuple(notices),
    )


def _kept(found: Delta, wanted: Delta, rows: Tensor) -> float | None:
    """1 - ||(D - D_i) X|| / ||D_i X||, map by map, so that nothing of size (X, O) is held."""
    size = _norm(wanted, rows)
    return 1 - _norm(found, rows, minus=wanted) / size if size > 0 else None


def _norm(delta: Delta, rows: Tensor, minus: Delta = MappingProxyType({})) -> float:
    """||(D - D') X|| over all maps."""
    nothing = rows.new_zeros(())
    squares = 0.0
    for name in dict.fromkeys([*delta, *minus]):
        made, wanted = (apply(part[name], rows) if name in part else nothing for part in (delta, minus))
        squares += float((made - wanted).square().sum())
    return squares**0.5


def _read(
    concepts: Sequence[Concept | Merge | str], weights: Sequence[float] | None, registry: "Registry"
) -> list[_Part]:
    weights = [1.0] * len(concepts) if weights is None else [float(weight) for weight in weights]
    if len(weights) != len(concepts) or not all(math.isfinite(weight) for weight in weights):
        raise BadRecipe(f"{len(concepts)} concepts need as many finite weights, not {weights}")
    parts = []
    for given, weight in zip(concepts, weights, strict=True):
        if isinstance(given, str):
            entry = registry.get(given)
            parts.append(_Part(entry.ref, read(registry, entry.ref), weight))
        else:
            concept = given.concept if isinstance(given, Merge) else given
            parts.append(_Part(concept.name, concept, weight))
    return parts


def _check_distinct(parts: list[_Part]) -> None:
    seen: dict[str, str] = {}
    for part in parts:
        for label in (*part.concept.words, *part.concept.tokens):
            if label in seen:
                raise ConceptError(
                    f"{seen[label]} and {part.source} both answer to {label}; "
                    "compose one of them, or learn one under another name"
                )
            seen[label] = part.source


def _default_registry() -> "Registry":
    from conceptkit.registry.store import Registry

    return Registry()


def _percent(share: float | None) -> str:
    return "nothing to lose" if share is None else f"{max(share, 0):.0%}"
