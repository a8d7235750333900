"""Concepts of transformers leave in other programs' files, draw the same there, and come back the same.

SD and SDXL are in `test_export`, `test_export_dialects` and `test_import_file`.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from conceptkit.base.pipeline import of
from conceptkit.concepts.delta import Factors
from conceptkit.formats.dialects import export
from conceptkit.formats.module_names import NAMES
from conceptkit.formats.peft import LORA
from conceptkit.inference.attach import attach
from conceptkit.merging.compose import compose
from conceptkit.registry.store import Registry
from conceptkit.workflows.import_file import import_file
from tests import warm_process
from tests.tiny import draw, pico_concept, save
from tests.transformers_tiny import pico_flux, pico_sd3

BUILD = {"sd3": pico_sd3, "flux": pico_flux}
ONE, TWO = "a photo of my_dog in the snow", "my_dog in front of a moongate"
TYPED = {ONE: "a photo of <my_dog> dog in the snow", TWO: "<my_dog> dog in front of a <moongate> gate"}
ELSEWHERE = """
import json, re, sys
from pathlib import Path
import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from transformers import AddedToken

def add(tokenizer, encoder, token, rows):
    names = [token, *(f"{token}_{k}" for k in range(1, len(rows)))]
    # A word of T5's vocabulary takes the space before it along, and so does a token that stands for one.
    spaced = len(names) == 1 and tokenizer.tokenize("a a")[-1].startswith("\u2581")
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False, lstrip=spaced) for name in names])
    table = encoder.get_input_embeddings().weight
    encoder.resize_token_embeddings(max(len(table), len(tokenizer)), mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    table.data[tokenizer.convert_tokens_to_ids(names)] = rows.to(table)

# How sd-scripts names the maps of SD3: blocks of the original model, queries, keys and values in one.
def sd3(key, pipe):
    edges = {"context_embedder": "context_embedder"}
    if key.startswith("lora_te"):
        number, name = re.fullmatch(r"lora_te(\\d)_(.+)", key).groups()
        part = "text_encoder" + ("" if number == "1" else f"_{number}")
        encoder = getattr(pipe, part)
        flat = {n.removeprefix("text_model.").replace(".", "_"): m for n, m in encoder.named_modules()}
        return [flat[name.removeprefix("text_model_")]]
    name = key.removeprefix("lora_unet_")
    if name in edges:
        return [pipe.transformer.get_submodule(edges[name])]
    block, side, rest = re.fullmatch(r"joint_blocks_(\\d+)_(x|context)_block_(.+)", name).groups()
    image = side == "x"
    names = {
        "attn_qkv": ["to_q", "to_k", "to_v"] if image else ["add_q_proj", "add_k_proj", "add_v_proj"],
        "attn_proj": ["to_out.0" if image else "to_add_out"],
    }
    inside = [f"attn.{part}" for part in names[rest]] if rest in names else [
        ("ff" if image else "ff_context") + {"mlp_fc1": ".net.0.proj", "mlp_fc2": ".net.2"}[rest]]
    whole = pipe.transformer.transformer_blocks[int(block)]
    return [whole.get_submodule(part) for part in inside]

def merge(pipe, file):
    left = load_file(file)
    for key in {key.split(".")[0] for key in left}:
        ends = ("lora_up.weight", "lora_down.weight", "alpha")
        up, down, alpha = (left.pop(f"{key}.{end}").float() for end in ends)
        change, at = alpha / len(down) * (up @ down), 0
        for module in sd3(key, pipe):
            module.weight.data += change[at : at + len(module.weight)]
            at += len(module.weight)
        assert at == len(change), key
    assert not left, left.keys()

for job in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(job["base"])
    pipe.default_sample_size = 8
    pipe.set_progress_bar_config(disable=True)
    for file, token in job["embeddings"]:
        rows = load_file(file)
        last = "_3" if "text_encoder_3" in pipe.components else "_2"
        parts = {"clip_l": "", "clip_g": "_2", "t5xxl": last, "t5": last}
        for key, values in rows.items():
            tokenizer, encoder = (getattr(pipe, part + parts[key]) for part in ("tokenizer", "text_encoder"))
            add(tokenizer, encoder, token, values)
    if job["merges"]:
        merge(pipe, job["lora"])
    else:
        pipe.load_lora_weights(str(Path(job["lora"]).parent), weight_name=Path(job["lora"]).name)
        loaded = {
            (part, name.removesuffix(".lora_A"))
            for part, model in pipe.components.items() if isinstance(model, torch.nn.Module)
            for name, _ in model.named_modules() if name.endswith(".lora_A")
        }
        expected = {tuple(pair) for pair in job["maps"]}
        assert loaded == expected, (expected - loaded, loaded - expected)
    options = {"output_type": "np", "guidance_scale": 2.0, "num_inference_steps": 2}
    image = pipe(job["prompt"], generator=torch.Generator().manual_seed(0), **options).images[0]
    np.save(job["picture"], image)
assert not [name for name in sys.modules if name.startswith("conceptkit")]
"""


def concepts(family, pipe, text=True):
    """Two that change the text site, attention and MLPs of the denoiser, and a text encoder."""
    found = []
    for i, (name, noun) in enumerate((("my_dog", "dog"), ("moongate", "gate"))):
        concept = pico_concept(pipe, name, noun, seed=i, rank=2)
        generator = torch.Generator().manual_seed(i)
        wide = {}
        for path, linear in of_pipe(pipe, text):
            o, d = linear.weight.shape
            up, down = (torch.randn(*size, generator=generator) for size in ((o, 2), (2, d)))
            wide[path] = Factors(0.2 * up, d**-0.5 * down)
        found.append(
            replace(concept, delta=concept.delta | wide, recipe={**concept.recipe, "family": family})
        )
    return found


def of_family(concept, family):
    return replace(concept, recipe={**concept.recipe, "family": family})


def of_pipe(pipe, text):
    """The maps that files of all dialects have, beside the text site."""
    for path, module in pipe.transformer.named_modules():
        inner = any(part in path for part in (".attn.", ".ff.", ".ff_context."))
        if path.startswith("transformer_blocks.") and inner and isinstance(module, torch.nn.Linear):
            yield path, module
    for path, module in pipe.text_encoder.named_modules() if text else ():
        if path.endswith(("q_proj", "v_proj")):
            yield f"text_encoder.{path}", module


def places(concept):
    """(part of a pipeline, map in it) of all that a concept changes."""
    for part, delta in concept.delta.by_component().items():
        yield from ((part, name) for name in delta)


def lora_of(files):
    return next(f for f in files if f.parent.name in ("lora", "loras") or f.name == LORA)


@pytest.mark.parametrize("family", ["sd3", pytest.param("flux", marks=pytest.mark.slow)])
def test_a_process_without_conceptkit_draws_the_same(family, tmp_path):
    """Both dialects, a concept and a merge, confined to no part: every key is used, and the picture
    is that of `attach`."""
    pipe = BUILD[family]()
    base = save(pipe, tmp_path / "base")
    # diffusers 0.42 reads kohya's keys of FLUX's text encoder into names that it then refuses.
    dog, gate = concepts(family, pipe, text=family != "flux")
    merged = compose(dog, gate, base=of(pipe, "pico"), name="both").concept
    merged = of_family(merged, family)
    jobs, expected = [], []
    for concept, prompt in ((dog, ONE), (merged, TWO)):
        plain = draw(pipe, prompt)
        with attach(pipe, concept, confine=False):
            drawn = draw(pipe, prompt)
        assert (drawn - plain).norm() > 1e-2 * plain.norm()
        # diffusers reads kohya's files of FLUX without the text entry.
        for dialect in ("diffusers", "kohya") if family != "flux" else ("diffusers",):
            folder = tmp_path / f"{concept.name} {dialect}"
            files = export(concept, folder, dialect=dialect)
            lora = lora_of(files)
            tokens = {token.strip("<>"): token for token in concept.tokens}
            rows = [(f, tokens[f.stem]) for f in files if f.stem in tokens and f not in (lora, files[-1])]
            assert len(rows) == len(tokens)
            jobs.append(
                {
                    "base": str(base),
                    "lora": str(lora),
                    "embeddings": [(str(file), token) for file, token in rows],
                    "merges": (family, dialect) == ("sd3", "kohya"),  # diffusers reads no such files
                    "maps": list(places(concept)),
                    "prompt": TYPED[prompt],
                    "picture": str(folder / "picture.npy"),
                }
            )
            expected.append(drawn)
    warm_process.run(ELSEWHERE, json.dumps(jobs), folder=tmp_path)
    for job, drawn in zip(jobs, expected, strict=True):
        picture = torch.from_numpy(np.load(job["picture"])).permute(2, 0, 1)
        assert (picture - drawn).norm() <= 1e-4 * drawn.norm(), job["lora"]


@pytest.mark.parametrize(
    "dialect", ["kohya", *(pytest.param(d, marks=pytest.mark.slow) for d in ("diffusers", "peft", "comfyui"))]
)
@pytest.mark.parametrize("family", BUILD)
def test_what_comes_back_is_what_left(family, dialect, tmp_path):
    pipe = BUILD[family]()
    dog, gate = concepts(family, pipe)
    single = {f"single_transformer_blocks.0.{name}" for name in ("attn.to_k", "proj_mlp", "proj_out")}
    modules = dict(pipe.transformer.named_modules())
    wide = {name: modules[name].weight.shape for name in sorted(single & modules.keys())}
    dog = replace(
        dog, delta=dog.delta | {n: (torch.randn(o, 2), torch.randn(2, d)) for n, (o, d) in wide.items()}
    )
    merged = compose(dog, gate, base=of(pipe, "pico"), name="both").concept
    merged = of_family(merged, family)
    with Registry(tmp_path / "home") as registry:
        for concept in (dog, merged):
            files = export(concept, tmp_path / concept.name, dialect=dialect)
            lora = lora_of(files)
            back = import_file(lora, base=of(pipe), registry=registry, name=f"back_{concept.name}").concept
            assert back.delta.keys() == concept.delta.keys()
            for name, factors in concept.delta.items():
                expected, found = factors.dense().double(), back.delta[name].dense().double()
                assert (found - expected).norm() <= 1e-6 * expected.norm(), name
            assert all(NAMES[family].place(name) for name in back.delta)
