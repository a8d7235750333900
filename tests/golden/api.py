"""The one place where the golden tests name conceptkit: whoever moves or renames a part mends this alone.

Everything is imported on first use. What the golden files call something stays as it is; what conceptkit
calls it today stands here.
"""

import dataclasses
import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tests.golden.cases import Case, Picture

BASES, DRAWING = "conceptkit.base.pipeline", "conceptkit.inference.generate"
NEW = "conceptkit.registry.entries"
KEEP, LABELS = "conceptkit.registry.maintenance", "conceptkit.registry.catalogue.labels"
SHARE, ADD = "conceptkit.registry.sharing.exchange", "conceptkit.workflows.add"

RECIPE_FIELDS = {
    "accumulate": "gradient_accumulation_steps",
    "batch": "train_batch_size",
    "begin": "token_init",
    "edges": "special_token_preservation_weight",
    "extract": "extract_rank",
    "prior_batch": "prior_batch_size",
    "prior_size": "num_class_images",
    "prior_steps": "class_image_steps",
    "prior_weight": "prior_loss_weight",
    "steps": "max_train_steps",
    "sude": "sude_weight",
    "sude_prompts": "sude_prompts",
    "token_steps": "token_train_steps",
    "validate": "validation_steps",
    "views": "num_augmented_views",
}
"""A recipe's field as `cases` has it, and as conceptkit has it."""


MERGE_METHODS = {"soft": "regmean", "constrained": "closed-form", "average": "linear"}
"""A merge method as `cases` has it, and as conceptkit has it."""

ATTACH_OPTIONS = {"separate": "auto_regions", "read_apart": "isolate_concepts", "how": "merge_method"}
"""An option of `attach` as `cases` has it, and as conceptkit has it."""


def _ck() -> ModuleType:
    return importlib.import_module("conceptkit")


def _part(module: str) -> ModuleType:
    return importlib.import_module(module)


@functools.cache
def base(name: str) -> Any:
    """A base by the name that `cases` gives it: the embedded one, or a pico one of tests/tiny.py."""
    tiny = _part("tests.tiny")
    build = {
        "pico": tiny.pico_sd,
        "pico-v": lambda: tiny.pico_sd(prediction="v_prediction"),
        "pico-xl": tiny.pico_sdxl,
    }
    bases = _part(BASES)
    return bases.of(build[name](), name) if name in build else bases.load(name, device="cpu")


def distance(concept: Any, name: str) -> float:
    """How far that base is from the one that a concept was learned on; 0 for the same weights."""
    return float(concept.base.distance(base(name).fingerprint))


# learning


def learn(case: Case, photos: Path, home: Path) -> dict[str, Any]:
    """What a case learns into the registry at `home`: its concepts by their names."""
    changes = {RECIPE_FIELDS[name]: value for name, value in case.changes.items()}
    # Those of the storybook on every base: others have recipes of their own since.
    recipe = _part("conceptkit.learn.config").config_for(
        case.method, rank=case.rank, changes=changes, family="storybook"
    )
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    shared: dict[str, Any] = {
        "base": base(case.base),
        "method": fields.pop("method"),
        "changes": fields,
    }
    where = {name: photos / folder for name, folder in case.photos.items()}
    with registry(home) as store:
        if len(where) > 1:
            together = _part(ADD).add_together
            made = together(where, class_nouns=case.nouns, name="both", registry=store, **shared)
        else:
            ((name, folder),) = where.items()
            if case.masks:
                shared["masks"] = photos.parent / "masks"
            if case.prior:
                shared["class_images"] = photos / case.prior
            made = [
                _ck().add(
                    name, folder, class_noun=case.nouns.get(name), kind=case.kind, registry=store, **shared
                )
            ]
    return {learned.entry.name: learned.concept for learned in made}


# concepts


def read(data: bytes) -> Any:
    """The concept in the bytes of a stored file."""
    return _ck().Concept.from_bytes(data)


def written(concept: Any) -> bytes:
    """The bytes in which a concept is stored."""
    return bytes(concept.to_bytes())


def about(concept: Any) -> dict[str, Any]:
    """What a concept is called, and what it answers to, as JSON."""
    return {
        "name": concept.name,
        "kind": concept.kind,
        "noun": concept.noun,
        "base": concept.base_name,
        "words": dict(concept.words),
        "tokens": sorted(concept.tokens),
    }


def tensors(concept: Any) -> dict[str, torch.Tensor]:
    """All numbers of a concept, by names that are those of the golden files."""
    found = _numbered("token", concept.tokens) | _numbered("delta", concept.delta)
    if concept.rows is not None:
        found["rows"] = concept.rows
    if concept.reference is not None:
        found |= {"photo": concept.reference.latent, **_numbered("photo", concept.reference.maps)}
    return {name: found[name].detach().to("cpu", torch.float32).contiguous() for name in sorted(found)}


def effects(concept: Any) -> dict[str, torch.Tensor]:
    """What a concept does, however it is taken apart: of factors their product, of rows C what C^T C is.

    Signs, order and even the number of factors may change with a rounding; these do not.
    """
    found = _numbered("token", concept.tokens) | _products("delta", concept.delta)
    if concept.rows is not None:
        found["rows"] = concept.rows.T @ concept.rows
    if concept.reference is not None:
        found |= {"photo": concept.reference.latent, **_products("photo", concept.reference.maps)}
    return found


def _products(what: str, parts: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{what} {name}": functools.reduce(torch.matmul, several) for name, several in parts.items()}


def _numbered(what: str, parts: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{what} {name}, {i}": part for name, several in parts.items() for i, part in enumerate(several)}


# merging and drawing


def merge(
    parts: Sequence[Any], how: str, weights: Sequence[float] | None, base_name: str, home: Path
) -> tuple[Any, dict[str, torch.Tensor]]:
    """A merge of concepts, or of names in the registry at `home`, and the numbers of its report."""
    with registry(home) as store:
        made = _ck().compose(
            *parts,
            merge_method=MERGE_METHODS.get(how, how),
            weights=weights,
            base=base(base_name),
            registry=store,
        )
    return made.concept, _figures(made.report)


def rebuild(name: str, base_name: str, home: Path) -> Any:
    """A stored merge, made again of its parts in the registry at `home`."""
    with registry(home) as store:
        return _ck().rebuild(name, registry=store, base=base(base_name)).concept


def _figures(report: Any) -> dict[str, torch.Tensor]:
    """A report's numbers, NaN for none."""

    def row(*numbers: float | None) -> torch.Tensor:
        return torch.tensor([float("nan") if number is None else number for number in numbers]).double()

    kept = [number for one in report.kept for number in (one.words, one.prompt)]
    figures = {"kept": row(*kept), "captions": row(report.captions), "missed": row(report.missed)}
    if report.interference:
        figures["interference"] = row(*(number for line in report.interference for number in line))
    return figures


def draw(picture: Picture, concepts: Sequence[Any], home: Path) -> Any:
    """The picture (PIL, RGB) of a prompt with these concepts on its base."""
    here = base(picture.base)
    options = {ATTACH_OPTIONS.get(name, name): value for name, value in picture.options.items()}
    with (
        registry(home) as store,
        _ck().attach(here.pipe, *concepts, registry=store, **options),
    ):
        (drawn,) = _part(DRAWING).draw(here, [picture.prompt], [picture.seed], steps=picture.steps)
    return drawn


def export(concept: Any, folder: Path) -> list[Path]:
    """Write files for plain diffusers into a new folder."""
    return list(_ck().export(concept, folder).files)


# the registry


def registry(home: Path) -> Any:
    """The registry at `home`, a context manager."""
    return _ck().Registry(home)


def keep(home: Path, concepts: Mapping[str, bytes]) -> None:
    """Store files of concepts, by name, in the registry at `home`."""
    new = _part(NEW).New
    with registry(home) as store:
        for name, data in concepts.items():
            there = any(entry.name == name for entry in store.list())
            store.add_many([new(name, data, read(data).summary())], new_version=there)


def label(home: Path, name: str, *, tag: str, note: str, preview: bytes) -> None:
    """Give a stored concept a tag, a note and a picture, and make it a favourite."""
    labels = _part(LABELS)
    with registry(home) as store:
        labels.tag(store, name, [tag])
        labels.note(store, name, note)
        labels.favourite(store, name)
        store.set_preview(name, store.get(name).version, preview)


def contents(home: Path) -> dict[str, Any]:
    """Every version in the registry at `home`, by "name@version", and what belongs to it, as JSON."""
    labels, found = _part(LABELS), {}
    with registry(home) as store:
        for head in store.list():
            for entry in store.versions(head.name):
                preview = store.preview(entry)
                found[entry.ref] = {
                    "head": entry == head,
                    "hash": entry.hash,
                    "created": entry.created,
                    "tags": labels.tag(store, entry.name),
                    "notes": [note.text for note in labels.notes(store, entry.name)],
                    "preview": None if preview is None else len(preview),
                }
    return found


def stored(home: Path, ref: str) -> bytes:
    """The bytes of a stored concept, verified."""
    with registry(home) as store:
        return bytes(store.read(ref))


def problems(home: Path) -> list[str]:
    """What is wrong with the registry at `home`."""
    with registry(home) as store:
        return list(_part(KEEP).verify(store).problems)


def send(home: Path, names: Sequence[str], file: Path) -> None:
    """Write a bundle of all versions of these names, and of what they were merged from."""
    share = _part(SHARE)
    with registry(home) as store:
        share.export(store, share.chosen(store, names, every=True, parents=True), file)


def receive(home: Path, file: Path) -> None:
    """Import a bundle, or a file of one concept, into the registry at `home`."""
    with registry(home) as store:
        _part(SHARE).import_file(store, file)
