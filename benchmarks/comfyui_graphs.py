"""What ComfyUI is asked to draw: a checkpoint, a loader of concepts, prompts, and both latent and picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from benchmarks.comfyui_server import Graph

STEPS, SEED, GUIDANCE, SIZE = 2, 7, 3.0, 64
CHECKPOINT = "random.safetensors"
NEGATIVE = "a blurred photo"


@dataclass(frozen=True)
class Case:
    """What is attached here and loaded there. names: of concepts, in the registry."""

    names: tuple[str, ...]
    prompt: str


CASES = (
    Case(("my_dog",), "a photo of my_dog in the snow"),
    Case(("moongate",), "a tree\nmoongate at night"),
    Case(("ink",), "a house, ink."),
    Case(("my_dog", "moongate"), "my_dog,moongate and a tree"),
)
STRANGE = "my_toy"
"""A concept of another base."""
PLAIN = "a photo of a dog in the snow"


def graph(prompt: str, seed: int = SEED) -> Graph:
    """Checkpoint, prompts, two steps; latent and picture are saved. `_past` puts a loader between."""
    sampler = {"seed": seed, "steps": STEPS, "cfg": GUIDANCE, "sampler_name": "euler", "scheduler": "simple"}
    texts = {"positive": ["prompt", 0], "negative": ["negative", 0]}
    return {
        "base": _node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "prompt": _node("CLIPTextEncode", clip=["base", 1], text=prompt),
        "negative": _node("CLIPTextEncode", clip=["base", 1], text=NEGATIVE),
        "empty": _node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1),
        "draw": _node(
            "KSampler", model=["base", 0], latent_image=["empty", 0], denoise=1.0, **sampler, **texts
        ),
        "latent": _node("SaveLatent", samples=["draw", 0], filename_prefix="latents/drawn"),
        "decode": _node("VAEDecode", samples=["draw", 0], vae=["base", 2]),
        "picture": _node("SaveImage", images=["decode", 0], filename_prefix="drawn"),
    }


def with_lora(case: Case) -> Graph:
    """The files that were exported, in ComfyUI's own nodes."""
    found = graph(typed(case))
    name = "-".join(case.names)
    lora = {"lora_name": f"{name}.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    found["lora"] = _node("LoraLoader", model=["base", 0], clip=["base", 1], **lora)
    return _past(found, "lora")


def with_nodes(case: Case, regions: str = "", seed: int = SEED) -> Graph:
    """The same from the registry, in nodes of `integrations/comfyui`."""
    found = graph("", seed)
    load = {"concepts": ", ".join(case.names), "strength": 1.0}
    found["load"] = _node("ConceptkitLoader", model=["base", 0], clip=["base", 1], **load)
    found["prompt"] = _node(
        "ConceptkitPrompt", clip=["load", 1], concepts=["load", 2], text=case.prompt, regions=regions
    )
    return _past(found, "load")


def typed(case: Case) -> str:
    """The prompt as a user of ComfyUI types it."""
    nouns = {"my_dog": "embedding:my_dog dog", "moongate": "embedding:moongate gate", "ink": "embedding:ink"}
    return re.sub(r"my_dog|moongate|ink", lambda name: f" {nouns[name[0]]} ", case.prompt)


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _past(found: Graph, loader: str) -> Graph:
    """Model and text encoders come from that node, to all but itself."""
    for name, node in found.items():
        for field, at in (("model", 0), ("clip", 1)):
            if name != loader and field in node["inputs"]:
                node["inputs"][field] = [loader, at]
    return found


def mistakes() -> dict[str, Graph]:
    """What users get wrong, and what the sentence for it must name."""
    one, both = CASES[0], CASES[-1]
    return {
        "my_cat": with_nodes(Case(("my_cat",), "my_cat")),
        STRANGE: with_nodes(Case((STRANGE,), STRANGE)),
        "no weight": with_nodes(Case(("my_dog:x",), "my_dog")),
        "no concept": with_nodes(Case((), "a house")),
        "my_cat=left": with_nodes(one, "my_cat=left"),
        "a region already": with_nodes(both, "my_dog=left\nmy_dog=right"),
    }
