"""Recipes in files, in the words of today and of earlier versions."""

import json

import pytest

from conceptkit.concepts.recipe_fields import OLD_FIELDS, current_fields, recipe_field
from conceptkit.errors import BadRecipe
from conceptkit.learn.checkpoints import CheckpointManager, CheckpointState, write
from conceptkit.learn.config import EARLY_STOP, config_for, old_name_notices
from conceptkit.learn.train_config import TrainConfig

# What `to_json` of a recipe gave before fields had the names of today.
STORED = {
    "method": "custom-diffusion",
    "aside": 2.2,
    "token_steps": 0,
    "token_lr": 0.001,
    "steps": 330,
    "lr": 0.002,
    "full_lr": 0.0004,
    "rank": 8,
    "batch": 4,
    "prior_batch_size": 2,
    "prior_weight": 1.0,
    "prior_size": 48,
    "prior_steps": 15,
    "prior_guidance": 3.0,
    "leak": 0.3,
    "views": 96,
    "adapter": "kv",
    "targets": "cross",
    "begin": "rare",
    "token_goes_on": True,
    "detach_bos": True,
    "until": 0.8,
}


def test_a_stored_recipe_of_an_earlier_version_is_the_one_of_today():
    assert TrainConfig.from_json(STORED) == config_for("custom-diffusion")
    more = {**STORED, "sude": 2.0, "sude_weight": "paper", "wide": 2, "joint": True}
    read = TrainConfig.from_json(more)
    assert (read.sude_weight, read.sude_timestep_weighting, read.gated_lora_rank) == (2.0, "paper", 2)
    assert TrainConfig.from_json(read.to_json()) == read, "the names of today are read as well"
    assert current_fields(more)["joint"] is True and recipe_field(more, "token_init") == "rare"


OLD_TEXTS = {"targets": "attn", "precision": "bf16", "optimiser": "adamw8bit", "begin": "rare"}
OLD_TEXTS |= dict.fromkeys(("token_goes_on", "compile", "checkpointing"), "yes")


@pytest.mark.parametrize("old", OLD_FIELDS)
def test_an_old_name_is_taken_under_the_new_one(old, tmp_path):
    value = "paper" if old == "sude_weight" else OLD_TEXTS.get(old, "7")
    if old == "scene":  # another than the default, which the tests of this folder exchange
        value = "no" if config_for().auto_caption else "yes"
    now, said = {OLD_FIELDS[old]: value}, f"The field {old} of a recipe is called {OLD_FIELDS[old]} now"
    assert config_for(changes={old: value}) == config_for(changes=now) != config_for()
    (notice,) = old_name_notices({old: value})
    assert notice.startswith(said) and not old_name_notices(now)
    (tmp_path / "recipe.toml").write_text(f'{old} = "{value}"\n')
    assert config_for(file=tmp_path / "recipe.toml") == config_for(changes=now)
    assert old_name_notices(None, tmp_path / "recipe.toml") == [notice]


def test_an_old_value_is_taken_under_its_name_of_today(tmp_path):
    """The adapter that learns every map was called unet, as no other denoiser had one."""
    (tmp_path / "recipe.toml").write_text('method = "dreambooth"\nadapter = "unet"\n')
    assert config_for(file=tmp_path / "recipe.toml") == config_for("dreambooth", adapter="full")
    (notice,) = old_name_notices(None, tmp_path / "recipe.toml")
    assert notice == "adapter = unet of a recipe is called full now; it was taken as that."
    assert recipe_field({"adapter": "unet"}, "adapter") == "full"
    assert TrainConfig.from_json({"method": "dreambooth-full", "adapter": "unet"}).adapter == "full"
    with pytest.raises(BadRecipe, match="^The adapter unet is called full now"):
        config_for("dreambooth", adapter="unet")


def test_a_field_is_given_once(tmp_path):
    both = {"lr": "0.1", "learning_rate": "0.2"}
    with pytest.raises(BadRecipe, match="^lr and learning_rate are one field.*; give learning_rate alone"):
        config_for(changes=both)
    (tmp_path / "recipe.toml").write_text("learning_rate = 0.2\nlr = 0.1\n")
    with pytest.raises(BadRecipe, match="recipe.toml: learning_rate and lr are one field"):
        config_for(file=tmp_path / "recipe.toml")


def test_no_field_of_today_is_an_old_name_of_another():
    today = set(TrainConfig("custom").__dict__)
    assert set(OLD_FIELDS.values()) <= today and today & set(OLD_FIELDS) == {"sude_weight"}


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path):
    about = {"name": "my_dog", "recipe": STORED, "prior_photos": {"dog": "1234"}}
    write(tmp_path / "old.safetensors", CheckpointState("delta", 3, {}), about, {}, {})
    now = {
        "name": "my_dog",
        "recipe": config_for("custom-diffusion").to_json(),
        "class_images": {"dog": "1234"},
    }
    keeper = CheckpointManager(tmp_path / "old.safetensors", now)
    keeper.resume()
    assert keeper.resumed.step == 3 and not keeper.notices


@pytest.fixture
def file(tmp_path):
    def write_toml(text: str):
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_toml


def test_a_recipe_in_a_file(file):
    path = file('method = "dreambooth"\nlearning_rate = 1\nrank = 2\ntorch_compile = true\n')
    recipe = config_for(file=path)
    assert (recipe.method, recipe.learning_rate, recipe.rank) == ("dreambooth", 1.0, 2)
    assert isinstance(recipe.learning_rate, float) and recipe.torch_compile is True
    assert recipe.train_batch_size == config_for("dreambooth").train_batch_size
    beside = config_for(
        "vico", rank=3, changes={"learning_rate": "0.5"}, file=file("rank = 2\nlearning_rate = 1")
    )
    assert (beside.method, beside.rank, beside.learning_rate) == ("vico", 3, 0.5), "options go before a file"
    assert config_for(file=file('adapter = "lora"\nrank = 5')).text_encoder_rank == 4, (
        "what suits the adapter"
    )
    assert config_for(steps=10, file=file("max_train_steps = 5\ntoken_train_steps = 5")).max_train_steps == 5


def test_a_whole_recipe_goes_through_a_file(file):
    for method in ("custom", "vico", "dreambooth"):
        fields = config_for(method).to_json()
        text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())
        assert config_for(file=file(text)) == config_for(method)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 3", "recipe.toml: A recipe has no field 'colour'"),
        ('rank = "many"', "recipe.toml: rank = 'many' makes no sense"),
        ("rank = [1]", "recipe.toml: rank is a table or a list"),
        ("method = 3", "recipe.toml: method = 3 is no name"),
        ('method = "magic"', "no method 'magic'"),
        ('adapter = "magic"', "no adapter 'magic'"),
        ("rank 3", "recipe.toml is no TOML"),
    ],
)
def test_mistakes_in_a_file_name_it(file, text, named):
    with pytest.raises(BadRecipe, match=named):
        config_for(file=file(text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadRecipe, match="none.toml cannot be read"):
        config_for(file=tmp_path / "none.toml")


def test_switches_are_fields():
    recipe = config_for(
        "dreambooth", adapter="kv", switches=("sude", "early_stopping"), changes={"validation_steps": 5}
    )
    assert recipe.sude_weight == 2.0 and recipe.validation_steps == 5
    assert recipe.early_stopping_patience == EARLY_STOP["early_stopping_patience"]
