"""`conceptkit bases`: what the table says is so, and it is read without torch."""

import json
import subprocess
import sys

from click.testing import CliRunner

from conceptkit.base.architectures import MODULES
from conceptkit.base.families import FAMILIES, family_of_pipeline
from conceptkit.cli.main import main


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
    assert by_name["sdxl"]["regions"] and not by_name["flux"]["regions"]


def test_the_table_is_read_without_torch():
    code = "import sys; from conceptkit.cli.main import main; main(['bases'], standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
