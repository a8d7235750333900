"""What must fail fails before anything is drawn, in one sentence that names the value."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from conceptkit.base import pipeline as bases
from conceptkit.errors import BadBase, BadRecipe, ConceptError
from conceptkit.learn import latent_dataset, prior_preservation
from conceptkit.learn.config import config_for
from tests import tiny
from tests.learning import TINY, method, outcome, teach


@pytest.fixture
def at_rest(monkeypatch):
    """Nothing may be drawn or encoded."""
    for module, name in ((prior_preservation, "_draw"), (latent_dataset, "encode")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("work was begun"))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"train_batch_size": 0}, "train_batch_size = 0"),
        ({"num_augmented_views": 0}, "num_augmented_views = 0"),
        ({"prior_batch_size": -1}, "prior_batch_size = -1"),
        ({"num_class_images": -3}, "num_class_images = -3"),
        ({"prior_loss_weight": -1.0}, "prior_loss_weight = -1.0"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0"),
        ({"token_learning_rate": float("nan")}, "token_learning_rate = nan"),
        ({"caption_preservation_weight": float("inf")}, "caption_preservation_weight = inf"),
        ({"rank": 17}, "Rank 17 is larger than down_blocks.*which has 16"),
        ({"adapter": "magic"}, "no adapter 'magic'"),
        ({"adapter": "lora", "rank": 0}, "LoRA of rank 0"),
        ({"adapter": "full"}, "rank 2 means nothing"),
        ({"adapter": "kv", "lock_keys": True}, "lock_keys"),
        ({"adapter": "kv", "class_noun_rows": 2}, "class_noun_rows = 2 is about rows of a keyed delta"),
        ({"rank": 0, "class_noun_rows": 1}, "class_noun_rows = 1 is about rows"),
        (
            {"adapter": "lora", "key_learning_rate": 1e-3},
            "key_learning_rate = 0.001 is about keys of a keyed delta",
        ),
        ({"key_learning_rate": -1.0}, "key_learning_rate = -1.0"),
        ({"max_timestep_fraction": 0.0}, "max_timestep_fraction = 0 is no share of the noise levels"),
        ({"max_timestep_fraction": 1.5}, "max_timestep_fraction = 1.5 is no share"),
        ({"max_timestep_fraction": float("nan")}, "max_timestep_fraction = nan"),
        ({"gated_lora_rank": -1}, "gated_lora_rank = -1"),
        (
            {"gated_lora_rank": 2, "gated_lora_learning_rate": 0.0},
            "gated_lora_learning_rate = 0.0 learns nothing",
        ),
        ({"gated_lora_rank": 17}, "Rank 17 is larger than down_blocks.*which has 16"),
        ({"gated_lora_rank": 2, "rank": 17}, "Rank 17 is larger than down_blocks.*attn2.to_k, which has 16"),
        (
            {"target_modules": "attn"},
            "target_modules = attn is about a LoRA or a kv delta, and the adapter keyed has",
        ),
        ({"adapter": "full", "rank": 0, "target_modules": "cross"}, "the adapter full has its own maps; use"),
        (
            {"adapter": "lora", "gated_lora_rank": 2},
            "gated_lora_rank = 2 is what learns beside a keyed delta",
        ),
        ({"rank": 0, "gated_lora_rank": 2}, "gated_lora_rank = 2 is what learns beside a keyed delta"),
        (
            {"token_train_steps": 0, "sude_weight": 1.0, "sude_prompts": "states"},
            "sude_prompts = states asks for states while a word learns, and here none does",
        ),
        ({"gradient_accumulation_steps": 3}, "batch of 2 has no 3 parts"),
        ({"early_stopping_patience": 2}, "early_stopping_patience = 2"),
        ({"class_image_steps": 0}, "class_image_steps = 0"),
        ({"max_train_steps": 0, "adapter": "lora"}, "no delta, so the adapter lora means nothing"),
        ({"num_vectors": 70}, "70 vectors and the class 'dog' leave no room"),
    ],
)
def test_numbers_that_make_no_sense(pico, shown, at_rest, values, named):
    with pytest.raises(BadRecipe, match=named) as error:
        teach(pico, shown, replace(TINY, **values))
    assert "\n" not in str(error.value)


def test_a_lora_on_the_maps_is_told_before_any_work(shown, at_rest):
    pipe = tiny.pico_sd()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"]), "style")
    with pytest.raises(ConceptError, match="attn2.to_k already carries a LoRA"):
        teach(bases.of(pipe, "pico"), shown)


def test_maps_that_a_fusion_has_replaced_are_told_before_any_work(shown, at_rest):
    pipe = tiny.pico_sd()
    pipe.fuse_qkv_projections()
    with pytest.raises(ConceptError, match="in the place of .*attn2.to_k, which learns; call unfuse"):
        teach(bases.of(pipe, "pico"), shown)


def test_layers_that_are_kept_in_less_precision_are_told_before_any_work(shown, at_rest):
    pipe = tiny.pico_sd()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    base = bases.of(pipe, "pico")
    assert base.dtype == torch.float32
    with pytest.raises(BadBase, match="pico keeps .* in less precision.*enable_layerwise_casting"):
        teach(base, shown)


def test_a_base_that_predicts_something_else(shown, at_rest):
    with pytest.raises(BadBase, match="'magic'"):
        teach(bases.of(tiny.pico_sd(prediction="magic"), "pico"), shown)


def test_one_photo_without_a_class_has_nothing_to_hold_on_to(pico, shown, at_rest):
    one = replace(shown, pictures=shown.pictures[:1], names=shown.names[:1])
    with pytest.raises(BadRecipe, match="One photo of my_dog and no class noun"):
        teach(pico, one, noun=None)
    with pytest.raises(BadRecipe, match="SuDe draws my_dog"):
        teach(pico, shown, replace(TINY, sude_weight=1.0), noun=None)


@pytest.mark.parametrize("changes", [{"sude_weight": 1.0}, {"lock_keys": True}])
def test_what_needs_a_class_is_left_out_for_a_style(pico, shown, at_rest, changes):
    with pytest.raises(BadRecipe, match="leave (--sude|it) out"):
        outcome(pico, shown, replace(TINY, class_noun_rows=0, **changes), noun=None, kind="style")


def test_a_style_with_a_class(pico, shown, at_rest):
    with pytest.raises(BadRecipe, match="style my_dog was given the class 'dog'"):
        outcome(pico, shown, kind="style")


@pytest.mark.parametrize("noun", ["coffee cup", "hippopotamus"])
def test_a_class_of_several_tokens_works(pico, shown, noun):
    concept = teach(pico, shown, method("dreambooth"), noun=noun)
    assert concept.words == {"my_dog": f"<my_dog> {noun}"}
    assert concept.rows is None, "its text encoder learns, and a merge reads it as the base does"
    still = teach(pico, shown, method("dreambooth", text_encoder_rank=0), noun=noun)
    assert still.words == concept.words and still.rows is not None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"magic": 1}, "no field 'magic'; choose one of token_init_noise"),
        ({"method": "x"}, "no field 'method'"),
        ({"train_batch_size": "many"}, "train_batch_size = 'many' makes no sense; give a whole number"),
        ({"train_batch_size": "2.5"}, "train_batch_size = '2.5'"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast' makes no sense; give a number"),
        ({"detach_bos": "maybe"}, "detach_bos = 'maybe' makes no sense; give yes or no"),
        (
            {"token_init": "here"},
            "token_init = 'here' is unknown; choose one of aside, described, noun, rare",
        ),
    ],
)
def test_fields_that_cannot_be_set(changes, named):
    with pytest.raises(BadRecipe, match=named):
        config_for(changes=changes)


def test_fields_are_set_from_texts():
    recipe = config_for(
        "dreambooth",
        changes={"learning_rate": "1e-4", "train_batch_size": "4", "detach_bos": "yes", "token_init": "noun"},
    )
    assert (recipe.learning_rate, recipe.train_batch_size, recipe.detach_bos, recipe.token_init) == (
        1e-4,
        4,
        True,
        "noun",
    )
    with pytest.raises(BadRecipe, match="learns a word and no delta, so rank 4"):
        config_for("textual-inversion", rank=4)
    assert config_for("textual-inversion", steps=7).token_train_steps == 7
    assert config_for("dreambooth", steps=7).max_train_steps == 7


def test_what_a_recipe_leaves_off_is_left_out():
    assert (
        "sude_weight" not in TINY.to_json() and replace(TINY, sude_weight=1.0).to_json()["sude_weight"] == 1.0
    )
    assert set(TINY.to_json()) <= {field for field in vars(TINY)}
