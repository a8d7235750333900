"""`add --dry-run`: what would be done, from where each number comes, and nothing done."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from conceptkit.base import families, pipeline
from conceptkit.cli.main import main
from conceptkit.errors import BadRecipe
from conceptkit.learn import costs, memory
from conceptkit.learn.config import config_for
from conceptkit.learn.memory import learned_numbers
from conceptkit.workflows.add_settings import AddSettings
from conceptkit.workflows.plan import plan
from tests import tiny
from tests.commands import run


@pytest.fixture(scope="module")
def pico():
    return pipeline.of(tiny.pico_sd(), "pico")


@pytest.fixture
def folder(tmp_path):
    for k in range(7):
        pixels = np.random.default_rng(k).integers(0, 255, (36, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    return tmp_path


def test_a_plan_names_the_source_of_each_number(pico, folder):
    found = plan(
        "my_dog", folder, class_noun="dog", base=pico, method="dreambooth", changes={"lr": 2e-4}, rank=8
    )
    lines = {line.what: line for line in found.lines}
    assert lines["learning_rate"].value == 2e-4 and lines["learning_rate"].source == "given"
    assert lines["rank"].value == 8 and lines["rank"].source == "given"
    assert lines["max_train_steps"].value == 700 and "7 photos" in lines["max_train_steps"].source
    assert lines["max_grad_norm"].source == "diffusers, examples/dreambooth/README.md"
    assert lines["family"].value == "stable-diffusion" and lines["pixels"].value == 16
    assert lines["class pictures"].value == 0 and "token_learning_rate" not in lines
    assert "GiB" in str(lines["memory, about"].value) and "lr" in found.notices[0]


def test_class_pictures_and_a_word_alone_are_planned(pico, folder):
    full = {
        line.what: line.value
        for line in plan("x", folder, class_noun="dog", base=pico, method="dreambooth-full").lines
    }
    assert (
        full["class pictures"] == 200 and full["full_learning_rate"] == 5e-6 and "learning_rate" not in full
    )
    word = plan("x", folder, class_noun="dog", base=pico, method="textual-inversion")
    values = {line.what: line.value for line in word.lines}
    assert values["token_train_steps"] == 3000 and "max_train_steps" not in values
    assert values["numbers that learn"] == 32


def test_steps_follow_the_photos_unless_they_are_asked_for(pico):
    def steps(**options):
        return AddSettings(base=pico, method="dreambooth", **options).recipe(12).max_train_steps

    assert steps() == 1200 and steps(steps=40) == 40 and steps(changes={"max_train_steps": 500}) == 500
    assert AddSettings(method="dreambooth").recipe(12) == config_for("dreambooth"), (
        "the storybook's are tuned"
    )


def test_what_learns_is_counted(pico):
    recipe = replace(config_for("dreambooth", family="stable-diffusion"), rank=2)
    maps = [m for n, m in pico.unet.named_modules() if n.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    assert learned_numbers(pico, recipe) == 32 + sum(2 * sum(m.weight.shape) for m in maps)


def test_a_plan_is_refused_for_what_learning_is(pico, folder):
    with pytest.raises(BadRecipe, match="Rank 99"):
        plan("x", folder, class_noun="dog", base=pico, method="dreambooth", rank=99)


def test_dry_run_prints_a_table_or_json_and_stores_nothing(folder):
    asked = ["add", "my_dog", str(folder), "--class", "dog", "--dry-run"]
    assert "tuned on the storybook" in run(*asked)
    told = json.loads(run(*asked, "--json"))
    assert {"what": "photos", "value": 7, "source": "counted"} in told["plan"]
    assert "my_dog" not in run("list")
    refused = CliRunner().invoke(main, ["add", "my_dog", str(folder), "--class", "dog", "--json"])
    assert refused.exit_code and "--json is for --dry-run" in refused.output


def test_a_base_is_known_by_what_it_is_and_not_by_its_name(folder, tmp_path_factory):
    """A copy of the storybook under another name has the numbers that were tuned on it."""
    copy = shutil.copytree(
        families.FAMILIES["storybook"].weights, tmp_path_factory.mktemp("base") / "renamed"
    )
    found = {line.what: line for line in plan("my_dog", folder, class_noun="dog", base=str(copy)).lines}
    assert found["family"].value == "storybook" and found["learning_rate"].value == 0.02
    assert found["learning_rate"].source == "tuned on the storybook" and found["base"].source == "given"


def test_a_plan_and_the_check_before_learning_count_memory_alike(pico, folder):
    recipe = replace(config_for("custom", family="stable-diffusion"), gated_lora_rank=2)
    found = costs.costs_of(pico, recipe, 0)
    assert found.memory == memory.needed(pico, recipe, False)
    assert found.memory.learning == found.numbers * 16, "itself, its gradient, and two moments of AdamW's"
    lines = {
        line.what: line for line in plan("my_dog", folder, class_noun="dog", base=pico, method="custom").lines
    }
    assert "activations" in lines["memory, about"].source or "encoding" in lines["memory, about"].source


def test_other_programs_do_not_make_learning_look_longer(pico, monkeypatch):
    """A clock that runs fast beside the processor's own is that of a busy machine."""
    recipe = config_for("custom", family="stable-diffusion")
    plain = time.perf_counter
    monkeypatch.setattr(costs.time, "perf_counter", lambda: 1000 * plain())
    begun = time.process_time()
    found = costs.one_pass(pico, recipe)
    assert 0 < found <= time.process_time() - begun
