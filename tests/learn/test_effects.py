"""What would have no effect is an error or a sentence, after captions are cut and masks are rounded."""

from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageDraw

from conceptkit.base import pipeline as bases
from conceptkit.errors import BadPhotos, BadRecipe
from conceptkit.learn import latent_dataset, target_modules, trainer
from conceptkit.learn.checkpoints import CheckpointManager
from conceptkit.learn.config import config_for
from conceptkit.learn.train_config import RATES
from conceptkit.workflows.add import add
from tests import tiny, transformers_tiny
from tests.learning import TINY, method, outcome, values

LONG = "a picture of a red house " * 13


@pytest.mark.parametrize("end", ["in front of my_dog", "and a <my_dog> dog"])
def test_a_caption_that_is_cut_before_the_name_is_an_error(pico, shown, end):
    captions = (None, f"{LONG} {end}", None)
    before = tiny.snapshot(pico.pipe)
    with pytest.raises(BadPhotos, match="reads 77 tokens of a caption.*my_dog comes after them; shorten"):
        outcome(pico, shown, TINY, captions=captions)
    assert tiny.snapshot(pico.pipe) == before
    early = (None, f"my_dog and {LONG}", None)
    assert not outcome(pico, shown, TINY, captions=early).notices, "what is cut behind the name is no harm"


def outline(size, box):
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse(box, outline=255, width=1)
    return mask


def test_masks_that_leave_no_cell_are_an_error(pico, shown):
    size = shown.pictures[0].size
    masks = (outline(size, (4, 4, 30, 30)),) * 3
    with pytest.raises(BadPhotos, match="masks of 0.png, 1.png, 2.png leave nothing to learn from"):
        outcome(pico, shown, TINY, masks=masks)


def test_one_mask_that_leaves_no_cell_is_told(pico, shown):
    size = shown.pictures[0].size
    made = outcome(pico, shown, TINY, masks=(None, outline(size, (4, 4, 30, 30)), None))
    (told,) = made.notices
    assert "The mask of 1.png covers no cell of any view of it" in told
    assert values(made.whole).any()


def test_a_subject_that_few_views_show_is_told(pico, shown, monkeypatch):
    """As at the end of a wide photo, where few views reach."""
    made = latent_dataset.latent_dataset

    def few(*args, **more):
        found = made(*args, **more)
        first = (found.photo_of == 0).nonzero().flatten()
        found.masks[first[:-1]] = 0
        return found

    monkeypatch.setattr(latent_dataset, "latent_dataset", few)
    size = shown.pictures[0].size
    masks = (Image.new("L", size, 255), Image.new("L", size, 255), None)
    recipe = replace(TINY, num_augmented_views=12)
    (told,) = outcome(pico, shown, recipe, masks=masks).notices
    assert "The mask of 0.png covers a cell in 1 of 4 views" in told and "crop the photo" in told


def test_what_did_not_move_is_told(pico, shown, folder, registry, monkeypatch):
    monkeypatch.setattr(latent_dataset.Framing, "still", 1.0)
    still = {"token_learning_rate": 1e-45, "learning_rate": 1e-45}
    learned = add("my_dog", folder, base=pico, registry=registry, changes={**still, "prior_loss_weight": 0})
    told = " ".join(learned.notices)
    assert "The word of my_dog is where it began" in told and "beside the word" in told
    assert not outcome(pico, shown).notices


@pytest.mark.parametrize("name", ["custom", "custom-diffusion", "dreambooth", "dreambooth-full", "vico"])
def test_the_rates_that_advice_names_may_change_on_the_way(pico, name, tmp_path):
    """One list: what learns says at which rate, and resume takes all of those."""
    recipe = replace(config_for(name), rank=min(2, config_for(name).rank))
    if name == "custom":
        recipe = replace(recipe, key_learning_rate=1e-3, gated_lora_rank=2, gated_lora_learning_rate=1e-3)
    before = {"recipe": recipe.to_json()}
    for rate in RATES:
        after = {"recipe": replace(recipe, **{rate: 0.123}).to_json()}
        manager = resumed(tmp_path, before, after, rate, getattr(recipe, rate))
        if getattr(recipe, rate):
            assert f"{rate} = " in manager.notices[0] and "not 0.123" in manager.notices[0]


def resumed(folder, before, after, name, rate):
    from conceptkit.learn.checkpoints import CheckpointState, write

    write(folder / "kept.safetensors", CheckpointState("delta", 1, {}), before, {}, {})
    manager = CheckpointManager(folder / "kept.safetensors", after)
    if rate:
        manager.resume()
    else:
        with pytest.raises(BadRecipe, match=f"{name} = 0.0, not 0.123"):
            manager.resume()
    return manager


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("custom-diffusion", ["learning_rate", "token_learning_rate"]),
        ("dreambooth", ["learning_rate"]),
        ("dreambooth-full", ["full_learning_rate"]),
        ("vico", ["learning_rate", "token_learning_rate"]),
    ],
)
def test_what_learns_names_the_fields_that_say_how_fast(pico, shown, name, rates, monkeypatch):
    phases, run = [], trainer.run
    monkeypatch.setattr(trainer, "run", lambda c, phase, *a: phases.append(phase) or run(c, phase, *a))
    outcome(pico, shown, method(name))
    assert phases[-1].rates == rates


def test_the_gated_lora_and_the_keys_have_rates_of_their_own(pico, shown, monkeypatch):
    phases, run = [], trainer.run
    monkeypatch.setattr(trainer, "run", lambda c, phase, *a: phases.append(phase) or run(c, phase, *a))
    outcome(pico, shown, replace(TINY, gated_lora_rank=2, key_learning_rate=1e-3, prior_loss_weight=0.0))
    assert phases[-1].rates == ["learning_rate", "key_learning_rate", "gated_lora_learning_rate"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["custom", "custom-diffusion", "dreambooth", "textual-inversion", "vico"])
def test_a_base_in_half_precision_is_taught(shown, registry, dtype, name):
    pipe = tiny.pico_sd().to(dtype)
    half = bases.of(pipe, "half")
    made = outcome(half, shown, method(name), registry=registry)
    assert torch.isfinite(values(made.whole)).all() and not made.notices


def test_a_lora_on_text_encoders_that_take_none_is_said_to_have_no_effect(pico):
    recipe = replace(TINY, text_encoder_rank=4)
    (told,) = target_modules.notices(bases.of(transformers_tiny.pico_pixart(), "pixart"), recipe)
    assert told.startswith(
        "text_encoder_rank = 4 has no effect on pixart, whose text encoder (T5EncoderModel)"
    )
    assert not target_modules.notices(pico, recipe)
