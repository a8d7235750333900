"""Which word a base would use for what photos show."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from conceptkit import base as bases
from conceptkit import learn
from conceptkit.learn import describing, views
from conceptkit.learn.checkpoints import Keeper
from conceptkit.learn.crew import Crew
from conceptkit.learn.loop import learn_together
from conceptkit.learn.noise import schedule_of
from conceptkit.learn.subjects import Subject
from conceptkit.learn.words import begin
from conceptkit.photos import PhotoSet
from conceptkit.recipes import DEFAULT, RECIPES, Recipe
from conceptkit.storybook import world
from tests import tiny
from tests.learning import teach

RECIPE = Recipe("custom", begin="described", aside=0.5, batch=3, prior_weight=0.0, vectors=2, views=6)


@pytest.fixture(scope="module")
def storybook() -> bases.Base:
    return bases.load()


def pool_of(base: bases.Base, noun: str, hue: str, seed: int) -> views.Pool:
    subject = world.draw_subject(np.random.default_rng(seed), noun, "scored", hue=hue)
    shots = tuple(world.photos(subject, 5, seed))
    photos = PhotoSet(shots, tuple(f"{k}.png" for k in range(5)), "0" * 64)
    return views.pool(base, photos, f"<x> {noun}", 24, seed)


@pytest.mark.parametrize(("noun", "hue"), [("boat", "blue"), ("rabbit", "red"), ("robot", "white")])
def test_a_base_names_the_colour_of_what_it_is_shown(storybook, noun, hue):
    schedule = schedule_of(storybook.pipe.scheduler)
    pool = pool_of(storybook, noun, hue, seed=5)
    assert describing.best(storybook, pool, noun, schedule, RECIPE, 0, Crew()) == hue


def test_where_no_word_does_better_the_noun_does(storybook, monkeypatch):
    monkeypatch.setattr(describing, "looks", lambda pipe: ["black", "brown"])
    pool = pool_of(storybook, "robot", "white", seed=5)
    schedule = schedule_of(storybook.pipe.scheduler)
    assert describing.best(storybook, pool, "robot", schedule, RECIPE, 0, Crew()) is None


def test_every_photo_is_looked_at(pico, shown):
    """The views of three photos take turns in a pool; a stride of three would show one of them alone."""
    pool = views.pool(pico, shown, "<x> dog", 96, 0)
    photo = torch.arange(96) % len(shown)
    marked = replace(pool, latents=photo.float().view(-1, 1, 1, 1).expand_as(pool.latents))
    schedule, seen = schedule_of(pico.pipe.scheduler), []

    class Watched(type(schedule)):
        def add_noise(self, clean, noise, t):
            seen.extend(clean[:, 0, 0, 0].tolist())
            return super().add_noise(clean, noise, t)

    watched = Watched(schedule.prediction, schedule.bars)
    told = describing.conditions.read(pico.pipe, ["a dog"])
    describing._losses(pico, marked, told, range(8), watched, RECIPE, 0, Crew())
    assert len(seen) == 8 and set(seen) == {0.0, 1.0, 2.0}


def test_only_whole_tokens_are_asked_about(pico):
    tokenizer, _ = pico.encoders[0]
    found = describing.looks(pico.pipe)
    assert {"red", "blue", "black"} <= set(found) and "turquoise" not in found
    assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in found)


def test_a_base_without_such_words_is_asked_nothing(shown):
    pipe = tiny.pico_sd()
    pipe.tokenizer = tiny.tokenizer("a photo of dog")
    base = bases.of(pipe, "pico")
    pool = views.pool(base, shown, "<x> dog", 4, 0)
    assert describing.best(base, pool, "dog", schedule_of(pipe.scheduler), RECIPE, 0, Crew()) is None


def test_two_text_encoders_are_asked_like_one(shown):
    base = bases.of(tiny.pico_sdxl(), "pico")
    pool = views.pool(base, shown, "<x> dog", 8, 0)
    before = tiny.snapshot(base.pipe)
    asked = [
        describing.best(base, pool, "dog", schedule_of(base.pipe.scheduler), RECIPE, s, Crew())
        for s in (0, 0)
    ]
    assert asked[0] == asked[1] and asked[0] in (None, *describing.looks(base.pipe))
    assert tiny.snapshot(base.pipe) == before


class Half(Crew):
    """One of two processes that adds up nothing, so that its own share is seen."""

    def total(self, value: torch.Tensor) -> torch.Tensor:
        return value


def test_the_shares_of_several_processes_add_up_to_the_whole(pico, shown):
    pool = views.pool(pico, shown, "<x> dog", 8, 0)
    told = describing.conditions.read(pico.pipe, ["a dog", "a red dog"])
    schedule = schedule_of(pico.pipe.scheduler)

    def losses(crew: Crew) -> torch.Tensor:
        return describing._losses(pico, pool, told, range(2, 9), schedule, RECIPE, 0, crew)

    with torch.no_grad():
        first, second, none, whole = (
            losses(Half(0, 2)),
            losses(Half(1, 2)),
            losses(Half(9, 10)),
            losses(Crew()),
        )
    assert torch.allclose(first + second, whole, atol=1e-4)
    assert (first[:, ::2] > 0).all() and not first[:, 1::2].any() and not none.any()


def test_the_token_begins_beside_the_word_and_says_so(pico, shown):
    subject = Subject("my_dog", "dog", shown)
    (rows,), origin = begin(pico, subject, RECIPE, 0, "red")
    tokenizer, encoder = pico.encoders[0]
    (red,) = encoder.get_input_embeddings().weight[tokenizer("red", add_special_tokens=False).input_ids]
    assert torch.allclose((rows - red).norm(dim=1), 0.5 * red.norm().expand(2), rtol=1e-4)
    assert not torch.equal(rows[0], rows[1]) and origin == {"look": "red"}


def test_what_is_learned_says_where_its_word_began(pico, shown, folder, registry, monkeypatch):
    monkeypatch.setattr(describing, "best", lambda *_: "red")
    recipe = Recipe(
        "custom", begin="described", token_steps=0, steps=1, rank=1, batch=2, prior_weight=0.0, views=4
    )
    assert teach(pico, shown, recipe).provenance["look"] == "red"
    monkeypatch.setitem(RECIPES, DEFAULT, recipe)
    (told,) = learn.add("my_dog", folder, noun="dog", base=pico, registry=registry).notices
    assert told == "The word of pico that describes my_dog best is 'red'; what is learned begins there."
    style = teach(pico, shown, recipe, noun=None)
    assert "look" not in style.provenance


def test_of_several_each_begins_at_its_own(pico, shown, monkeypatch):
    found = iter(["red", "blue"])
    monkeypatch.setattr(describing, "best", lambda *_: next(found))
    subjects = [Subject("my_dog", "dog", shown), Subject("my_cat", "cat", shown)]
    recipe = replace(RECIPE, token_steps=0, steps=1, rank=1, batch=2)
    joint = learn_together(pico, subjects, recipe)
    assert [part.provenance["look"] for part in joint.parts] == ["red", "blue"]


def test_going_on_does_not_ask_again(pico, folder, registry, monkeypatch):
    asked = []
    monkeypatch.setattr(describing, "best", lambda *_: asked.append(1) or "red")
    recipe = replace(RECIPE, token_steps=3, steps=3, rank=1, batch=2)
    monkeypatch.setitem(RECIPES, DEFAULT, recipe)
    monkeypatch.setattr("conceptkit.learn.Keeper", partial(Keeper, every=0.0))
    whole = learn.add("my_dog", folder, noun="dog", base=pico, registry=registry).concept.to_bytes()

    def stop(done, total, text):
        if done == 4:
            raise KeyboardInterrupt

    again = {"noun": "dog", "base": pico, "registry": registry, "new_version": True}
    with pytest.raises(KeyboardInterrupt):
        learn.add("my_dog", folder, progress=stop, **again)
    monkeypatch.setattr(describing, "best", lambda *_: "blue")
    resumed = learn.add("my_dog", folder, resume=True, **again).concept
    assert len(asked) == 2 and resumed.provenance["look"] == "red" and resumed.to_bytes() == whole
