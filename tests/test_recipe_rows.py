"""Published recipes are what their sources say, and no base of others gets the storybook's rates."""

import pytest

from conceptkit.errors import BadRecipe
from conceptkit.learn import config_checks, recipes
from conceptkit.learn.config import config_for
from conceptkit.learn.methods.table import METHODS, adapter_of
from conceptkit.learn.train_config import RATES
from conceptkit.learn.trainable_delta import init_factors

LORA, TOKEN, FULL = "learning_rate", "token_learning_rate", "full_learning_rate"
GATED = "gated_lora_learning_rate"
PRODIGY = {LORA: 1.0, TOKEN: 1.0}
PUBLISHED = {
    # (method, family): rates that the source's script takes, rank, steps, pictures in a step
    ("dreambooth", "stable-diffusion"): ({LORA: 1e-4}, 4, 500, 1),
    ("dreambooth", "sdxl"): ({LORA: 1e-4}, 4, 500, 4),
    ("dreambooth", "kolors"): ({LORA: 1e-4}, 4, 500, 4),  # SDXL's
    ("dreambooth", "if"): ({LORA: 5e-6 * 4}, 4, 1200, 4),
    ("dreambooth", "sd3"): ({LORA: 4e-4}, 4, 500, 4),
    ("dreambooth", "flux"): ({LORA: 1e-4}, 4, 500, 4),
    ("dreambooth", "flux2"): ({LORA: 1e-4}, 4, 500, 4),
    ("dreambooth", "qwen-image"): ({LORA: 2e-4}, 4, 500, 4),
    ("dreambooth", "z-image"): ({LORA: 1e-4}, 4, 500, 4),
    ("dreambooth", "sana"): ({LORA: 1e-4}, 4, 500, 4),
    ("dreambooth", "lumina2"): ({LORA: 1e-4}, 4, 500, 4),
    ("dreambooth", "chroma"): ({LORA: 1e-4}, 16, 2000, 1),
    ("dreambooth-full", "stable-diffusion"): ({FULL: 5e-6}, 0, 800, 1),
    ("textual-inversion", "stable-diffusion"): ({TOKEN: 5e-4 * 4}, 0, 3000, 4),
    ("textual-inversion", "sdxl"): ({TOKEN: 5e-4 * 4}, 0, 500, 4),
    ("custom-diffusion", "stable-diffusion"): ({FULL: 1e-5 * 4, TOKEN: 1e-5 * 4}, 0, 250, 2),
    ("vico", "stable-diffusion"): ({FULL: 1e-5, TOKEN: 5e-3}, 0, 400, 4),
    ("pivotal-tuning", "stable-diffusion"): (PRODIGY, 8, 1000, 3),  # SDXL's
    ("pivotal-tuning", "sdxl"): (PRODIGY, 8, 1000, 3),
    ("pivotal-tuning", "flux"): (PRODIGY, 8, 700, 1),
    # In units of Stable Diffusion's weights: of its tokens, and of the maps of its attention. The published
    # LoRA begins with rows of length sqrt(320) / 4 on the narrowest of them, ours with rows of length 1: a
    # step of so many times the rate moves these maps as far.
    ("custom", "stable-diffusion"): ({TOKEN: 2e-3 / 0.0145, GATED: 1e-4 / 0.025 * 320**0.5 / 4}, 3, 500, 4),
}
"""Read in the sources, not in the rows."""
OWN = {("custom", "stable-diffusion"): {LORA, "key_learning_rate"}}
"""Rates of keyed values, which no source has; benchmarks.update_sizes measures how far they move maps."""
BORROWED = [("dreambooth", "kolors"), ("pivotal-tuning", "stable-diffusion"), ("custom", "stable-diffusion")]
FAR = 3


def rates_of(recipe):
    """The rates at which something learns by this recipe."""
    used = {
        TOKEN: recipe.token_train_steps or recipe.train_token_jointly,
        LORA: recipe.max_train_steps and recipe.rank,
        FULL: recipe.max_train_steps and not recipe.rank,
        "key_learning_rate": recipe.key_learning_rate,
        "gated_lora_learning_rate": recipe.max_train_steps and recipe.gated_lora_rank,
        "text_encoder_lr": recipe.text_encoder_rank and recipe.text_encoder_lr,
    }
    assert set(used) == set(RATES)
    return {name: getattr(recipe, name) for name, learns in used.items() if learns}


def test_every_row_is_held_to_its_source():
    assert set(recipes.ROWS) == set(PUBLISHED)
    assert all(recipes.ROWS[key].why for key in BORROWED), "a row without a source says what it goes by"


@pytest.mark.parametrize("key", PUBLISHED, ids="-".join)
def test_no_rate_of_a_row_is_far_from_its_published_one(key):
    row = recipes.ROWS[key]
    rates, rank, steps, batch = PUBLISHED[key]
    assert row.source and row.config.method == key[0]
    found = rates_of(row.config)
    assert set(found) == set(rates) | OWN.get(key, set())
    for name, rate in rates.items():
        assert 1 / FAR <= found[name] / rate <= FAR, name
    assert row.config.rank == rank and row.config.train_batch_size == batch
    assert (row.config.max_train_steps or row.config.token_train_steps) == steps


@pytest.mark.parametrize("key", recipes.ROWS, ids="-".join)
def test_a_row_makes_sense(key):
    config = config_for(key[0], family=key[1])
    assert config == recipes.ROWS[key].config
    config_checks.check_numbers(config)
    config_checks._check_together(config, adapter_of(config))


@pytest.mark.parametrize("method", [method.name for method in METHODS.own()])
def test_every_family_has_a_recipe_and_none_but_the_storybook_the_tuned_one(method):
    tuned = config_for(method)
    assert tuned == config_for(method, family="storybook")
    for family in ("stable-diffusion", "sdxl", "pixart", "some-new-one"):
        found = config_for(method, family=family)
        assert found == recipes.row_of(method, family).config != tuned
    assert recipes.row_of(method, "storybook") is None


def test_another_adapter_has_the_rates_of_the_same_family():
    lora = config_for("custom", adapter="lora", family="sdxl")
    assert (lora.learning_rate, lora.optimizer, lora.init_lora_weights) == (1e-4, "adamw", "gaussian")
    assert lora.token_learning_rate < 0.01, "a rate in units of the base's tokens is none without"
    keyed = config_for("dreambooth", adapter="keyed", family="sdxl")
    assert keyed.relative_to_weights and keyed.token_learning_rate > 0.01
    assert (
        config_for("custom", adapter="lora").learning_rate == config_for("dreambooth").learning_rate == 3e-3
    )


def test_rates_go_with_the_optimizer():
    found = config_for("dreambooth", family="flux", changes={"optimizer": "prodigy"})
    assert found.learning_rate == found.token_learning_rate == 1.0
    half = config_for("dreambooth", family="flux", changes={"optimizer": "prodigy", "learning_rate": 0.5})
    assert half.learning_rate == 0.5
    with pytest.raises(BadRecipe, match="for prodigy, and adamw would learn at 1.0; give .*learning_rate"):
        config_for("pivotal-tuning", family="sdxl", changes={"optimizer": "adamw"})


def test_rates_go_with_their_units():
    with pytest.raises(BadRecipe, match="relative_to_weights = false gives .* other units; give .*too"):
        config_for("custom", family="sdxl", changes={"relative_to_weights": False})
    rates = dict.fromkeys(RATES, 1e-4)
    assert not config_for(
        "custom", family="sdxl", changes={"relative_to_weights": False, **rates}
    ).relative_to_weights


def test_steps_follow_the_number_of_photos():
    rule = recipes.ROWS["dreambooth", "stable-diffusion"].steps
    assert [rule.steps(n) for n in (1, 5, 12, 100)] == [500, 500, 1200, 2000]


def test_a_learning_rate_is_that_of_what_learns():
    """As `--learning-rate` is in the scripts of each method."""

    def given(method, **changes):
        return config_for(method, family="sdxl", changes={"learning_rate": 3e-6, **changes})

    full = given("dreambooth-full")
    assert full.full_learning_rate == 3e-6 != full.token_learning_rate
    assert given("textual-inversion").token_learning_rate == 3e-6
    both = given("custom-diffusion")
    assert both.full_learning_rate == both.token_learning_rate == 3e-6
    apart = given("custom-diffusion", token_learning_rate=1e-3)
    assert (apart.full_learning_rate, apart.token_learning_rate) == (3e-6, 1e-3)
    lora = given("dreambooth")
    assert (
        lora.learning_rate == 3e-6
        and lora.full_learning_rate == config_for("dreambooth", family="sdxl").full_learning_rate
    )


def test_the_default_on_other_bases_learns_what_its_lora_reads():
    """It begins with rows of length 1, which learn at this rate; gaussian ones hardly turn."""
    recipe = config_for("custom", family="stable-diffusion")
    assert recipe.init_lora_weights == "unit" and recipe.relative_to_weights
    for width in (320, 1280):
        first = init_factors("map", (width, width), recipe.gated_lora_rank, None, 0, recipe.init_lora_weights)
        moved = recipe.gated_lora_learning_rate * recipe.max_train_steps
        assert moved > 50 * float(first.down.square().mean().sqrt())
