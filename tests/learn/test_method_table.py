"""Methods are rows of a table, and another package adds one in a file of its own."""

import ast
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner

from conceptkit import extension_table
from conceptkit.cli.main import main
from conceptkit.concepts.concept import read
from conceptkit.errors import BadRecipe
from conceptkit.learn.config import DEFAULT_CONFIGS, config_for
from conceptkit.learn.methods.table import BUILT_IN, GROUP, METHODS, adapter_of, find_method
from conceptkit.registry.store import Registry
from conceptkit.workflows.add_settings import AddSettings
from tests import tiny
from tests.learning import TINY

PLUGIN = "tests.plugins.values_only"
LEARN = Path(find_method.__code__.co_filename).parents[1]


@pytest.fixture
def plugin(monkeypatch):
    """A package is installed that names a method; it is imported when it is asked for."""
    point = EntryPoint("values-only", PLUGIN, GROUP)
    monkeypatch.setattr(METHODS, "_rows", {m.name: m for m in METHODS.own()})
    monkeypatch.setattr(METHODS, "_waiting", None)
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    monkeypatch.setattr(extension_table, "entry_points", lambda *, group: [point] if group == GROUP else [])
    yield
    sys.modules.pop(PLUGIN, None)


@pytest.fixture
def weights(tmp_path):
    return tiny.save(tiny.pico_sd(), tmp_path / "pico")


def test_names_are_known_before_anything_is_loaded(plugin):
    assert [*METHODS.names()] == [*BUILT_IN, "values-only"]
    assert PLUGIN not in sys.modules
    assert "values-only" in CliRunner().invoke(main, ["add", "--help"]).output and PLUGIN not in sys.modules
    assert METHODS["custom"].adapter.name == "keyed" and PLUGIN not in sys.modules


def test_another_packages_method_learns_from_the_command_line(plugin, folder, weights, tmp_path):
    words = [
        "add",
        "my_dog",
        str(folder),
        "--class",
        "dog",
        "--method",
        "values-only",
        "--base",
        str(weights),
    ]
    few = {"max_train_steps": 2, "train_batch_size": 2, "num_augmented_views": 2, "prior_loss_weight": 0}
    more = [f"--set={name}={value}" for name, value in {**few, "blocks": 2}.items()]
    result = CliRunner().invoke(main, [*words, *more, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    with Registry() as registry:
        concept = read(registry, "my_dog")
    assert (concept.recipe["method"], concept.recipe["blocks"]) == ("values-only", 2)
    assert concept.delta and all("up_blocks" in n and n.endswith("attn2.to_v") for n in concept.delta)
    assert any(factors.first.any() for factors in concept.delta.values()) and len(concept.rows)
    result = CliRunner().invoke(
        main, [*words[:-2], "--base", str(weights), "--new-version", "--set", "blocks=0"]
    )
    assert result.exit_code == 2 and "blocks = 0 leaves nothing to learn" in result.stderr


def test_its_adapter_and_its_recipes_are_found(plugin):
    assert config_for("values-only").rank == 2
    assert find_method("values-only").config("storybook").rank == 4
    assert find_method("values-only").config("another") == config_for("values-only")
    other = config_for("dreambooth", adapter="values")
    assert (other.adapter, other.rank) == ("values", 2) and adapter_of(other).name == "values"
    assert "values-only" in DEFAULT_CONFIGS and "values-only" in list(DEFAULT_CONFIGS)


def test_unknown_methods_and_adapters_are_one_sentence(plugin):
    with pytest.raises(BadRecipe, match="no method 'magic'; choose one of custom, .*, vico, values-only"):
        config_for("magic")
    with pytest.raises(
        BadRecipe, match="no adapter 'loha'; choose one of keyed, kv, lora, full, image, values"
    ):
        config_for(adapter="loha")


def test_a_default_can_be_set_and_taken_back():
    own = METHODS["vico"].config()
    DEFAULT_CONFIGS["vico"] = TINY
    assert config_for("vico") is TINY
    del DEFAULT_CONFIGS["vico"]
    assert config_for("vico") == own


def test_nothing_beside_the_methods_asks_which_adapter_it_is():
    """A comparison with an adapter's name is a branch that another package cannot add to."""
    for file in sorted(LEARN.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                text = ast.unparse(node)
                assert "adapter == '" not in text and "adapter != '" not in text, f"{file.name}: {text}"


def test_a_method_may_have_another_recipe_for_a_family_of_bases(monkeypatch):
    plain = METHODS["dreambooth"]
    slow = replace(plain.config(), learning_rate=1e-4)
    both = replace(plain, configs={"": plain.config(), "storybook": slow})
    monkeypatch.setitem(METHODS._rows, "dreambooth", both)
    monkeypatch.delitem(DEFAULT_CONFIGS._set, "dreambooth", raising=False)
    assert config_for("dreambooth", family="storybook") == slow
    assert config_for("dreambooth") == config_for("dreambooth", family="sdxl") == plain.config()
    assert AddSettings(method="dreambooth").recipe() == slow
    assert AddSettings(method="dreambooth", base="someone/model").recipe() == plain.config()
