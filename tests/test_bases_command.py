"""`conceptkit bases`: what the table says is so, and it is read without torch."""

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from conceptkit.base import pipeline
from conceptkit.base.added_tokens import add_tokens
from conceptkit.base.architectures import MODULES
from conceptkit.base.families import FAMILIES, family_of_pipeline
from conceptkit.cli.main import main
from conceptkit.errors import BadBase, ConceptError
from tests import language_model_tiny as made
from tests import projected_tiny, tiny


def test_every_known_denoiser_has_a_family_and_every_family_a_known_denoiser():
    rows = [row for row in FAMILIES.values() if row.weights is None]
    assert {row.denoiser for row in rows} == set(MODULES)
    assert all(row.bases and row.parameters and row.pixels for row in rows)


def test_a_pipeline_is_of_the_closest_row():
    of = {
        ("StableDiffusionPipeline", "UNet2DConditionModel"): "stable-diffusion",
        ("StableDiffusionXLPipeline", "UNet2DConditionModel"): "sdxl",
        ("FluxPipeline", "FluxTransformer2DModel"): "flux",
        ("Flux2KleinPipeline", "Flux2Transformer2DModel"): "flux2",
        ("KolorsPipeline", "UNet2DConditionModel"): "kolors",
        ("IFPipeline", "UNet2DConditionModel"): "if",
        ("HunyuanDiTPipeline", "HunyuanDiT2DModel"): "hunyuan-dit",
    }
    for names, family in of.items():
        assert family_of_pipeline(*names).name == family
    assert family_of_pipeline("WanPipeline", "WanTransformer3DModel") is None


def test_the_command_lists_what_works():
    shown = CliRunner().invoke(main, ["bases"])
    assert shown.exit_code == 0 and all(name in shown.output for name in FAMILIES)
    told = json.loads(CliRunner().invoke(main, ["bases", "--json"]).output)
    by_name = {row["name"]: row for row in told}
    assert "vico" in by_name["sdxl"]["methods"] and "vico" not in by_name["flux"]["methods"]
    assert all(row["regions"] for row in by_name.values())
    assert by_name["sdxl"]["auto_regions"] and not by_name["flux"]["auto_regions"]
    assert not by_name["if"]["auto_regions"] and "vico" not in by_name["if"]["methods"]


def test_the_table_is_read_without_torch():
    code = "import sys; from conceptkit.cli.main import main; main(['bases'], standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_stages_of_deepfloyd_if_that_enlarge_pictures_are_refused():
    pipe = projected_tiny.pico_if()
    pipe.unet.register_to_config(class_embed_type="timestep")
    with pytest.raises(BadBase, match="use the pipeline of stage I, IFPipeline"):
        pipeline.of(pipe)


def test_an_unknown_denoiser_is_named_with_the_page_that_tells_how_to_add_it():
    pipe = tiny.pico_sd()
    other = type("NewTransformer2DModel", (nn.Module,), {})()
    pipe.unet = None
    pipe.transformer = other
    with pytest.raises(BadBase, match=r"NewTransformer2DModel.*add-a-base"):
        pipeline.of(pipe)


def test_a_name_in_capitals_is_refused_where_prompts_are_read_in_lower_case():
    pipe = made.pico_sana()
    with pytest.raises(ConceptError, match="lower case"), add_tokens(pipe, {"<Rex>": (torch.zeros(1, 32),)}):
        pass


def test_gemmas_table_scales_new_rows_as_its_own():
    pipe = made.pico_sana()
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    dog = tokenizer("dog", add_special_tokens=False).input_ids
    row = encoder.get_input_embeddings().weight[dog].detach().clone()
    with add_tokens(pipe, {"<x>": (row,)}):
        new = tokenizer.convert_tokens_to_ids("<x>")
        known, learned = encoder.get_input_embeddings()(torch.tensor([dog[0], new]))
    assert torch.equal(known, learned) and known.norm() > 2 * row.norm()
