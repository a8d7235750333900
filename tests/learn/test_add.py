"""`add` stores a concept whole or not at all, and says what a user should know."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from conceptkit.base import pipeline as bases
from conceptkit.data.photos import PhotoSet
from conceptkit.errors import BadBase, BadName, BadPhotos, BadRecipe, ConceptError, NameTaken
from conceptkit.inference.attach import attach
from conceptkit.learn.claims import claimed_names
from conceptkit.learn.config import config_for
from conceptkit.registry.catalogue import history
from conceptkit.workflows.add import STORED, add
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


@pytest.mark.parametrize(
    "phase",
    ["drawing dogs", pytest.param("learning the word", marks=pytest.mark.slow), "learning the delta"],
)
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


def broken(*args, **more):
    raise RuntimeError("out of memory")


def test_a_failure_leaves_nothing_behind(pico, folder, registry, monkeypatch):
    before = tiny.snapshot(pico.pipe)
    monkeypatch.setattr("conceptkit.learn.training_step.losses.masked_mse", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        add("my_dog", folder, base=pico, registry=registry)
    assert registry.list() == []
    assert tiny.snapshot(pico.pipe) == before


def test_what_was_learned_is_kept_when_no_preview_can_be_drawn(pico, folder, registry, monkeypatch):
    before = tiny.snapshot(pico.pipe)
    monkeypatch.setattr("conceptkit.workflows.add.preview", broken)
    learned = add("my_dog", folder, base=pico, registry=registry)
    assert learned.preview is None and learned._repr_png_() is None
    (told,) = (text for text in learned.notices if "preview" in text)
    assert told == (
        "my_dog@1 is stored, but no preview of it could be drawn (RuntimeError: out of memory); "
        "try conceptkit compose my_dog."
    )
    assert registry.read("my_dog") == learned.concept.to_bytes() and registry.preview(learned.entry) is None
    assert tiny.snapshot(pico.pipe) == before


def test_ctrl_c_at_the_preview_keeps_what_was_learned(pico, folder, registry, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("conceptkit.workflows.add.preview", stopped)
    with pytest.raises(KeyboardInterrupt) as stop:
        add("my_dog", folder, base=pico, registry=registry)
    assert stop.value.__notes__ == [STORED] and [entry.ref for entry in registry.list()] == ["my_dog@1"]
    assert not list(registry.home.glob("checkpoints/*"))


def test_a_base_that_cannot_draw_says_so_before_it_draws_a_class(folder, registry, monkeypatch):
    pipe = tiny.pico_sd()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    base = bases.of(pipe, "flow")
    monkeypatch.setattr("conceptkit.learn.prior_preservation._draw", lambda *a: pytest.fail("drawn"))
    with pytest.raises(
        BadBase, match="FlowMatchEulerDiscreteScheduler has no init_noise_sigma.*DDIMScheduler"
    ):
        add("my_dog", folder, base=base, registry=registry, changes={"prior_loss_weight": 1})


def test_two_that_learn_one_name_at_a_time(pico, folder, registry, tmp_path):
    """The second knows before it has read a photo; another name, another home and a later run are free."""

    def second(done, total, text):
        if text == "learning the delta":
            with pytest.raises(ConceptError, match="Another process is learning my_dog already"):
                add("my_dog", tmp_path / "nowhere", base=pico, registry=registry, new_version=True)
            with claimed_names(registry.home, ["rex"]), claimed_names(tmp_path, ["my_dog"]):
                pass
            asked.append(text)

    asked = []
    add("my_dog", folder, base=pico, registry=registry, progress=second)
    assert asked and not list(registry.home.glob("checkpoints/*"))
    with claimed_names(registry.home, ["my_dog"]):
        pass


def test_the_old_name_of_an_argument_is_understood_and_told(pico, folder, registry):
    with pytest.warns(FutureWarning, match=r"add\(noun=...\) is called class_noun now"):
        learned = add("rex", folder, noun="dog", base=pico, registry=registry)
    assert learned.concept.noun == "dog"


def test_the_old_name_of_a_field_is_taken_and_told(pico, folder, registry):
    old, now = {"token_steps": "2"}, {"token_train_steps": "2"}
    learned = add("rex", folder, class_noun="dog", base=pico, registry=registry, changes=old)
    same = add("max", folder, class_noun="dog", base=pico, registry=registry, changes=now)
    assert learned.concept.recipe["token_train_steps"] == 2 and learned.concept.recipe == same.concept.recipe
    (told,) = learned.notices
    assert "token_steps" in told and "token_train_steps" in told and not same.notices


def test_a_name_that_is_free_again_has_a_token_of_its_own(pico, folder, registry):
    """A concept keeps its token when it is renamed; both go into one picture."""
    first = add("my_dog", folder, base=pico, registry=registry)
    history.rename(registry, "my_dog", "rex")
    second = add("my_dog", folder, class_noun="dog", base=pico, registry=registry)
    assert set(first.concept.tokens) == {"<my_dog>"} and set(second.concept.tokens) == {"<my_dog-2>"}
    assert second.concept.words == {"my_dog": "<my_dog-2> dog"}
    with attach(pico.pipe, "rex", "my_dog", registry=registry):
        tiny.draw(pico.pipe, "rex next to a my_dog")
    again = add("my_dog", folder, base=pico, registry=registry, new_version=True)
    assert again.concept.to_bytes() == second.concept.to_bytes()
    other = add("cup", folder, class_noun="dog", base=pico, registry=registry)
    assert set(other.concept.tokens) == {"<cup>"}


def test_random_numbers_of_the_caller_are_left_alone(pico, shown, monkeypatch):
    """Those on the CPU go on where they were; those of other devices are not seeded at all."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("another device was seeded"))
    torch.random.default_generator.manual_seed(5)
    wanted = torch.rand(3)
    torch.random.default_generator.manual_seed(5)
    first = teach(pico, shown)
    assert torch.equal(torch.rand(3), wanted)
    assert teach(pico, shown).to_bytes() == first.to_bytes(), "what is learned depends on the seed alone"


def test_steps_are_shared_between_the_word_and_the_look():
    for steps in (1, 2, 5, 300):
        recipe = config_for(steps=steps)
        assert recipe.token_train_steps + recipe.max_train_steps == steps and recipe.max_train_steps >= 1
    assert config_for() == TINY and config_for(rank=7).rank == 7
