"""The program of what waits for a GPU is proven on the CPU, in miniature; so is that of update sizes."""

import json

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu, update_sizes


def run(command, *words: str) -> dict:
    result = CliRunner().invoke(command, [*words], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout.splitlines()[-1])


def test_parts_are_listed():
    told = CliRunner().invoke(gpu.main, ["--list"]).stdout.splitlines()
    assert [line.split()[0] for line in told] == list(gpu.PARTS)


def test_a_machine_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(gpu.main, [])
    assert result.exit_code == 0
    assert result.stdout == (
        "There is no CUDA device here; give --device cpu --size tiny to try the program without one.\n"
    )


DEAR = ("sd15", "sdxl", "compile", "4bit", "offload")


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=pytest.mark.slow if part in DEAR else ())
        for part in gpu.PARTS
        if part != "precision"
    ],
)
def test_parts_run_in_miniature(part):
    figures = run(gpu.main, "--part", part, "--device", "cpu", "--size", "tiny", "--steps", "3")
    found = figures["parts"][part]
    assert figures["holds"] is None and figures["trial"]
    if part in ("sd15", "sdxl", "flux"):
        assert found["ours"]["seconds_per_step"] > 0 and found["plain"]["seconds_per_step"] > 0
    if part == "4bit":
        assert found["as it is"]["learn"]["seconds_per_step"] > 0 and "refused" in found["4 bit"]
    if part == "swap":
        assert found["base_as_before"]
    if part == "scripts":
        assert "--examples" in found["left_out"]


def test_a_plain_loop_leaves_the_base_as_it_was():
    bench = gpu.Bench(torch.device("cpu"), "tiny", 2)
    base = bench.base()
    before = repr(base.unet), gpu.bases.fingerprint_of(base.pipe)
    gpu.plain_loop(base, 2, "fp32")
    assert (repr(base.unet), gpu.bases.fingerprint_of(base.pipe)) == before


def test_published_methods_move_maps_as_far_as_loops_written_apart():
    figures = run(
        update_sizes.main, "--tiny", "--steps", "4", "--method", "dreambooth", "--method", "custom-diffusion"
    )
    for method in ("dreambooth", "custom-diffusion"):
        assert figures["times_published"][method]["values"] == pytest.approx(1, abs=0.5)
        assert figures["rows"][method]["plain"] > 0
    assert figures["holds"] is None
