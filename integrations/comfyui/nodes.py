"""Nodes: concepts onto a MODEL and a CLIP, names in a prompt, and regions of the picture.

ComfyUI's own code does the patching: a concept is given to it as the LoRA that `export --for comfyui` writes,
and its words as embeddings in a folder of their own. Written against ComfyUI's node interface (INPUT_TYPES,
RETURN_TYPES, FUNCTION, CATEGORY, IS_CHANGED).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

FOLDER = "conceptkit"
"""Below ComfyUI's folder of embeddings."""
NAMES = "my_dog, moongate:0.8"
STRENGTH = {"default": 1.0, "min": -4.0, "max": 4.0, "step": 0.05}


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
        """The patched model and text encoders, and what a prompt types for each name.

        Raises ConceptError for what no LoRA can be.
        """
        import comfy.sd
        import safetensors.torch

        from conceptkit.formats import kohya
        from conceptkit.formats.diffusers import folded

        concept = _concept(_names(concepts))
        files = kohya.comfyui(concept)
        words = {name: _typed(text) for name, text in folded(concept).words.items()}
        for place, data in files.items():
            if place.startswith("models/embeddings/"):
                _write(_embeddings() / Path(place).name, data)
        lora = next((data for place, data in files.items() if place.startswith("models/loras/")), None)
        if lora is not None:
            tensors = safetensors.torch.load(lora)
            model, clip = comfy.sd.load_lora_for_models(model, clip, tensors, strength, strength)
        return model, clip, words


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

    def encode(
        self, clip: Any, concepts: dict[str, str], text: str, regions: str = ""
    ) -> tuple[list[Any], str]:
        """The conditioning and the text itself.

        regions: a line each, "my_dog=left" or "my_dog=0,0,0.5,1" (left, top, right, bottom): there the words
        of that concept are read once more. Raises ConceptError for lines that make no sense.
        """
        from conceptkit.concepts.prompt_rewriting import replace

        written = replace(text, concepts)
        found = [[*one] for one in _encoded(clip, written)]
        for name, (left, top, right, bottom) in _regions(regions, concepts).items():
            area = ("percentage", bottom - top, right - left, top, left)
            for cond, about in _encoded(clip, concepts[name]):
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


def _typed(text: str) -> str:
    return re.sub(r"<([^\s<>]+)>", lambda found: f"embedding:{FOLDER}/{found[1]}", text)


def _encoded(clip: Any, text: str) -> list[Any]:
    cond, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return [[cond, {"pooled_output": pooled}]]


def _regions(text: str, concepts: dict[str, str]) -> dict[str, tuple[float, ...]]:
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
        found[name] = box
    return found


def _embeddings() -> Path:
    import folder_paths

    return Path(folder_paths.get_folder_paths("embeddings")[0]) / FOLDER


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file() or file.read_bytes() != data:
        part = file.with_suffix(".part")
        part.write_bytes(data)
        part.replace(file)
