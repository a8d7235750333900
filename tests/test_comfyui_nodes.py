"""The nodes of ComfyUI, against stand-ins for its modules.

They find a LoRA's keys and an embedding's name as ComfyUI does. `benchmarks.comfyui` runs ComfyUI itself.
"""

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from conceptkit.errors import BadRegion, BaseMismatch, ConceptError
from conceptkit.registry.store import Registry
from tests.documents import ROOT
from tests.tiny import pico_concept, pico_sd


@pytest.fixture
def nodes(monkeypatch):
    place = ROOT / "integrations" / "comfyui" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "comfyui_conceptkit", place, submodule_search_locations=[str(place.parent)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "comfyui_conceptkit", module)
    spec.loader.exec_module(module)
    yield module.NODE_CLASS_MAPPINGS
    sys.modules.pop("comfyui_conceptkit.nodes", None)


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """ComfyUI in five functions: what it was asked for is `.patched`, a checkpoint `.model`, `.clip`."""
    seen = SimpleNamespace(patched=[], folder=tmp_path / "embeddings")
    pipe = pico_sd()
    weights = {f"diffusion_model.{key}": value for key, value in pipe.unet.state_dict().items()}
    seen.model = SimpleNamespace(model=SimpleNamespace(state_dict=lambda: weights))
    width = pipe.text_encoder.config.hidden_size
    reader = SimpleNamespace(embedding_key="clip_l", embedding_size=width)
    seen.clip = SimpleNamespace(
        cond_stage_model=SimpleNamespace(state_dict=dict), tokenizer=SimpleNamespace(clip_l=reader)
    )

    def model_lora_keys_unet(model, places):
        names = [key.removesuffix(".weight") for key in model.state_dict() if key.endswith(".weight")]
        flat = {name: name.removeprefix("diffusion_model.").replace(".", "_") for name in names}
        return places | {f"lora_unet_{flat[name]}": f"{name}.weight" for name in names}

    def load_lora_for_models(model, clip, lora, strength_model, strength_clip):
        seen.patched.append((lora, strength_model, strength_clip))
        return "model+", "clip+"

    package, inner, keys = ModuleType("comfy"), ModuleType("comfy.sd"), ModuleType("comfy.lora")
    package.sd, package.lora, inner.load_lora_for_models = inner, keys, load_lora_for_models
    keys.model_lora_keys_unet = model_lora_keys_unet
    keys.model_lora_keys_clip = lambda encoders, places: places
    folders = ModuleType("folder_paths")
    folders.get_folder_paths = lambda kind: [str(seen.folder)]
    for name, module in zip(
        ("comfy", "comfy.sd", "comfy.lora", "folder_paths"), (package, inner, keys, folders), strict=True
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return seen


@pytest.fixture
def concept(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPTKIT_HOME", str(tmp_path / "home"))
    made = pico_concept(pico_sd())
    with Registry() as registry:
        registry.add("my_dog", made.to_bytes(), made.summary())
    return made


class Clip:
    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens, return_pooled):
        return f"<{tokens}>", "pooled"


def test_a_concept_becomes_patches_and_an_embedding(nodes, comfy, concept):
    model, clip, concepts = nodes["ConceptkitLoader"]().load(comfy.model, comfy.clip, "my_dog", 0.5)
    assert (model, clip) == ("model+", "clip+")
    ((lora, *strengths),) = comfy.patched
    assert strengths == [0.5, 0.5]
    for name, factors in concept.delta.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        up, down = lora[f"{key}.lora_up.weight"].float(), lora[f"{key}.lora_down.weight"].float()
        scale = float(lora[f"{key}.alpha"]) / len(down)
        assert torch.allclose(scale * up @ down, factors.dense(), atol=1e-3)
    assert concepts.words == {"my_dog": "<my_dog> dog"}
    (found,) = embeddings(concepts.typed("<my_dog> dog"))
    rows = load_file(comfy.folder / f"{found}.safetensors")["emb_params"]
    assert torch.allclose(rows.float(), concept.tokens["<my_dog>"][0], atol=1e-3)


def embeddings(text):
    """Names of embeddings as ComfyUI finds them: after a space or a line's end, up to the next."""
    parts = re.split(r"[ \n]embedding:", " " + text)
    return [part.split()[0] for part in parts[1:]]


def test_two_versions_of_a_concept_keep_their_own_embeddings(nodes, comfy, concept):
    _, _, old = nodes["ConceptkitLoader"]().load(comfy.model, comfy.clip, "my_dog", 1.0)
    rows = tuple(2 * row for row in concept.tokens["<my_dog>"])
    other = replace(concept, tokens={"<my_dog>": rows})
    with Registry() as registry:
        registry.add("my_dog", other.to_bytes(), other.summary(), new_version=True)
    _, _, new = nodes["ConceptkitLoader"]().load(comfy.model, comfy.clip, "my_dog", 1.0)
    for concepts, expected in ((old, concept), (new, other)):
        (found,) = embeddings(concepts.typed("<my_dog>"))
        written = load_file(comfy.folder / f"{found}.safetensors")["emb_params"].float()
        assert torch.allclose(written, expected.tokens["<my_dog>"][0], atol=1e-3)


def test_a_checkpoint_of_another_shape_is_refused(nodes, comfy, concept):
    """ComfyUI itself passes over what does not fit, and draws the base."""
    weights = comfy.model.model.state_dict()
    name = next(iter(concept.delta))
    kept = weights.pop(f"diffusion_model.{name}.weight")
    with pytest.raises(BaseMismatch, match=f"no place for 1 of its 15 parts, lora_unet_{name[:4]}"):
        nodes["ConceptkitLoader"]().load(comfy.model, comfy.clip, "my_dog", 1.0)
    weights[f"diffusion_model.{name}.weight"] = kept[:, :-1]
    with pytest.raises(BaseMismatch, match="load one of that family and shape"):
        nodes["ConceptkitLoader"]().load(comfy.model, comfy.clip, "my_dog", 1.0)
    weights[f"diffusion_model.{name}.weight"] = kept
    comfy.clip.tokenizer.clip_g = SimpleNamespace(embedding_key="clip_g", embedding_size=1280)
    with pytest.raises(BaseMismatch, match="<my_dog> for one"):
        nodes["ConceptkitLoader"]().load(comfy.model, comfy.clip, "my_dog", 1.0)
    assert not comfy.patched and not comfy.folder.exists()


def loaded(nodes):
    kind = sys.modules[nodes["ConceptkitLoader"].__module__].Concepts
    return kind({"my_dog": "<my_dog> dog", "ink": "<ink>"}, {"<my_dog>": "conceptkit/my_dog-1", "<ink>": "i"})


def test_a_prompt_has_names_and_regions(nodes):
    node = nodes["ConceptkitPrompt"]()
    found, text = node.encode(Clip(), loaded(nodes), "my_dog in the snow", "my_dog=left\n")
    assert text == "embedding:conceptkit/my_dog-1 dog in the snow"
    assert found[0] == [f"<{text}>", {"pooled_output": "pooled"}]
    assert found[1][0] == "<embedding:conceptkit/my_dog-1 dog>"
    assert found[1][1]["area"] == ("percentage", 1.0, 0.5, 0.0, 0.0)
    for line, sentence in (
        ("my_cat=left", "none of the concepts"),
        ("my_dog=0,0,2,1", "no part"),
        ("my_dog=x", "no region"),
        ("my_dog=left\nmy_dog=right", "a region already"),
    ):
        with pytest.raises(BadRegion, match=sentence):
            node.encode(Clip(), loaded(nodes), "my_dog", line)


@pytest.mark.parametrize(
    "prompt",
    [
        "a house, ink.",
        "my_dog,ink",
        "(ink), snow",
        "a tree\nink's",
        "two inks",
        "<ink>;",
        '"ink"',
    ],
)
def test_punctuation_hides_no_embedding(nodes, prompt):
    _, text = nodes["ConceptkitPrompt"]().encode(Clip(), loaded(nodes), prompt)
    known = loaded(nodes).files.values()
    found = [name for part in re.split(r"[()]", text) for name in embeddings(part)]
    assert found and set(found) <= set(known) and text.count("embedding:") == len(found)


def test_a_noun_that_is_there_is_not_said_twice(nodes):
    _, text = nodes["ConceptkitPrompt"]().encode(Clip(), loaded(nodes), "my_dog dog, <my_dog> dog")
    assert text == "embedding:conceptkit/my_dog-1 dog, embedding:conceptkit/my_dog-1 dog"


def test_without_conceptkit_the_node_says_what_to_install(nodes, monkeypatch):
    monkeypatch.setitem(sys.modules, "conceptkit", None)
    with pytest.raises(RuntimeError, match="has no conceptkit; install conceptkit there"):
        nodes["ConceptkitLoader"]().load("model", "clip", "my_dog", 1.0)


def test_what_no_lora_can_be_is_refused(nodes, comfy, concept):
    with pytest.raises(ConceptError, match="write names"):
        nodes["ConceptkitLoader"]().load(comfy.model, comfy.clip, " ", 1.0)
    before = nodes["ConceptkitLoader"].IS_CHANGED("my_dog", strength=1.0)
    assert len(before) == 64 and not comfy.patched


def test_the_workflow_uses_the_nodes_as_they_are(nodes):
    flow = json.loads(Path(ROOT, "examples", "comfyui_workflow.json").read_text())
    by_id = {node["id"]: node for node in flow["nodes"]}
    for node in flow["nodes"]:
        if kind := nodes.get(node["type"]):
            asked = kind.INPUT_TYPES()
            fields = {**asked["required"], **asked.get("optional", {})}
            sockets = {name: told[0] for name, told in fields.items() if told[0] not in ("STRING", "FLOAT")}
            assert {one["name"]: one["type"] for one in node["inputs"]} == sockets
            assert len(node["widgets_values"]) == len(fields) - len(sockets)
            assert tuple(one["type"] for one in node["outputs"]) == kind.RETURN_TYPES
    for _, source, out, target, into, kind in flow["links"]:
        assert by_id[source]["outputs"][out]["type"] == kind == by_id[target]["inputs"][into]["type"]
    loader = next(node["id"] for node in flow["nodes"] if node["type"] == "ConceptkitLoader")
    encoders = {source for _, source, _, _, _, kind in flow["links"] if kind == "CLIP"}
    readers = {link[1] for link in flow["links"] if link[5] == "CLIP" and link[3] != loader}
    assert readers == {loader} < encoders  # the negative prompt, too, is read with the concepts
