"""Which word a base would use for what photos show."""

import numpy as np
import pytest
import torch

from conceptkit import base as bases
from conceptkit import learn
from conceptkit.learn import describing, views
from conceptkit.learn.crew import Crew
from conceptkit.learn.noise import schedule_of
from conceptkit.learn.subjects import Subject
from conceptkit.learn.words import begin
from conceptkit.photos import PhotoSet
from conceptkit.recipes import DEFAULT, RECIPES, Recipe
from conceptkit.storybook import world
from tests import tiny
from tests.learning import teach


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
    assert describing.best(storybook, pool, noun, schedule, 0, Crew()) == hue


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
    assert describing.best(base, pool, "dog", schedule_of(pipe.scheduler), 0, Crew()) is None


def test_two_text_encoders_are_asked_like_one(shown):
    base = bases.of(tiny.pico_sdxl(), "pico")
    pool = views.pool(base, shown, "<x> dog", 8, 0)
    before = tiny.snapshot(base.pipe)
    asked = [describing.best(base, pool, "dog", schedule_of(base.pipe.scheduler), s, Crew()) for s in (0, 0)]
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
        return describing._losses(pico, pool, told, [0, 1], range(7), schedule, 0, crew)

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
    recipe = Recipe("custom", begin="described", aside=0.5, vectors=2)
    (rows,), origin = begin(pico, subject, recipe, 0, "red")
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
