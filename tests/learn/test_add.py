"""`add` stores a concept whole or not at all, and says what a user should know."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conceptkit.base import pipeline as bases
from conceptkit.data.photos import PhotoSet
from conceptkit.errors import BadBase, BadName, BadPhotos, BadRecipe, NameTaken
from conceptkit.learn.config import config_for
from conceptkit.workflows.add import add
from tests import tiny
from tests.learning import TINY, draw_photos, teach


def test_add_stores_a_concept_its_summary_and_a_preview(pico, folder, registry):
    steps = []
    learned = add("my_dog", folder, base=pico, registry=registry, progress=lambda *at: steps.append(at))
    (entry,) = registry.list()
    assert entry.ref == learned.entry.ref == "my_dog@1"
    assert registry.read("my_dog") == learned.concept.to_bytes() and learned.bytes == entry.bytes
    assert entry.summary == json.loads(json.dumps(learned.concept.summary()))
    assert (
        registry.preview("my_dog").startswith(b"\x89PNG") and learned.preview.width > learned.preview.height
    )
    assert learned.seconds > 0
    done = [at[0] for at in steps]
    assert done == sorted(done) and steps[-1][:2] == (9, 9) and {at[1] for at in steps} == {9}
    assert {text for *_, text in steps} == {"drawing dogs", "learning the word", "learning the delta"}
    again = add("my_dog", folder, base=pico, registry=registry, new_version=True)
    assert again.entry.ref == "my_dog@2" and again.entry.hash == entry.hash


def test_progress_counts_only_what_is_done(pico, shown):
    steps = []
    teach(pico, shown, replace(TINY, prior_loss_weight=0.0), progress=lambda *at: steps.append(at))
    assert [at[:2] for at in steps] == [(k, 5) for k in range(1, 6)]


def test_the_noun_is_taken_from_the_name_or_the_folder_and_said(
    pico, folder, registry, tmp_path, monkeypatch
):
    monkeypatch.setattr("conceptkit.workflows.add.preview", lambda *a: Image.new("RGB", (8, 8)))
    learned = add("my_dog", folder, base=pico, registry=registry)
    assert learned.concept.noun == "dog"
    assert learned.notices == ["my_dog was taken to be a dog; give --class NOUN if it is something else."]
    cats = tmp_path / "cats"
    cats.mkdir()
    file = next(iter(draw_photos(cats, [4]).iterdir()))
    for photos in (cats, [file], str(file)):
        learned = add("tom", photos, base=pico, registry=registry, new_version=True)
        assert learned.concept.noun == "cat" and "taken to be a cat" in learned.notices[0]
    given = add("rex", folder, class_noun="dog", base=pico, registry=registry)
    assert given.concept.noun == "dog" and given.notices == []


def test_a_name_that_says_nothing_needs_a_noun(pico, tmp_path, registry):
    photos = draw_photos(tmp_path, [1])
    with pytest.raises(BadRecipe, match="--class NOUN") as error:
        add("xyzzy", photos, base=pico, registry=registry)
    assert "'xyzzy'" in str(error.value)
    assert registry.list() == []


def test_the_storybook_names_the_classes_it_knows(pico, folder, registry):
    storybook = bases.of(pico.pipe, bases.STORYBOOK)
    with pytest.raises(BadRecipe, match="does not know the class 'unicorn'; choose one of dog, cat") as error:
        add("my_dog", folder, class_noun="unicorn", base=storybook, registry=registry)
    assert "\n" not in str(error.value) and registry.list() == []


def test_photos_that_look_nothing_like_the_storybook_are_noticed(pico, monkeypatch):
    from conceptkit.workflows.add import _faint

    storybook = bases.of(pico.pipe, bases.STORYBOOK)
    grain = np.random.default_rng(0).integers(0, 255, (70, 64, 3), dtype=np.uint8)
    for picture, count in ((Image.fromarray(grain), 1), (Image.new("RGB", (80, 64), "teal"), 0)):
        notices = _faint(storybook, PhotoSet((picture,) * 2, ("a", "b"), ""))
        assert len(notices) == count and all("--base" in text for text in notices)
    assert _faint(pico, PhotoSet((Image.fromarray(grain),), ("a",), "")) == []


@pytest.mark.parametrize(
    ("values", "error", "named"),
    [
        ({"name": "my dog"}, BadName, "my dog"),
        ({"steps": 0}, BadRecipe, "0 steps"),
        ({"steps": -3}, BadRecipe, "-3 steps"),
        ({"rank": -1}, BadRecipe, "-1"),
        ({"method": "magic"}, BadRecipe, "'magic'.*custom"),
        ({"photos": "nowhere"}, BadPhotos, "nowhere"),
        ({"base": "nowhere"}, BadBase, "nowhere"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_one_sentence(pico, folder, registry, values, error, named):
    given = {"name": "my_dog", "photos": folder, "base": pico, "registry": registry} | values
    with pytest.raises(error, match=named) as raised:
        add(given.pop("name"), given.pop("photos"), **given)
    assert "\n" not in str(raised.value)
    assert registry.list() == []


def test_a_taken_name_is_refused_before_anything_is_learned(pico, folder, registry, monkeypatch):
    registry.add("my_dog", b"bytes", {})
    monkeypatch.setattr("conceptkit.workflows.add.train", lambda *a, **k: pytest.fail("learned in vain"))
    with pytest.raises(NameTaken):
        add("my_dog", folder, base=pico, registry=registry)


@pytest.mark.parametrize("phase", ["drawing dogs", "learning the word", "learning the delta"])
def test_an_interruption_leaves_nothing_behind(pico, folder, registry, phase):
    before = tiny.snapshot(pico.pipe)

    def interrupted(done, total, text):
        if text == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add("my_dog", folder, base=pico, registry=registry, progress=interrupted)
    assert registry.list() == []
    assert tiny.snapshot(pico.pipe) == before
    assert add("my_dog", folder, base=pico, registry=registry).entry.version == 1


@pytest.mark.parametrize("part", ["preview", "learn"])
def test_a_failure_leaves_nothing_behind(pico, folder, registry, monkeypatch, part):
    before = tiny.snapshot(pico.pipe)
    name = {
        "preview": "conceptkit.workflows.add.preview",
        "learn": "conceptkit.learn.training_step.losses.masked_mse",
    }[part]

    def broken(*args, **more):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(name, broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        add("my_dog", folder, base=pico, registry=registry)
    assert registry.list() == []
    assert tiny.snapshot(pico.pipe) == before


def test_steps_are_shared_between_the_word_and_the_look():
    for steps in (1, 2, 5, 300):
        recipe = config_for(steps=steps)
        assert recipe.token_train_steps + recipe.max_train_steps == steps and recipe.max_train_steps >= 1
    assert config_for() == TINY and config_for(rank=7).rank == 7
