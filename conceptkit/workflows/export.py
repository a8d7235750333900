"""Concepts leave for other programs: one as it is, several as their merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptkit.base.pipeline import STORYBOOK, Base, load
from conceptkit.concepts.concept import Concept
from conceptkit.formats import dialects
from conceptkit.merging import request
from conceptkit.merging.compose import Merge, compose, read_stored
from conceptkit.registry.opening import opened
from conceptkit.registry.store import Registry


@dataclass(frozen=True, eq=False)
class Exported:
    """The files that were written, what is in them, and sentences for the user."""

    files: tuple[Path, ...]
    concept: Concept
    notices: tuple[str, ...] = ()


def export(
    what: Concept | Merge | str | Sequence[str],
    out: Path | str,
    *,
    base: Base | str | None = None,
    registry: Registry | None = None,
    dialect: str = dialects.DIALECT,
    force: bool = False,
    with_names: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Exported:
    """Write a concept, or the merge of several, as files for another program, such as plain diffusers.

        ck.export(["my_dog:0.8", "moongate"], "for_diffusers")

    what: a concept, a merge, or names in the registry, each with a strength if wanted.
    out: a folder, which is filled.
    dialect: a row of `DIALECTS`: whose files they are.
    force: files that are there may be written over.
    with_names: write into them where the base lies on this machine and what the photos are called, too.
    base: on which several are merged; None: the one that the first was learned on.

    Raises NoEffect or ConceptError for what no file can hold, and what `compose` raises.
    """
    written: dict[str, Any] = {"dialect": dialect, "force": force, "with_names": with_names}
    row = dialects.dialect_of(dialect)
    if isinstance(what, Concept | Merge):
        return _write(what, Path(out), base, **written)
    names = [what] if isinstance(what, str) else list(what)
    if registry is None:
        with opened() as store:
            return export(names, out, base=base, registry=store, progress=progress, **written)
    weights = request.read(names)
    entries = [registry.get(name) for name in weights]
    if list(weights.values()) == [1.0] and (base is None or row.needs_base):
        shown = registry.preview(entries[0]) if row.cover else None
        return _write(read_stored(registry, entries[0].ref), Path(out), base, cover=shown, **written)
    if base is None or isinstance(base, str):
        base = load(base or entries[0].summary.get("base_name", STORYBOOK))
    merge = compose(*names, base=base, registry=registry, progress=progress)
    return _write(merge, Path(out), base, **written)


def _write(
    what: Concept | Merge, out: Path, base: Base | str | None, *, dialect: str, **written: Any
) -> Exported:
    """The files of a concept or a merge; a base is loaded where they hold weights of it."""
    concept = what if isinstance(what, Concept) else what.concept
    notices = () if isinstance(what, Concept) else what.report.notices
    if dialects.dialect_of(dialect).needs_base and not isinstance(base, Base):
        base = load(base or concept.base_name)
    given = base if isinstance(base, Base) else None
    files = dialects.export(what, out, dialect=dialect, base=given, **written)
    return Exported(tuple(files), concept, (*notices, *dialects.left_out(what, dialect)))
