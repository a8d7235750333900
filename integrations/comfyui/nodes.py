"""Nodes: concepts onto a MODEL and a CLIP, names in a prompt, and regions of the picture.

ComfyUI's own code does the patching: a concept is given to it as the LoRA that `export --for comfyui` writes,
and its words as embeddings in a folder of their own. Written against ComfyUI's node interface (INPUT_TYPES,
RETURN_TYPES, FUNCTION, CATEGORY, IS_CHANGED).
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "conceptkit"
"""Below ComfyUI's folder of embeddings."""
NAMES = "my_dog, moongate:0.8"
Tensors = Mapping[str, Any]
STRENGTH = {"default": 1.0, "min": -4.0, "max": 4.0, "step": 0.05}


@dataclass(frozen=True)
class Concepts:
    """What prompts need to know of concepts that are loaded.

    words: name -> what it stands for, with tokens, as in {"my_dog": "<my_dog> dog"}. files: token -> name of
    its embeddings, below ComfyUI's folder.
    """

    words: Mapping[str, str]
    files: Mapping[str, str]

    def typed(self, text: str) -> str:
        """A text with tokens as ComfyUI reads it: it finds an embedding only between spaces."""
        for token, name in self.files.items():
            text = text.replace(token, f" embedding:{name} ")
        return re.sub(" +", " ", text).strip(" ")


class ConceptkitLoader:
    """One concept of the registry, or the merge of several, onto a model and its text encoders."""

    RETURN_TYPES = ("MODEL", "CLIP", "CONCEPTS")
    FUNCTION = "load"
    CATEGORY = "conceptkit"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The sockets and fields of the node."""
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "concepts": ("STRING", {"default": NAMES}),
                "strength": ("FLOAT", STRENGTH),
            }
        }

    @classmethod
    def IS_CHANGED(cls, concepts: str, **_: Any) -> str:
        """The hashes of the concepts: a new version of one is loaded anew."""
        from conceptkit.registry.store import Registry

        with Registry() as registry:
            return " ".join(registry.get(name.partition(":")[0]).hash for name in _names(concepts))

    def load(self, model: Any, clip: Any, concepts: str, strength: float) -> tuple[Any, Any, Any]:
        """The patched model and text encoders, and what prompts need to know.

        Raises ConceptError for what no LoRA can be, BaseMismatch when the checkpoint is none that it fits.
        """
        _check_installed()
        import comfy.sd
        import safetensors.torch

        from conceptkit.formats import kohya
        from conceptkit.formats.diffusers import folded
        from conceptkit.formats.textual_inversion import token_file

        concept = folded(_concept(_names(concepts)))
        files = kohya.comfyui(concept)
        lora = next((data for place, data in files.items() if place.startswith("models/loras/")), None)
        tensors = {} if lora is None else safetensors.torch.load(lora)
        rows = {token: files[f"models/embeddings/{token_file(token)}"] for token in concept.tokens}
        read = {token: safetensors.torch.load(data) for token, data in rows.items()}
        _check_fits(concept, tensors, read, model, clip)
        written = {token: _written(data, token) for token, data in rows.items()}
        if tensors:
            model, clip = comfy.sd.load_lora_for_models(model, clip, tensors, strength, strength)
        return model, clip, Concepts(concept.words, written)


class ConceptkitPrompt:
    """A prompt with names of concepts, encoded as ComfyUI reads it."""

    RETURN_TYPES = ("CONDITIONING", "STRING")
    FUNCTION = "encode"
    CATEGORY = "conceptkit"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The sockets and fields of the node."""
        return {
            "required": {
                "clip": ("CLIP",),
                "concepts": ("CONCEPTS",),
                "text": ("STRING", {"multiline": True, "default": "my_dog in front of a moongate"}),
            },
            "optional": {"regions": ("STRING", {"multiline": True, "default": ""})},
        }

    def encode(self, clip: Any, concepts: Concepts, text: str, regions: str = "") -> tuple[list[Any], str]:
        """The conditioning and the text itself.

        regions: a line each, "my_dog=left" or "my_dog=0,0,0.5,1" (left, top, right, bottom): there the words
        of that concept are read once more. Raises ConceptError for lines that make no sense.
        """
        from conceptkit.concepts.prompt_rewriting import replace

        written = concepts.typed(replace(text, concepts.words))
        found = [[*one] for one in _encoded(clip, written)]
        for name, (left, top, right, bottom) in _regions(regions, concepts.words).items():
            area = ("percentage", bottom - top, right - left, top, left)
            for cond, about in _encoded(clip, concepts.typed(concepts.words[name])):
                found.append([cond, {**about, "area": area, "strength": 1.0, "set_area_to_bounds": False}])
        return found, written


NODE_CLASS_MAPPINGS = {"ConceptkitLoader": ConceptkitLoader, "ConceptkitPrompt": ConceptkitPrompt}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ConceptkitLoader": "Load concepts (conceptkit)",
    "ConceptkitPrompt": "Prompt with concepts (conceptkit)",
}
SIDES = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
}


def _names(text: str) -> list[str]:
    from conceptkit.errors import ConceptError

    names = [name for name in re.split(r"[,\s]+", text) if name]
    if not names:
        raise ConceptError(f"There is no concept to load; write names, as in {NAMES!r}")
    return names


def _concept(names: list[str]) -> Any:
    """The concept of one name at full strength; else the merge, on the base of the first."""
    from conceptkit.concepts.concept import read
    from conceptkit.registry.store import Registry

    with Registry() as registry:
        if len(names) == 1 and ":" not in names[0]:
            concept = read(registry, names[0])
        else:
            from conceptkit.merging.compose import compose

            concept = compose(*names, registry=registry).concept
    from conceptkit.formats.dialects import check_fits_dialect

    check_fits_dialect("comfyui", concept)
    return concept


def _check_installed() -> None:
    try:
        import conceptkit  # noqa: F401
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{sys.executable}, which runs ComfyUI, has no {error.name}; install conceptkit there"
        ) from error


def _check_fits(concept: Any, tensors: Tensors, rows: Mapping[str, Tensors], model: Any, clip: Any) -> None:
    """ComfyUI passes over what has no place in a checkpoint, with a line in its log alone.

    tensors: of the LoRA. rows: of the embeddings, by their tokens.
    """
    import comfy.lora

    from conceptkit.errors import BaseMismatch
    from conceptkit.formats.lora_modules import family_of
    from conceptkit.formats.module_names import TITLES

    places = comfy.lora.model_lora_keys_unet(model.model, {})
    places = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, places)
    weights = {**model.model.state_dict(), **clip.cond_stage_model.state_dict()}
    modules = sorted({key.partition(".")[0] for key in tensors})
    strange = [name for name in modules if not _has_place(name, tensors, places, weights)]
    strange += [token for token, each in sorted(rows.items()) if not _is_read(each, clip)]
    if strange:
        raise BaseMismatch(
            f"{concept.name} was learned on {concept.base_name}, of the family {TITLES[family_of(concept)]}, "
            f"and this checkpoint has no place for {len(strange)} of its {len(modules) + len(rows)} "
            f"parts, {strange[0]} for one; load one of that family and shape"
        )


def _has_place(name: str, tensors: Tensors, places: Mapping[str, Any], weights: Tensors) -> bool:
    """Whether a module of a LoRA is one of the checkpoint, of the same inputs and outputs."""
    place = places.get(name)
    if not isinstance(place, str):
        return place is not None  # a part of a matrix, (key, (dimension, begin, length))
    weight = weights.get(place)
    if weight is None or not weight.is_floating_point():
        return weight is not None  # packed by a quantizer, in a shape of its own
    up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
    return weight.shape == up.shape[:1] + down.shape[1:]


def _is_read(rows: Tensors, clip: Any) -> bool:
    """Whether the text encoders read embeddings of these keys and widths."""
    sizes = {
        part.embedding_key: part.embedding_size
        for part in vars(clip.tokenizer).values()
        if hasattr(part, "embedding_size")
    }
    widths = {key: row.shape[1] for key, row in rows.items()}
    if len(widths) == 1:
        return list(widths.values()) == list(sizes.values())
    return all(sizes.get(key) == width for key, width in widths.items())


def _encoded(clip: Any, text: str) -> list[Any]:
    cond, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return [[cond, {"pooled_output": pooled}]]


def _regions(text: str, concepts: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
    from conceptkit.errors import BadRegion

    found: dict[str, tuple[float, ...]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, where = map(str.strip, line.partition("="))
        try:
            box = SIDES[where] if where in SIDES else tuple(float(x) for x in where.split(","))
            left, top, right, bottom = box
        except ValueError as error:
            raise BadRegion(f"{line!r} is no region; write my_dog=left or my_dog=0,0,0.5,1") from error
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise BadRegion(f"{line!r} is no part of the picture; write numbers from 0 to 1")
        if name not in concepts:
            known = ", ".join(concepts)
            raise BadRegion(f"{name!r} is none of the concepts {known}; mend the region {line!r}")
        if name in found:
            raise BadRegion(f"{name} has a region already; take {line!r} away, or make one box of both")
        found[name] = box
    return found


def _written(data: bytes, token: str) -> str:
    """Embeddings in a file of their own, and its name below ComfyUI's folder.

    The name has a part of the hash: two versions of a concept may be in one workflow, and ComfyUI reads the
    file only when a prompt is encoded.
    """
    import folder_paths

    name = f"{FOLDER}/{token.strip('<>')}-{hashlib.sha256(data).hexdigest()[:8]}"
    file = Path(folder_paths.get_folder_paths("embeddings")[0]) / f"{name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file() or file.read_bytes() != data:
        part = file.with_suffix(".part")
        part.write_bytes(data)
        part.replace(file)
    return name
