"""The nodes of ComfyUI, against stand-ins for its modules that apply a LoRA as its loading code does."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from conceptkit.errors import BadRegion, ConceptError
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
    """ComfyUI in three functions; what it was asked for is in `.patched`."""
    seen = SimpleNamespace(patched=[], folder=tmp_path / "embeddings")

    def load_lora_for_models(model, clip, lora, strength_model, strength_clip):
        seen.patched.append((lora, strength_model, strength_clip))
        return f"{model}+", f"{clip}+"

    package, inner = ModuleType("comfy"), ModuleType("comfy.sd")
    package.sd, inner.load_lora_for_models = inner, load_lora_for_models
    folders = ModuleType("folder_paths")
    folders.get_folder_paths = lambda kind: [str(seen.folder)]
    for name, module in (("comfy", package), ("comfy.sd", inner), ("folder_paths", folders)):
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
    model, clip, words = nodes["ConceptkitLoader"]().load("model", "clip", "my_dog", 0.5)
    assert (model, clip) == ("model+", "clip+")
    ((lora, *strengths),) = comfy.patched
    assert strengths == [0.5, 0.5]
    for name, factors in concept.delta.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        up, down = lora[f"{key}.lora_up.weight"].float(), lora[f"{key}.lora_down.weight"].float()
        scale = float(lora[f"{key}.alpha"]) / len(down)
        assert torch.allclose(scale * up @ down, factors.dense(), atol=1e-3)
    assert words == {"my_dog": "embedding:conceptkit/my_dog dog"}
    rows = load_file(comfy.folder / "conceptkit" / "my_dog.safetensors")["emb_params"]
    assert torch.allclose(rows.float(), concept.tokens["<my_dog>"][0], atol=1e-3)


def test_a_prompt_has_names_and_regions(nodes):
    words = {"my_dog": "embedding:conceptkit/my_dog dog"}
    node = nodes["ConceptkitPrompt"]()
    found, text = node.encode(Clip(), words, "my_dog in the snow", "my_dog=left\n")
    assert text == "embedding:conceptkit/my_dog dog in the snow"
    assert found[0] == [f"<{text}>", {"pooled_output": "pooled"}]
    assert found[1][1]["area"] == ("percentage", 1.0, 0.5, 0.0, 0.0)
    for line, sentence in (
        ("my_cat=left", "none of the concepts"),
        ("my_dog=0,0,2,1", "no part"),
        ("my_dog=x", "no region"),
    ):
        with pytest.raises(BadRegion, match=sentence):
            node.encode(Clip(), words, "my_dog", line)


def test_what_no_lora_can_be_is_refused(nodes, comfy, concept):
    with pytest.raises(ConceptError, match="write names"):
        nodes["ConceptkitLoader"]().load("model", "clip", " ", 1.0)
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
