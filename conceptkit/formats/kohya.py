"""A concept as kohya's LoRA and embeddings, for ComfyUI, A1111, Forge, InvokeAI and sd-scripts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.gates import rank_gates
from conceptkit.formats.dialects import fits_models
from conceptkit.formats.diffusers import folded
from conceptkit.formats.lora_modules import family_of, half_where_exact, kohya_modules
from conceptkit.formats.modelspec import metadata, network, tensor_hash
from conceptkit.formats.module_names import NAMES, TITLES
from conceptkit.formats.provenance import pack
from conceptkit.formats.textual_inversion import COMFYUI_T5, embedding, token_file
from conceptkit.safetensors_header import split


@dataclass(frozen=True)
class App:
    """A program that reads such files.

    title: as people call it. loras, embeddings: folders below the program's own. lora: what in a prompt, or
    beside it, loads a LoRA of that name. embedding: how a prompt writes an embedding of that name.
    """

    title: str
    loras: str
    embeddings: str
    lora: str
    embedding: str


APPS = {
    "comfyui": App(
        "ComfyUI", "models/loras", "models/embeddings", "{name} in a Load LoRA node", "embedding:{token}"
    ),
    "a1111": App("A1111", "models/Lora", "embeddings", "<lora:{name}:1>", "{token}"),
    "forge": App("Forge", "models/Lora", "embeddings", "<lora:{name}:1>", "{token}"),
    "invokeai": App("InvokeAI", "lora", "embedding", "the LoRA {name} under Concepts", "<{token}>"),
    "kohya": App("sd-scripts", "lora", "embeddings", "--network_weights lora/{name}.safetensors", "{token}"),
}


def files(app: App, concept: Concept, with_names: bool = False) -> dict[str, bytes]:
    """The LoRA, the embeddings and a note, under the folders of a program: place -> content."""
    concept = folded(concept)
    found: dict[str, bytes] = {}
    if concept.delta:
        found[f"{app.loras}/{concept.name}.safetensors"] = lora(concept, typed(app, concept), with_names)
    for token, rows in sorted(concept.tokens.items()):
        found[f"{app.embeddings}/{token_file(token)}"] = embedding(concept, rows, with_names, COMFYUI_T5)
    return {**found, f"{concept.name}.txt": note(app, concept).encode()}


comfyui, a1111, forge, invokeai, kohya = (partial(files, app) for app in APPS.values())


def lora(concept: Concept, prompt: str, with_names: bool = False) -> bytes:
    """The delta as `lora_unet_*` and `lora_te*` modules, all of one rank, alpha equal to it."""
    names = NAMES[family_of(concept)]
    if not fits_models(concept):
        names = replace(names, base=concept.base_name, architecture=f"{concept.base_name}/lora")
    modules = kohya_modules(concept, names)
    rank = next((down.shape[0] for _, down in modules.values()), 0)
    tensors: dict[str, Tensor] = {}
    for key, (up, down) in modules.items():
        tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
    tensors = half_where_exact(tensors)
    kind = next(iter(tensors.values())).dtype
    tensors |= {f"{key}.alpha": torch.tensor(float(rank), dtype=kind) for key in modules}
    told = {**network(concept, names, rank, prompt), **metadata(concept, names, prompt, with_names)}
    _, body = split(pack(tensors, {}))
    return pack(tensors, {**told, "sshs_model_hash": tensor_hash(body)})


def typed(app: App, concept: Concept) -> str:
    """What a prompt says for the concept's words in that program."""
    texts = []
    for text in concept.words.values():
        texts.append(_TOKEN.sub(lambda found: app.embedding.format(token=found[1]), text))
    return " and ".join(texts)


def note(app: App, concept: Concept) -> str:
    """Three lines: where the files go, what to type, what they are for."""
    bases = f"bases of the family {TITLES[family_of(concept)]}, best the one it was learned on."
    if not fits_models(concept):
        bases = f"{concept.base_name} alone; it fits no model of {app.title}."
    load = app.lora.format(name=concept.name) if concept.delta else ""
    places = [app.loras] * bool(concept.delta) + [app.embeddings] * bool(concept.tokens)
    says = typed(app, concept) or "any prompt"
    always = " Without conceptkit it acts on every picture." if _spoken(concept) else ""
    return (
        f"Put it: {' and '.join(places)}, below the folder of {app.title}.\n"
        f"Type: {' with '.join(filter(None, (says, load)))}\n"
        f"For: {bases}{always}\n"
    )


def _spoken(concept: Concept) -> bool:
    return any(gate.words is not None for gate in rank_gates(concept))


_TOKEN = re.compile(r"<([^\s<>]+)>")
