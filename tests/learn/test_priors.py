"""Prior sets are drawn once per base and class, or taken from the user."""

from dataclasses import replace

import safetensors.torch
import torch

from conceptkit.base import pipeline as bases
from conceptkit.learn import prior_preservation
from tests import tiny
from tests.learning import TINY, teach


def test_a_prior_set_is_drawn_once_and_shared(pico, shown, registry, monkeypatch):
    drawn = []
    draw = prior_preservation._draw
    monkeypatch.setattr(prior_preservation, "_draw", lambda *a: drawn.append(a[1]) or draw(*a))
    first = teach(pico, shown, registry=registry)
    assert len(drawn) == 1 and len(drawn[0]) == TINY.num_class_images
    second = teach(pico, shown, registry=registry)
    assert len(drawn) == 1
    assert first.to_bytes() == second.to_bytes() == teach(pico, shown, registry=None).to_bytes()
    teach(pico, shown, noun="cat", registry=registry)
    teach(pico, shown, replace(TINY, class_image_steps=3), registry=registry)
    other = bases.of(tiny.pico_sd(seed=5), "pico")
    teach(other, shown, registry=registry)
    assert len(drawn) == 5, "another class, other steps or another base need a set of their own"


def test_prior_prompts_name_the_class_and_are_as_many_as_asked():
    prompts = prior_preservation.prompts_for("dog", "pico", 10)
    assert len(prompts) == 10
    assert all("dog" in prompt.split() for prompt in prompts)
    assert prior_preservation.prompts_for("coffee cup", "pico", 3) == ("photo of a coffee cup",) * 3


def test_a_recipe_with_one_prompt_for_all_photos_has_it_for_the_class_too(pico, shown, monkeypatch):
    told = []
    draw = prior_preservation._draw
    monkeypatch.setattr(prior_preservation, "_draw", lambda *a: told.extend(a[1]) or draw(*a))
    published = replace(TINY, instance_prompt="a photo of {}")
    teach(pico, shown, published)
    assert set(told) == {"a photo of dog"} and len(told) == TINY.num_class_images
    given = replace(shown, captions=("a dog {here}", *[None] * (len(shown.pictures) - 1)))
    found = prior_preservation.of_photos(pico, given, "dog", "a photo of {}")
    assert found.prompts[0] == "a dog {here}" and set(found.prompts[1:]) == {"a photo of dog"}
    assert set(prior_preservation.of_photos(pico, shown, "dog").prompts) == {"photo of a dog"}


def test_prior_sets_come_back_from_their_bytes():
    there = prior_preservation.ClassImages(
        torch.randn(3, 4, 8, 8).half().float(), ("a dog", "a café", "a dog")
    )
    data = there.to_bytes()
    back = prior_preservation.ClassImages.from_bytes(data)
    assert torch.equal(back.latents, there.latents) and back.prompts == there.prompts
    assert data == there.to_bytes()
    assert set(safetensors.torch.load(data)) == {"latents"}


def test_a_prior_set_does_not_depend_on_how_many_are_drawn_at_once(pico, monkeypatch):
    tick = []
    whole = prior_preservation._draw(pico, ("a dog",) * 5, TINY, lambda *at: None)
    monkeypatch.setattr(prior_preservation, "BATCH", 2)
    parts = prior_preservation._draw(pico, ("a dog",) * 5, TINY, lambda *at: tick.append(at))
    assert torch.allclose(whole, parts, atol=1e-4)
    assert tick == [(2, 5), (4, 5), (5, 5)]
    assert not torch.allclose(whole[0], whole[1])


def test_a_prior_set_belongs_to_all_weights_that_it_was_drawn_with():
    """A fine-tune may have the same keys, values and tokens, and draw something else."""
    pipe = tiny.pico_sd()
    usual = bases.of(pipe, "pico")
    digest = prior_preservation.weights_digest(usual)
    for module in (pipe.unet.conv_in, pipe.text_encoder.encoder.layers[0].mlp.fc1):
        with torch.no_grad():
            module.weight[0] += 0.5
        changed = bases.of(pipe, "pico")
        assert changed.fingerprint.exact == usual.fingerprint.exact
        assert prior_preservation.weights_digest(changed) != digest
        digest = prior_preservation.weights_digest(changed)
    again = bases.of(tiny.pico_sd(), "pico")
    assert prior_preservation.weights_digest(again) == prior_preservation.weights_digest(
        bases.of(tiny.pico_sd(), "pico")
    )
    half = tiny.pico_sd()
    half.unet.half()
    assert prior_preservation.weights_digest(bases.of(half, "pico")) == prior_preservation.weights_digest(
        again
    )
