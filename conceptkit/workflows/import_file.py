"""A LoRA, an embedding or another adapter from elsewhere becomes a concept of the registry."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import Tensor

from conceptkit.base.fingerprint import Fingerprint
from conceptkit.base.pipeline import STORYBOOK, Base, check_fits, load
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta, Factors
from conceptkit.concepts.gates import RANK_GATES, maps_without_text
from conceptkit.concepts.kernels import CONVOLUTIONS
from conceptkit.concepts.recipe_fields import recipe_field
from conceptkit.errors import BadBlob, BaseMismatch, ConceptError
from conceptkit.formats.lora_modules import one_rank
from conceptkit.formats.module_index import index_of
from conceptkit.formats.module_names import TITLES
from conceptkit.formats.reading import Read, interpret
from conceptkit.formats.tensor_files import IN_FOLDER, TensorFile, read_tensors
from conceptkit.registry.library.shapes import family_of_shapes
from conceptkit.registry.library.trigger_words import preview_of, trigger_words
from conceptkit.registry.names import check_name, tidy
from conceptkit.registry.opening import opened
from conceptkit.registry.store import Entry, Registry

METHOD = "import"
"""The method that the recipe of an imported concept names."""


@dataclass(frozen=True, eq=False)
class Imported:
    """The concept, its entry in the registry, and sentences for the user."""

    concept: Concept
    entry: Entry | None
    notices: tuple[str, ...] = ()


class ImportKeywords(TypedDict, total=False):
    """The keyword arguments of `import_file`; see `ImportOptions`."""

    name: str | None
    trigger: str | None
    class_noun: str | None
    gated: bool
    new_version: bool


@dataclass(frozen=True)
class ImportOptions:
    """How a file becomes a concept.

    name: what it is called; None: as the file is. trigger: what its name stands for in prompts; None: the
    words that the file or those beside it tell, else its name. class_noun: what kind of thing it is.
    gated: what it changes beside keys, values and text encoders acts only on prompts that say its words.
    new_version: the next version of a name that is taken.
    """

    name: str | None = None
    trigger: str | None = None
    class_noun: str | None = None
    gated: bool = False
    new_version: bool = False


def import_file(
    path: Path | str,
    *,
    base: Base | str | None = None,
    registry: Registry | None = None,
    **options: Unpack[ImportKeywords],
) -> Imported:
    """Take a file or folder of another program into the registry, whole or not at all.

        ck.import_file("style.safetensors", base="runwayml/stable-diffusion-v1-5", trigger="ink drawing")

    base: the one it is for, loaded or by name; None: the one that the file tells, or the storybook where its
    shapes fit. options: of `ImportOptions`.

    Raises BadBlob for files that cannot be understood, BaseMismatch for another family, NameTaken, BadName.
    """
    asked, place = ImportOptions(**options), Path(path)
    with opened(registry) as store:
        file = read_tensors(place)
        name = asked.name or str(_own(file).get("name") or _called(place))
        store.check_free(check_name(name), new_version=asked.new_version)
        here = base if isinstance(base, Base) else load(base or _base_for(file, store))
        concept, notices = as_concept(file, here, replace(asked, name=name))
        entry = store.add(name, concept.to_bytes(), concept.summary(), new_version=asked.new_version)
        entry = _with_preview(store, entry, place)
    return Imported(concept, entry, notices)


def as_concept(file: TensorFile, base: Base, asked: ImportOptions) -> tuple[Concept, tuple[str, ...]]:
    """The concept that a file is on a base, and sentences. Raises what `import_file` raises."""
    index = index_of(base)
    widths = [encoder.get_input_embeddings().weight.shape[1] for _, encoder in base.encoders]
    file = _with_embeddings(file)
    found = interpret(file, index, base.name, widths)
    own = _own(file)
    name = asked.name or str(own.get("name") or _called(file.path))
    learned_on, notices = base.fingerprint, list(found.notices)
    if own and found.delta:
        learned_on = Fingerprint.from_json(own["base"])
        if sentence := check_fits(learned_on, base, name, str(own.get("base_name"))):
            notices.append(sentence)
    noun = asked.class_noun or own.get("noun")
    tokens, words = _words(found, own, name, noun, asked, file)
    plain = {"method": METHOD, "kind": " and ".join(found.kinds)}
    recipe: dict[str, Any] = dict(own.get("recipe") or {}) or plain
    recipe["family"] = index.family
    if found.kernels:
        recipe[CONVOLUTIONS] = {n: list(size) for n, size in sorted(found.kernels.items())}
    delta = found.delta
    gates = recipe.get(RANK_GATES)
    if recipe_field(recipe, "gated_lora_rank") or gates:
        delta, _ = _gated(delta, sum(int(ranks) for ranks, _ in gates or ()))
    if asked.gated:
        delta, rank = _gated(delta)
        recipe |= {"gated_lora_rank": rank} if rank else {}
        if not rank:
            notices.append(f"{name} changes keys, values and text encoders alone, which no gate holds")
    concept = Concept(
        name=name,
        kind=str(own.get("kind") or "subject"),
        noun=noun,
        base=learned_on,
        base_name=base.name,
        tokens=tokens,
        words=words,
        delta=delta,
        recipe=recipe,
        provenance=dict(own.get("provenance") or {}) | {"imported": _hashes(file)},
    )
    if not tokens and asked.trigger is None and not own:
        text = next(iter(words.values()))
        notices.append(f"{name} stands for {text!r} in prompts; give --trigger for another text")
    return concept, tuple(notices)


def _words(
    found: Read, own: Mapping[str, Any], name: str, noun: str | None, asked: ImportOptions, file: TensorFile
) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, str]]:
    """Tokens under names that a prompt can hold, and what each name of a prompt stands for."""
    told = own.get("words")
    if isinstance(told, dict) and told and asked.trigger is None:
        words = {str(word): str(text) for word, text in told.items()}
        wanted = {part for text in words.values() for part in re.findall(r"<[^\s<>]+>", text)}
        folded = {token.lower(): token for token in wanted}
        tokens = {folded.get(token, token): rows for token, rows in found.tokens.items()}
        if set(tokens) == wanted:
            called = {name: words[own["name"]]} if set(words) == {own["name"]} else words
            return tokens, called
    if not found.tokens:
        hints = [text for text in trigger_words(file.metadata, file.path) if "embedding:" not in text]
        return {}, {name: asked.trigger or (hints[0] if hints else re.sub(r"[_-]+", " ", name))}
    names = [name] if len(found.tokens) == 1 else [tidy(token.strip("<>")) for token in found.tokens]
    if len(set(names)) < len(names) or not all(names):
        raise BadBlob(f"{file.path} has tokens {', '.join(found.tokens)}, of which some are no names")
    tokens = {f"<{word}>": rows for word, rows in zip(names, found.tokens.values(), strict=True)}
    tail = f" {noun}" if noun else ""
    words = {word: f"<{word}>{tail}" for word in names}
    if asked.trigger is not None:
        raise ConceptError(
            f"{file.path} has a token of its own, which {name} stands for; leave --trigger out"
        )
    return tokens, words


def _called(path: Path) -> str:
    """A name for what lies there: its own, or its folder's where every program calls the file the same."""
    folder = path if path.is_dir() else path.parent
    generic = path.is_dir() or path.name in IN_FOLDER
    return tidy(folder.absolute().name if generic else path.stem) or "imported"


def _gated(delta: Delta, least: int = 0) -> tuple[Delta, int]:
    """The delta with one rank on all maps that a gate can hold, and that rank; 0 where there are none."""
    wide = maps_without_text(delta)
    pairs = one_rank({name: factors.low_rank(narrow=True) for name, factors in wide.items()}, least)
    rank = next((len(down) for _, down in pairs.values()), 0)
    return delta.without(wide) | {name: Factors(*pair) for name, pair in pairs.items()}, rank


def _own(file: TensorFile) -> dict[str, Any]:
    """What conceptkit wrote into a file that it exported; {} for others."""
    try:
        told = json.loads(file.metadata.get("conceptkit", "{}"))
        Fingerprint.from_json(told["base"])
        whole = isinstance(told["name"], str) and isinstance(told["words"], dict)
    except (ValueError, LookupError, TypeError, RecursionError, ConceptError):
        return {}
    return told if whole and "format" not in told else {}


def _with_embeddings(file: TensorFile) -> TensorFile:
    """A LoRA of ours with the embeddings that were exported with it, where they still lie beside it."""
    words = _own(file).get("words", {})
    wanted = {token for text in words.values() for token in re.findall(r"<([^\s<>/]+)>", str(text))}
    folder = file.path if file.path.is_dir() else file.path.parent
    near = [folder, *(above / name for above in folder.parents[:2] for name in ("embeddings", "embedding"))]
    found = dict(file.tensors)
    for token in sorted(wanted):
        files = [place / f"{token.lower()}.safetensors" for place in near]
        for embedding in (place for place in files if place.is_file() and not place.samefile(file.path)):
            more = read_tensors(embedding)
            if _own(more).get("words") == words:
                found |= {f"bundle_emb.<{token.lower()}>.{key}": rows for key, rows in more.tensors.items()}
                break
    return replace(file, tensors=found)


def _base_for(file: TensorFile, registry: Registry) -> str:
    """The base that a file is for, by what it tells: the one it was learned on, or one that is here."""
    own = _own(file)
    if own:
        for entry in registry.list():
            about = entry.summary.get("base") or {}
            if about.get("exact") == own["base"].get("exact") and entry.summary.get("base_name"):
                return str(entry.summary["base_name"])
        return str(own.get("base_name") or STORYBOOK)
    family = family_of_shapes({key: tuple(tensor.shape) for key, tensor in file.tensors.items()})
    if family is not None:
        raise BaseMismatch(f"{file.path} is for {TITLES[family]}; name a base of that family with --base")
    return STORYBOOK


def _hashes(file: TensorFile) -> dict[str, str]:
    """Hashes by which other programs know the file; nothing that tells where it lay."""
    if not file.path.is_file():
        return {}
    whole = hashlib.sha256(file.path.read_bytes()).hexdigest()
    known = file.metadata.get("sshs_model_hash")
    return {"sha256": whole, **({"sshs_model_hash": known} if known else {})}


def _with_preview(registry: Registry, entry: Entry, path: Path) -> Entry:
    from io import BytesIO

    from PIL import Image

    picture = preview_of(path) if path.is_file() else None
    if picture is None:
        return entry
    try:
        with Image.open(picture) as opened_picture:
            small = opened_picture.convert("RGB")
            small.thumbnail((512, 512))
            data = BytesIO()
            small.save(data, format="PNG")
    except (OSError, ValueError, Image.DecompressionBombError):
        return entry
    registry.set_preview(entry.name, entry.version, data.getvalue())
    return registry.get(entry.name, entry.version)
