"""The dialects that concepts are exported in: a table that other packages can add rows to.

    register_dialect(Dialect("mine", "one line about it", files_of, holds=frozenset({DELTA})))

or, in the other package's pyproject.toml, an entry point that is a `Dialect`:

    [project.entry-points."conceptkit.dialects"]
    mine = "my_package.mine:MINE"

Read without torch, so that a command finds a mistake before it loads anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from conceptkit.base.families import FAMILIES
from conceptkit.errors import ConceptError, NoEffect
from conceptkit.extension_table import ExtensionTable
from conceptkit.files import check_folder, fill_folder

if TYPE_CHECKING:
    from conceptkit.base.pipeline import Base
    from conceptkit.concepts.concept import Concept
    from conceptkit.merging.compose import Merge

DELTA, TOKENS, REFERENCE, ROUTES = "delta", "tokens", "reference", "routes"
"""What a concept may consist of: maps of a base, words, a photo to look at, ranks that are somebody's."""
DIALECT = "diffusers"

Files = Callable[..., Mapping[str, bytes]]


@dataclass(frozen=True)
class Dialect:
    """How another program has a concept in files.

    name: as users write it. help: one line for them.
    files: the files of a concept, name -> content; or where that function is, "module:function". Its second
        argument, with_names, asks for the place of the base and the names of the photos, instead of hashes.
    writes: instead of files, a function that writes them into an empty folder: (concept, with_names, base,
        folder). For files too large to be held; files is "" then.
    program: whose models they are for, where it has models of its own.
    holds: what of a concept the files can hold; a photo or routes are refused where it cannot, and of a delta
        or words that are left out a sentence is said.
    """

    name: str
    help: str
    files: Files | str = ""
    holds: frozenset[str] = frozenset({DELTA, TOKENS})
    maps: str = ""
    needs_base: bool = False
    cover: str = ""
    writes: Files | str = ""
    program: str = ""

    def write(
        self, concept: Concept, with_names: bool = False, base: Base | None = None
    ) -> Mapping[str, bytes]:
        """The files, name -> content. Raises ConceptError when it needs a base and is given none."""
        if not self.needs_base:
            return _called(self.files)(concept, with_names)
        return _called(self.files)(concept, with_names, self._base(base, concept))

    def write_into(
        self, folder: Path, concept: Concept, with_names: bool = False, base: Base | None = None
    ) -> None:
        """Write the files into an empty folder, for dialects that do so; raises as `write` does."""
        _called(self.writes)(concept, with_names, self._base(base, concept), folder)

    def _base(self, base: Base | None, concept: Concept) -> Base:
        if base is None:
            raise ConceptError(
                f"{self.name} files hold weights of the base; give export the base that {concept.name} is for"
            )
        return base


DIALECTS: ExtensionTable[Dialect] = ExtensionTable("dialect", "conceptkit.dialects")


def register_dialect(dialect: Dialect) -> Dialect:
    """Add a row. Raises ConceptError when there is another of that name."""
    return DIALECTS.register(dialect.name, dialect)


def dialect_of(name: str) -> Dialect:
    """The row of that name. Raises ConceptError when there is none, or when a package registered no row."""
    dialect = DIALECTS.find(name)
    if not isinstance(dialect, Dialect):
        raise ConceptError(f"The dialect {name!r} is no Dialect; mend or uninstall its package")
    return dialect


def export(
    concept: Concept | Merge,
    out_dir: str | os.PathLike[str],
    *,
    dialect: str = DIALECT,
    force: bool = False,
    with_names: bool = False,
    base: Base | None = None,
    cover: bytes | None = None,
) -> list[Path]:
    """Write a concept or a merge in a dialect, and return the files.

    out_dir: a folder, which is filled; all files appear there, or none. force: files may be written over.
    with_names: what leaves says where the base lies on this machine and what the photos are called, instead
        of hashes.
    base: for dialects that need it. cover: a PNG that shows the concept, for dialects that have a place.

    Raises ConceptError when a file is there already, for what the dialect has no place for, and for a dialect
    that is not there; NoEffect when there is nothing to write.
    """
    row, whole = dialect_of(dialect), _whole(concept)
    _check(row, whole)
    out = Path(out_dir).absolute()
    if row.writes:
        return _moved(row, out, whole, with_names, base, force)
    files: dict[str, bytes | Path] = dict(row.write(whole, with_names, base))
    if cover is not None and row.cover:
        files[row.cover.format(name=whole.name)] = cover
    return fill_folder(out, files, force)


def _moved(
    row: Dialect, out: Path, concept: Concept, with_names: bool, base: Base | None, force: bool
) -> list[Path]:
    """Files that are written beside the folder first, so that all of them appear there, or none."""
    above = next(place for place in check_folder(out).parents if place.is_dir())
    with TemporaryDirectory(prefix=".conceptkit-", dir=above) as place:
        row.write_into(Path(place), concept, with_names, base)
        written = sorted(path for path in Path(place).rglob("*") if path.is_file())
        return fill_folder(out, {path.relative_to(place).as_posix(): path for path in written}, force)


def left_out(concept: Concept | Merge, dialect: str = DIALECT) -> list[str]:
    """One sentence where the files of a dialect hold less than the concept is."""
    row, whole = dialect_of(dialect), _whole(concept)
    if row.writes:
        from conceptkit.formats.folded_pipeline import acts_always

        if not acts_always(whole):
            return []
        return [
            f"{whole.name} is folded into the weights, and acts on every picture there, also where a prompt "
            "says none of its words; attach it to have it act by its words"
        ]
    if row.program and not fits_models(whole):
        return [
            f"{whole.name} fits {whole.base_name} alone, and no model of {row.program}; to use it there, "
            "teach it on a base of yours, add --base MODEL"
        ]
    lost = [what for what, parts in _parts(whole).items() if parts and what not in row.holds]
    beyond = [name for name in whole.delta if not re.search(row.maps, name)] if DELTA in row.holds else []
    if not lost and not beyond:
        return []
    if not lost:
        return [
            f"The {row.name} files leave out {len(beyond)} of the {len(whole.delta)} maps that {whole.name} "
            f"changes, {beyond[0]} for one; export {whole.name} for diffusers to have all of it"
        ]
    meant = {DELTA: "what it changes in the base", TOKENS: "its word, which the prompt needs"}
    what = " and ".join(meant.get(each, each) for each in lost)
    return [f"The {row.name} files leave out {what}; export {whole.name} for diffusers to have all of it"]


def fits_models(concept: Concept) -> bool:
    """Whether it fits models that other programs have: not where it was learned on a base in the package."""
    family = FAMILIES.get(concept.base_name) if concept.base_name else None
    return family is None or family.weights is None


def check_fits_dialect(dialect: str, concept: Concept | Merge) -> None:
    """Raises what `export` would raise for what a dialect has no place for; nothing is written."""
    _check(dialect_of(dialect), _whole(concept))


def _whole(given: Concept | Merge) -> Concept:
    either: Any = given
    return getattr(either, "concept", either)


def _parts(concept: Concept) -> dict[str, bool]:
    return {DELTA: bool(concept.delta), TOKENS: bool(concept.tokens)}


def _check(dialect: Dialect, concept: Concept) -> None:
    present = _parts(concept)
    if not any(present.values()):
        raise NoEffect(
            f"{concept.name} would change nothing: it has neither a delta nor a token; learn it again"
        )
    if concept.routing and ROUTES not in dialect.holds:
        raise ConceptError(
            f"{concept.name} is routed, which no LoRA can be; "
            "export one that was made without --merge-method routed"
        )
    if concept.reference is not None and REFERENCE not in dialect.holds:
        raise ConceptError(
            f"{concept.name} looks at its reference photo while it is drawn, which no LoRA can do; "
            "share it with export --bundle, or learn it again with --method custom"
        )
    fits = any(re.search(dialect.maps, name) for name in concept.delta)
    if not any(
        there and what in dialect.holds and (what != DELTA or fits) for what, there in present.items()
    ):
        raise NoEffect(
            f"The dialect {dialect.name} has no place for what {concept.name} is; export it for {DIALECT}"
        )


def _called(function: Files | str) -> Files:
    """A function, or the one whose place is given."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: Files = getattr(import_module(module), name)
    return found


_KOHYA = "conceptkit.formats.kohya"
_FOLDED = "conceptkit.formats.folded_pipeline"
for _row in (
    Dialect(
        "diffusers",
        "a LoRA, an embedding per word, and a README that says how to load them",
        "conceptkit.formats.diffusers:files",
    ),
    Dialect(
        "comfyui",
        "a LoRA and embeddings under models/, and a note",
        f"{_KOHYA}:comfyui",
        cover="models/loras/{name}.png",
        program="ComfyUI",
    ),
    Dialect(
        "a1111",
        "a LoRA and embeddings where the web UI has them, and a note",
        f"{_KOHYA}:a1111",
        cover="models/Lora/{name}.png",
        program="A1111",
    ),
    Dialect(
        "forge",
        "the same for Forge",
        f"{_KOHYA}:forge",
        cover="models/Lora/{name}.png",
        program="Forge",
    ),
    Dialect(
        "invokeai",
        "a LoRA and embeddings to be imported, and a note",
        f"{_KOHYA}:invokeai",
        program="InvokeAI",
    ),
    Dialect("kohya", "a LoRA and embeddings for sd-scripts, and a note", f"{_KOHYA}:kohya"),
    Dialect("peft", "the LoRA alone", "conceptkit.formats.peft:files", frozenset({DELTA})),
    Dialect(
        "custom-diffusion",
        "keys and values as whole matrices, as diffusers' Custom Diffusion script writes them",
        "conceptkit.formats.custom_diffusion:files",
        maps=r"attn2\.to_(k|v|q|out\.0)$",
        needs_base=True,
    ),
    Dialect(
        "pipeline",
        "a whole diffusers folder, with the concepts in its weights and its tokenizers",
        needs_base=True,
        writes=f"{_FOLDED}:write_pipeline",
    ),
    Dialect(
        "checkpoint",
        "one .safetensors in the original layout of SD 1, 2 and SDXL, and embeddings",
        needs_base=True,
        writes=f"{_FOLDED}:write_checkpoint",
    ),
    Dialect(
        "textual-inversion",
        "the embeddings alone",
        "conceptkit.formats.textual_inversion:files",
        frozenset({TOKENS}),
    ),
):
    register_dialect(_row)
