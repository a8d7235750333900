"""Concepts in a real ComfyUI: its loaders and our nodes, beside `attach` in diffusers, from the same noise.

    python -m benchmarks.comfyui --comfyui ~/ComfyUI --python ~/ComfyUI/venv/bin/python

Starts ComfyUI on the CPU and in float32 twice: without custom nodes, for what `export --for comfyui` writes,
and with those of `integrations/comfyui`, for which its interpreter needs conceptkit's dependencies. Names of
modules are looked up in ComfyUI's tables for whole bases of all families. The base that draws has random
weights and Stable Diffusion 1.5's names and widths; without --full its UNet has two levels of one block
each. A latent here and there: two steps of Euler, with guidance.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from benchmarks import sd15
from benchmarks.comfyui_graphs import (
    CASES,
    CHECKPOINT,
    GUIDANCE,
    NEGATIVE,
    PLAIN,
    SEED,
    SIZE,
    STEPS,
    STRANGE,
    Case,
    graph,
    mistakes,
    with_lora,
    with_nodes,
)
from benchmarks.comfyui_keys import unmatched
from benchmarks.comfyui_server import Graph, Server, as_graph
from benchmarks.report import finish, use_own_cores
from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta, Factors
from conceptkit.concepts.kernels import CONVOLUTIONS
from conceptkit.formats.dialects import export
from conceptkit.formats.original_layout import checkpoint
from conceptkit.inference.attach import attach
from conceptkit.merging.compose import compose
from conceptkit.registry.store import Registry
from tests.tiny import pico_concept, pico_sd, scheduler

ROOT = Path(__file__).parents[1]
BAR = 1e-4
GROWTH_MB = 50.0
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Large tensors go back to the system when they are freed: memory that grows is then memory that is held."""
CYCLES, WARM = 10, 9
"""Drawings with nodes and without, and those before memory is compared: eight vocabularies are kept."""
SCALE = 0.18215
"""Latents of Stable Diffusion are the autoencoder's times this."""
SMALL: dict[str, Any] = {
    **sd15.UNET,
    "block_out_channels": (320, 640),
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "layers_per_block": 1,
}
TEXT_LENGTH = sd15.TEXT["max_position_embeddings"]


def base(comfyui: Path, full: bool) -> StableDiffusionPipeline:
    """The pipeline, with ComfyUI's own copy of CLIP's vocabulary."""
    tokenizer = CLIPTokenizer.from_pretrained(
        comfyui / "comfy" / "sd1_tokenizer", model_max_length=TEXT_LENGTH
    )
    pipe = sd15.pipeline(pixels=SIZE, tokenizer=tokenizer, unet_config=sd15.UNET if full else SMALL)
    pipe.scheduler = scheduler()
    return pipe


def concepts(pipe: StableDiffusionPipeline, folder: Path) -> list[Concept]:
    """A subject with text maps and two rows; one with keys and values alone; one on every map there is."""
    dog = pico_concept(pipe, "my_dog", "dog", rank=4, vectors=2, text_rank=2, seed=1)
    gate = pico_concept(pipe, "moongate", "gate", rank=2, seed=2)
    ink = pico_concept(pipe, "ink", None, rank=2, text_rank=2, seed=3)
    wide, kernels = dict(ink.delta), {}
    dice = torch.Generator().manual_seed(3)
    for name, module in pipe.unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name not in wide:
            shape = module.weight.flatten(1).shape
            up, down = torch.randn(shape[0], 2, generator=dice), torch.randn(2, shape[1], generator=dice)
            wide[name] = Factors(0.05 * up, shape[1] ** -0.5 * down)
            if isinstance(module, nn.Conv2d):
                kernels[name] = list(module.kernel_size)
    ink = replace(ink, delta=Delta(wide), recipe={**ink.recipe, CONVOLUTIONS: kernels})
    return [replace(one, base_name=str(folder)) for one in (dog, gate, ink)]


def drawn(pipe: StableDiffusionPipeline, prompt: str) -> Tensor:
    """The latent (1, 4, h, w) that diffusers comes to, from ComfyUI's noise and at its noise levels."""
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    noise = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(SEED))
    pipe.scheduler.set_timesteps(STEPS)
    # ComfyUI's first latent has the variance of a noisy one; diffusers multiplies by sigma alone.
    first = float(pipe.scheduler.sigmas[0])
    found: Tensor = pipe(
        prompt,
        negative_prompt=NEGATIVE,
        latents=noise * (1 + first**2) ** 0.5 / first,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        height=SIZE,
        width=SIZE,
        output_type="latent",
    ).images
    return found / SCALE


def prepare(comfyui: Path, folder: Path, full: bool) -> dict[Case, Tensor]:
    """Fill ComfyUI's folder with a checkpoint, exported files and nodes; what each case draws with `attach`.

    Concepts are in the registry of CONCEPTKIT_HOME, beside one of another base.
    """
    pipe = base(comfyui, full)
    models = folder / "models" / "checkpoints"
    models.mkdir(parents=True)
    save_file(checkpoint(pipe), models / CHECKPOINT)
    place = folder / "diffusers"
    pipe.save_pretrained(place)
    here = bases.of(pipe, str(place))
    found = {Case((), PLAIN): drawn(pipe, PLAIN)}
    with Registry() as registry:
        for concept in (*concepts(pipe, place), pico_concept(pico_sd(), STRANGE)):
            registry.add(concept.name, concept.to_bytes(), concept.summary())
        for case in CASES:
            merged = compose(*case.names, base=here, registry=registry, name="-".join(case.names))
            export(merged, folder, dialect="comfyui", force=True)
            with attach(pipe, merged):
                found[case] = drawn(pipe, case.prompt)
    return found


def check_export(server: Server, expected: dict[Case, Tensor]) -> dict[str, Any]:
    """What the exported files draw; everything in them must have been loaded."""
    return _compared(server, expected, with_lora)


def check_nodes(server: Server, expected: dict[Case, Tensor]) -> dict[str, Any]:
    """What our nodes draw, say and leave behind."""
    found, plain = _compared(server, expected, with_nodes), server.run(graph(PLAIN)).latents
    one, both = CASES[0], CASES[-1]
    sizes, same = list[float](), True
    for cycle in range(1, WARM + CYCLES + 1):
        drawings = [server.run(with_nodes(case, seed=SEED + cycle)).latents for case in (one, both)]
        again = server.run(graph(PLAIN + " " * cycle)).latents  # other text, same tokens: nothing is cached
        same &= all(drawing is not None for drawing in drawings) and _equal(again, plain)
        sizes.append(server.memory_mb())
    regions = server.run(with_nodes(both, "my_dog=left\nmoongate=right"))
    return {
        **found,
        "grown_mb": sizes[-1] - sizes[WARM - 1],
        "memory_mb": sizes,
        "base_untouched": same,
        "regions_change": relative(regions.latents, expected[both]),
        "errors": {what: server.run(asked).error.strip() for what, asked in mistakes().items()},
        "workflow": _workflow(server),
    }


def relative(found: Tensor | None, expected: Tensor) -> float:
    """How far a latent is off, by the norm of the expected one; infinite where nothing was drawn."""
    return float("inf") if found is None else float((found - expected).norm() / expected.norm())


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _compared(server: Server, expected: dict[Case, Tensor], make: Callable[[Case], Graph]) -> dict[str, Any]:
    before = server.run(graph(PLAIN))
    off = {"base": relative(before.latents, expected[Case((), PLAIN)])}
    unmatched = list(before.unmatched)
    for case in CASES:
        drawing = server.run(make(case))
        off["+".join(case.names)] = relative(drawing.latents, expected[case])
        unmatched += [*drawing.unmatched, *filter(None, [drawing.error])]
    return {"off": off, "unmatched": unmatched}


def _workflow(server: Server) -> str:
    """What goes wrong with the example's nodes and links, drawn small; "" for nothing."""
    saved = json.loads((ROOT / "examples" / "comfyui_workflow.json").read_text())
    asked = as_graph(saved, server.get("/object_info"))
    smaller = {"ckpt_name": CHECKPOINT, "width": SIZE, "height": SIZE, "steps": STEPS}
    for node in asked.values():
        node["inputs"].update({name: to for name, to in smaller.items() if name in node["inputs"]})
    result = server.run(asked)
    return result.error or ("" if result.images else "no picture")


def main() -> None:
    """Draw with `attach`, then in both servers, and compare."""
    parser = argparse.ArgumentParser(description="Concepts in a real ComfyUI.")
    parser.add_argument("--comfyui", type=Path, required=True, help="a checkout of ComfyUI")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has what ComfyUI needs")
    parser.add_argument(
        "--full", action="store_true", help="Stable Diffusion 1.5's whole UNet; 9 GB of memory"
    )
    asked = parser.parse_args()
    use_own_cores()
    warnings.simplefilter("ignore")
    absent, known = unmatched(asked.comfyui, asked.python)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["CONCEPTKIT_HOME"] = str(folder / "home")
        expected = prepare(asked.comfyui, folder, asked.full)
        gc.collect()
        with Server(asked.comfyui, asked.python, folder, arguments=["--disable-all-custom-nodes"]) as server:
            exported, version = check_export(server, expected), server.version
        link = folder / "custom_nodes" / "conceptkit"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(ROOT / "integrations" / "comfyui")
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with Server(asked.comfyui, asked.python, folder, {"PYTHONPATH": path, **RETURNED}) as server:
            nodes = check_nodes(server, expected)
    worst = max(*exported["off"].values(), *nodes["off"].values())
    faults = exported["unmatched"] + nodes["unmatched"] + [nodes["workflow"]] * bool(nodes["workflow"])
    faults += [f"{what}: {said}" for what, said in nodes["errors"].items() if what not in said]
    faults += [f"{family}: ComfyUI has no {key}" for family, keys in absent.items() for key in keys]
    print(*faults, sep="\n")
    good = not faults and nodes["base_untouched"] and nodes["grown_mb"] <= GROWTH_MB
    finish(
        "comfyui",
        worst,
        "relative difference of latents",
        BAR,
        good and worst <= BAR and nodes["regions_change"] > BAR,
        SEED,
        version=version,
        modules_matched={family: count - len(absent[family]) for family, count in known.items()},
        shape="whole" if asked.full else "two levels",
        exported=exported,
        nodes=nodes,
    )


if __name__ == "__main__":
    main()
