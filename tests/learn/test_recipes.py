"""What a recipe switches changes what is learned; recipes that make no sense are refused."""

from dataclasses import replace

import pytest
import torch

from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadRecipe, ConceptError
from conceptkit.features import caption_statistics
from conceptkit.inference.attach import attach
from conceptkit.learn import latent_dataset, losses, training_step, view_options
from conceptkit.tuners.inject import install, uninstall
from tests import tiny
from tests.learning import TINY, teach, ups


@pytest.mark.parametrize(
    "other",
    [
        {"prior_loss_weight": 0.0},
        {"prior_loss_weight": 0.5},
        {"caption_preservation_weight": 5.0},
        {"learning_rate": 1e-3},
        {"num_class_images": 0},
    ],
)
def test_the_prior_the_leak_and_the_rate_change_what_is_learned(pico, shown, other):
    """The delta alone learns beside the prior, so the word is the same and the values are not."""
    usual, changed = teach(pico, shown), teach(pico, shown, replace(TINY, **other))
    assert torch.equal(usual.tokens["<my_dog>"][0], changed.tokens["<my_dog>"][0])
    assert not torch.equal(ups(usual), ups(changed))


def test_a_heavy_leak_holds_the_delta_back(pico, shown):
    def spilt(concept: Concept) -> float:
        (_, down) = next(iter(concept.delta.values()))
        return float(losses.leak(ups(concept), down, caption_statistics.statistics_of(pico).gram))

    free, held = (
        teach(pico, shown, replace(TINY, max_train_steps=12, caption_preservation_weight=leak))
        for leak in (0.0, 1e4)
    )
    assert spilt(held) < 0.5 * spilt(free)


def test_the_mask_changes_what_is_learned(pico, shown, monkeypatch):
    monkeypatch.setattr(view_options, "SMALL", 0)
    usual = teach(pico, shown)
    pool = latent_dataset.latent_dataset

    def unmasked(*args, **more):
        found = pool(*args, **more)
        return replace(found, masks=torch.ones_like(found.masks))

    monkeypatch.setattr(latent_dataset, "latent_dataset", unmasked)
    whole = teach(pico, shown)
    assert not torch.equal(usual.tokens["<my_dog>"][0], whole.tokens["<my_dog>"][0])
    assert not torch.equal(ups(usual), ups(whole))


def test_cells_outside_the_mask_give_no_gradient():
    found, wanted = torch.randn(1, 4, 6, 6, requires_grad=True), torch.randn(1, 4, 6, 6)
    mask = torch.zeros(1, 6, 6)
    mask[0, 2:4, 2:4] = 1
    losses.masked_mse(found, wanted, mask).backward()
    assert torch.equal(found.grad.abs().sum(1).bool(), mask.bool())


def test_the_look_learns_at_the_noise_levels_that_it_is_given(pico, shown, monkeypatch):
    seen: dict[str, list[int]] = {}
    draw = training_step.sample_step

    def watching(taught, key, with_prior):
        drawn = draw(taught, key, with_prior)
        seen.setdefault(key[0], []).extend(drawn.t.tolist())
        return drawn

    monkeypatch.setattr(training_step, "sample_step", watching)
    recipe = replace(TINY, token_train_steps=8, max_train_steps=8, prior_loss_weight=0.0)
    whole = teach(pico, shown, recipe)
    assert max(seen["token"]) >= 900 and max(seen["delta"]) >= 900
    seen.clear()
    low = teach(pico, shown, replace(recipe, max_timestep_fraction=0.3))
    assert max(seen["token"]) >= 900 and 200 < max(seen["delta"]) < 300 and min(seen["delta"]) < 100
    assert torch.equal(low.tokens["<my_dog>"][0], whole.tokens["<my_dog>"][0])
    assert not torch.equal(ups(low), ups(whole)) and "max_timestep_fraction" not in whole.recipe


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"max_train_steps": 0, "token_train_steps": 0}, "0 steps"),
        ({"max_train_steps": -5}, "max_train_steps = -5"),
        ({"token_train_steps": -1}, "token_train_steps = -1"),
        ({"rank": -2}, "rank = -2"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(pico, shown, values, named):
    with pytest.raises(BadRecipe, match=named):
        teach(pico, shown, replace(TINY, **values))


def test_a_pipeline_that_carries_concepts_is_no_base_to_learn_on(pico, shown):
    with attach(pico.pipe, tiny.pico_concept(pico.pipe, "moongate", "gate")):
        carrying = tiny.snapshot(pico.pipe, "a moongate")
        with pytest.raises(ConceptError, match="carries moongate"):
            teach(pico, shown)
        assert tiny.snapshot(pico.pipe, "a moongate") == carrying


def test_another_delta_on_the_unet_survives_the_refusal(pico, shown):
    other = tiny.pico_concept(pico.pipe)
    install(pico.unet, other.delta)
    try:
        carrying = tiny.state_hash(pico.unet)
        with pytest.raises(ConceptError, match="already carries"):
            teach(pico, shown)
        assert tiny.state_hash(pico.unet) == carrying
    finally:
        uninstall(pico.unet)
