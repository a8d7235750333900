"""Exported files draw the same picture in plain diffusers, where conceptkit was never imported."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from conceptkit.concepts.delta import Delta
from conceptkit.errors import ConceptError, NoEffect
from conceptkit.formats.dialects import export
from conceptkit.formats.diffusers import folded
from conceptkit.formats.peft import LORA, lora
from conceptkit.formats.textual_inversion import embedding
from conceptkit.inference.attach import attach
from tests import warm_process
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, save

PROMPT = "a photo of my_dog in the snow"
TYPED = "a photo of <my_dog> dog in the snow"
ELSEWHERE = """
import sys
import numpy as np
import torch

base, out, prompt, picture = sys.argv[1:]
code = open(f"{out}/README.md").read().split("```")[1].removeprefix("python")
code = code.replace("BASE", base).replace("FOLDER", out)
loading, _, _ = code.partition('pipe("')
exec(loading)
pipe.set_progress_bar_config(disable=True)
images = pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="np", num_inference_steps=2,
              guidance_scale=2.0).images
np.save(picture, images[0])
assert not [name for name in sys.modules if name.startswith("conceptkit")]
"""


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (pico_sd, {"rank": 2, "vectors": 2}),
        (pico_sd, {"rank": 0}),
        pytest.param(pico_sdxl, {"rank": 3}, marks=pytest.mark.slow),
        pytest.param(pico_sd, {"text_rank": 3}, marks=pytest.mark.slow),
        (pico_sdxl, {"text_rank": 1}),
    ],
    ids=["low-rank", "full", "sdxl", "text encoder too", "both text encoders of sdxl too"],
)
def test_the_same_picture_without_conceptkit(build, options, tmp_path):
    pipe = build()
    concept = pico_concept(pipe, **options)
    plain = draw(pipe, PROMPT)
    with attach(pipe, concept):
        expected = draw(pipe, PROMPT)
    paths = export(concept, tmp_path / "out")
    assert [path.name for path in paths] == [LORA, "my_dog.safetensors", "README.md"]
    save(pipe, tmp_path / "base")
    arguments = [tmp_path / "base", tmp_path / "out", TYPED, tmp_path / "picture.npy"]
    warm_process.run(ELSEWHERE, *arguments, folder=tmp_path)
    picture = torch.from_numpy(np.load(tmp_path / "picture.npy")).permute(2, 0, 1)
    assert torch.allclose(picture, expected, atol=1e-5)
    assert (picture - plain).abs().max() > 1e-3


@pytest.mark.parametrize("build", [pico_sd, pico_sdxl])
def test_a_lora_names_text_encoder_maps_as_files_do(build):
    """Whatever transformers calls them: with the `text_model` that its fifth version left out."""
    pipe = build()
    part = pico_concept(pipe, text_rank=2).delta.by_component()
    tensors = safetensors.torch.load(lora(pico_concept(pipe, text_rank=2)))
    for place in (name for name in part if name != "unet"):
        own = {name for name in tensors if name.startswith(f"{place}.")}
        assert len(own) == 2 * len(part[place])
        assert all(name.startswith(f"{place}.text_model.encoder.layers.") for name in own)


def test_the_lora_is_the_delta_at_one_rank(tmp_path):
    pipe = pico_sd()
    low, full = pico_concept(pipe, rank=2).delta, pico_concept(pipe, rank=0).delta
    names = list(low)
    delta = {names[0]: low[names[0]], names[1]: full[names[1]], names[5]: full[names[5]]}
    concept = pico_concept(pipe)
    object.__setattr__(concept, "delta", Delta(delta))
    export(concept, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / LORA)
    with safe_open(tmp_path / "out" / LORA, "pt") as file:
        metadata = file.metadata()
    adapter = json.loads(metadata["lora_adapter_metadata"])
    assert adapter["unet.r"] == adapter["unet.lora_alpha"] == 32
    assert adapter["unet.target_modules"] == sorted(delta)
    assert json.loads(metadata["conceptkit"])["recipe"] == {"method": "random", "seed": 0}
    assert len(tensors) == 6
    for name, factors in Delta(delta).items():
        up, down = (tensors[f"unet.{name}.lora_{side}.weight"] for side in "BA")
        assert up.shape[1] == down.shape[0] == 32
        assert torch.allclose(up @ down, factors.dense(), atol=1e-6)


def test_the_same_concept_gives_the_same_bytes():
    concept = pico_concept(pico_sd())
    (rows,) = concept.tokens.values()
    assert len({lora(concept) for _ in range(8)}) == 1
    assert len({embedding(concept, rows) for _ in range(8)}) == 1


def test_embeddings_have_the_keys_that_others_read(tmp_path):
    export(pico_concept(pico_sd(), vectors=2), tmp_path / "sd")
    (rows,) = load_file(tmp_path / "sd" / "my_dog.safetensors").items()
    assert rows[0] == "emb_params" and rows[1].shape == (2, 32)
    export(pico_concept(pico_sdxl()), tmp_path / "sdxl")
    both = load_file(tmp_path / "sdxl" / "my_dog.safetensors")
    assert {key: tuple(value.shape) for key, value in both.items()} == {"clip_l": (1, 32), "clip_g": (1, 48)}


def test_nothing_is_overwritten_and_nothing_is_left_half_written(tmp_path, monkeypatch):
    concept = pico_concept(pico_sd())
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("kept")
    with pytest.raises(ConceptError, match="README.md is never overwritten"):
        export(concept, out)
    assert [path.name for path in out.iterdir()] == ["README.md"]
    assert (out / "README.md").read_text() == "kept"
    export(concept, out, force=True)
    assert "my_dog" in (out / "README.md").read_text()
    with pytest.raises(NoEffect, match="neither a delta nor a token"):
        bare = pico_concept(pico_sd())
        object.__setattr__(bare, "delta", Delta())
        object.__setattr__(bare, "tokens", {})
        export(bare, tmp_path / "new")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export(concept, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "empty").mkdir()
    assert len(export(concept, tmp_path / "empty")) == 3


def test_tokens_leave_in_lower_case_because_readers_fold_the_case_of_prompts(tmp_path):
    concept = pico_concept(pico_sd(), "Rex")
    names = [path.name for path in export(concept, tmp_path / "one")]
    assert names == [LORA, "rex.safetensors", "README.md"]
    assert 'token="<rex>"' in (tmp_path / "one" / "README.md").read_text()
    twin = pico_concept(pico_sd(), "rex", seed=1)
    both = replace(concept, tokens={**concept.tokens, **twin.tokens}, words={**concept.words, **twin.words})
    found = folded(both)
    assert sorted(found.tokens) == ["<rex-2>", "<rex>"]
    assert found.words == {"Rex": "<rex> dog", "rex": "<rex-2> dog"}
    assert torch.equal(found.tokens["<rex-2>"][0], twin.tokens["<rex>"][0])
