"""Whole pipelines and checkpoints with concepts in their weights draw the same in plain diffusers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from conceptkit.base.pipeline import of
from conceptkit.errors import BaseMismatch, ConceptError
from conceptkit.formats import original_layout
from conceptkit.formats.dialects import export, left_out
from conceptkit.inference.attach import attach
from conceptkit.merging.compose import compose
from tests import warm_process
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, save, snapshot
from tests.transformers_tiny import pico_flux, pico_sd3

PROMPT, TYPED = "a photo of my_dog in the snow", "a photo of <my_dog> dog in the snow"
ELSEWHERE = """
import json, sys
import numpy as np
import torch
from pathlib import Path
import diffusers
from safetensors.torch import load_file

for job in json.loads(sys.argv[1]):
    if job["kind"]:
        kind = getattr(diffusers, job["kind"])
        pipe = kind.from_single_file(job["from"], config=job["config"], local_files_only=True)
        for file in Path(job["from"]).parent.glob("embeddings/*"):
            rows, token = load_file(file), f"<{file.stem}>"
            for key, end in (("emb_params", ""), ("clip_l", ""), ("clip_g", "_2")):
                if key in rows:
                    parts = {name: getattr(pipe, name + end) for name in ("text_encoder", "tokenizer")}
                    pipe.load_textual_inversion(rows[key], token, **parts)
    else:
        pipe = diffusers.DiffusionPipeline.from_pretrained(job["from"])
    if "size" in job:
        pipe.default_sample_size = job["size"]
    pipe.set_progress_bar_config(disable=True)
    options = {"output_type": "np", "guidance_scale": 2.0, "num_inference_steps": 2}
    image = pipe(job["prompt"], generator=torch.Generator().manual_seed(0), **options).images[0]
    np.save(job["picture"], image)
assert not [name for name in sys.modules if name.startswith("conceptkit")]
"""


def drawn_elsewhere(jobs, tmp_path):
    for number, job in enumerate(jobs):
        job["picture"] = str(tmp_path / f"{number}.npy")
    warm_process.run(ELSEWHERE, json.dumps(jobs), folder=tmp_path)
    return [torch.from_numpy(np.load(job["picture"])).permute(2, 0, 1) for job in jobs]


def pico_sd2():
    """Stable Diffusion 2 has OpenCLIP's activation, whose checkpoints have names of their own."""
    pipe = pico_sd()
    for module in pipe.text_encoder.modules():
        if hasattr(module, "activation_fn"):
            module.activation_fn = torch.nn.GELU()
    pipe.text_encoder.config.hidden_act = "gelu"
    return pipe


BUILD = {"sd": pico_sd, "sd2": pico_sd2, "sdxl": pico_sdxl, "sd3": pico_sd3, "flux": pico_flux}


@pytest.mark.parametrize(
    "names",
    [("sd", "flux"), pytest.param(("sd2", "sdxl", "sd3"), marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_whole_pipelines_draw_the_same_picture_without_conceptkit(names, tmp_path):
    jobs, expected = [], []
    for name in names:
        pipe = BUILD[name]()
        options = {} if name in ("sd3", "flux") else {"vectors": 2, "text_rank": 2}
        concept = pico_concept(pipe, **options)
        plain = draw(pipe, PROMPT)
        with attach(pipe, concept):
            expected.append(draw(pipe, PROMPT))
        assert (expected[-1] - plain).norm() > 5e-3 * plain.norm(), name
        before = snapshot(pipe)
        paths = export(concept, tmp_path / name, dialect="pipeline", base=of(pipe, "pico"))
        assert snapshot(pipe) == before
        assert tmp_path / name / "README.md" in paths
        jobs.append({"from": str(tmp_path / name), "kind": "", "prompt": TYPED})
        if name == "flux":
            jobs[-1]["size"] = 8
    for name, picture, drawn in zip(names, drawn_elsewhere(jobs, tmp_path), expected, strict=True):
        assert (picture - drawn).norm() <= 1e-4 * drawn.norm(), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "names", [("sd", "sdxl"), pytest.param(("sd2",), marks=pytest.mark.slow)], ids=" ".join
)
def test_checkpoints_draw_the_same_picture_without_conceptkit(names, tmp_path):
    jobs, expected = [], []
    for name in names:
        pipe = BUILD[name]()
        dog, gate = pico_concept(pipe, text_rank=2), pico_concept(pipe, "moongate", "gate", seed=3)
        merged = compose(dog, gate, base=of(pipe, "pico"), name="both").concept
        base = save(pipe, tmp_path / f"{name} base")
        with attach(pipe, merged, confine=False):
            expected.append(draw(pipe, "my_dog in front of a moongate"))
        before = snapshot(pipe)
        export(merged, tmp_path / name, dialect="checkpoint", base=of(pipe, "pico"))
        assert snapshot(pipe) == before
        file = tmp_path / name / "both.safetensors"
        typed = "<my_dog> dog in front of a <moongate> gate"
        kind = type(pipe).__name__
        jobs.append({"from": str(file), "kind": kind, "config": str(base), "prompt": typed})
        with safe_open(file, "pt") as opened:
            keys = set(opened.keys())
            assert json.loads(opened.metadata()["conceptkit"])["name"] == "both"
        known = "conditioner.embedders.1.model.text_projection"
        assert (known in keys) == (name == "sdxl")
        assert ("cond_stage_model.model.positional_embedding" in keys) == (name == "sd2")
        assert len(keys) == len(original_layout.checkpoint(pipe))
    for drawn, picture in zip(expected, drawn_elsewhere(jobs, tmp_path), strict=True):
        assert (picture - drawn).norm() <= 1e-4 * drawn.norm()


def test_what_acts_by_words_says_that_it_acts_always(tmp_path):
    pipe = pico_sd()
    concept = pico_concept(pipe)
    wide = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (torch.ones(32, 2), torch.ones(2, 32))}
    gated = replace(concept, delta=concept.delta | wide, recipe={**concept.recipe, "gated_lora_rank": 2})
    for dialect in ("pipeline", "checkpoint"):
        assert left_out(concept, dialect) == []
        assert "acts on every picture there" in left_out(gated, dialect)[0]
    export(gated, tmp_path, dialect="pipeline", base=of(pipe, "pico"))
    assert "acts on every picture" in (tmp_path / "README.md").read_text()


def test_what_cannot_be_folded_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    pipe = pico_sd()
    concept, before = pico_concept(pipe), snapshot(pipe)
    with pytest.raises(ConceptError, match="hold weights of the base; give export the base"):
        export(concept, tmp_path / "out", dialect="pipeline")
    with pytest.raises(BaseMismatch, match="learned on"):
        export(concept, tmp_path / "out", dialect="pipeline", base=of(pico_sdxl()))
    sd3 = pico_sd3()
    with pytest.raises(ConceptError, match="layout of a StableDiffusion3Pipeline's checkpoints is not known"):
        export(pico_concept(sd3), tmp_path / "out", dialect="checkpoint", base=of(sd3))
    pair = concept, pico_concept(pipe, "moongate", "gate", seed=3)
    routed = compose(*pair, base=of(pipe, "pico"), merge_method="routed")
    with pytest.raises(ConceptError, match="is routed, which no LoRA can be"):
        export(routed, tmp_path / "out", dialect="pipeline", base=of(pipe))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusionPipeline, "save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(concept, tmp_path / "out", dialect="pipeline", base=of(pipe))
    assert list(tmp_path.iterdir()) == []
    assert snapshot(pipe) == before
    export(concept, tmp_path / "out", dialect="pipeline", base=of(pipe))
    with pytest.raises(ConceptError, match="already holds files"):
        export(pair[1], tmp_path / "out", dialect="pipeline", base=of(pipe))
    export(concept, tmp_path / "out", dialect="pipeline", base=of(pipe), force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
