"""Views of photos and the prompts that go with them."""

import pytest
import torch

from conceptkit.learn import latent_dataset, view_options


def test_prompts_of_views_read_well(pico, shown, monkeypatch):
    monkeypatch.setattr(view_options, "SMALL", 0)
    prompts = latent_dataset.latent_dataset(pico, shown, "<my_dog> dog", 900, seed=0).prompts
    assert {
        "photo of a <my_dog> dog",
        "photo of a far away <my_dog> dog",
        "a photo of a very small <my_dog> dog",
        "a zoomed in <my_dog> dog",
        "a picture of a close up <my_dog> dog",
    } <= set(prompts)
    kinds = ("", "far away ", "very small ", "zoomed in ", "close up ")
    assert set(prompts) == {
        context.format(kind + "<my_dog> dog") for context in latent_dataset.CONTEXTS for kind in kinds
    }


@pytest.mark.parametrize("words", ["<x> panda bear", "<a> tea pot", "<pizza>"])
def test_prompts_of_views_keep_words_together(pico, shown, words):
    for prompt in latent_dataset.latent_dataset(pico, shown, words, 60, seed=0).prompts:
        assert f" {words}" in prompt and " a a " not in prompt


def test_a_pool_is_as_its_seed(pico, shown):
    pool, again, other = (
        latent_dataset.latent_dataset(pico, shown, "<x> dog", 12, seed) for seed in (0, 0, 1)
    )
    assert pool.latents.shape == (12, 4, 8, 8) and pool.masks.shape == (12, 8, 8)
    assert torch.equal(pool.latents, again.latents) and pool.prompts == again.prompts
    assert not torch.equal(pool.latents, other.latents)
    assert 0 < pool.masks.mean() < 1
