"""Which word a base would use for what photos show."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from conceptkit.base import pipeline as bases
from conceptkit.base.noise_schedule import NoiseSchedule, schedule_of
from conceptkit.data.photos import PhotoSet
from conceptkit.learn import diffusion_classifier, latent_dataset, training_step
from conceptkit.learn.checkpoints import CheckpointManager
from conceptkit.learn.config import DEFAULT, DEFAULT_CONFIGS, TrainConfig
from conceptkit.learn.diffusion_classifier import Classifier
from conceptkit.learn.distributed import DistributedContext
from conceptkit.learn.subject import StateAndPlace, Subject
from conceptkit.learn.token_init import init_token
from conceptkit.storybook.world import scene
from conceptkit.workflows import add
from tests import tiny
from tests.learning import learn_together, teach

RECIPE = TrainConfig(
    "custom",
    token_init="described",
    token_init_noise=0.5,
    train_batch_size=3,
    prior_loss_weight=0.0,
    num_vectors=2,
    num_augmented_views=6,
)
WHOLE = DistributedContext()


@pytest.fixture(scope="module")
def storybook() -> bases.Base:
    return bases.load()


def pool_of(base: bases.Base, noun: str, hue: str, seed: int) -> latent_dataset.LatentDataset:
    subject = scene.draw_subject(np.random.default_rng(seed), noun, "scored", hue=hue)
    shots = tuple(scene.photos(subject, 5, seed))
    photos = PhotoSet(shots, tuple(f"{k}.png" for k in range(5)), "0" * 64)
    return latent_dataset.latent_dataset(base, photos, f"<x> {noun}", 24, seed)


def asked(
    base: bases.Base, crew: DistributedContext = WHOLE, schedule: NoiseSchedule | None = None
) -> Classifier:
    return Classifier(base, schedule or schedule_of(base.pipe.scheduler), RECIPE, 0, crew)


@pytest.mark.slow
@pytest.mark.parametrize(("noun", "hue"), [("boat", "blue"), ("rabbit", "red"), ("robot", "white")])
def test_a_base_names_the_colour_of_what_it_is_shown(storybook, noun, hue):
    assert asked(storybook).look(pool_of(storybook, noun, hue, seed=5), noun) == hue


def test_where_no_word_does_better_the_noun_does(storybook, monkeypatch):
    monkeypatch.setattr(diffusion_classifier, "looks", lambda pipe: ["black", "brown"])
    assert asked(storybook).look(pool_of(storybook, "robot", "white", seed=5), "robot") is None


def posed(noun: str, state: str, place: str | None, seed: int = 5) -> PhotoSet:
    subject = scene.draw_subject(np.random.default_rng(seed), noun, "scored")
    shot = scene.render(scene.Scene((scene.Figure(subject, state),), place=place, seed=seed))
    return PhotoSet((shot,), (f"{noun}.png",), "0" * 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noun", "state", "place", "told"),
    [
        ("cat", "running", None, "running"),
        ("cat", "sleeping", "kitchen", "sleeping in a kitchen"),
        ("rabbit", "sitting", "snow", "sitting in the snow"),
    ],
)
def test_a_base_says_what_a_thing_does_on_its_only_photo_and_where(storybook, noun, state, place, told):
    pool = latent_dataset.still_dataset(storybook, posed(noun, state, place), f"<x> {noun}")
    assert str(asked(storybook).scene(pool, noun)) == told


@pytest.mark.slow
def test_what_is_not_clear_is_not_said(storybook, monkeypatch):
    pool = latent_dataset.still_dataset(storybook, posed("cat", "running", "moon"), "<x> cat")
    for name in ("PLACE", "STATE"):
        monkeypatch.setattr(
            diffusion_classifier, name, getattr(diffusion_classifier, name)._replace(clear=0.99)
        )
    assert asked(storybook).scene(pool, "cat") == StateAndPlace()


def test_every_photo_is_looked_at(pico, shown):
    """The views of three photos take turns in a pool; a stride of three would show one of them alone."""
    pool = latent_dataset.latent_dataset(pico, shown, "<x> dog", 96, 0)
    photo = torch.arange(96) % len(shown)
    marked = replace(pool, latents=photo.float().view(-1, 1, 1, 1).expand_as(pool.latents))
    schedule, seen = schedule_of(pico.pipe.scheduler), []

    class Watched(type(schedule)):
        def add_noise(self, clean, noise, t):
            seen.extend(clean[:, 0, 0, 0].tolist())
            return super().add_noise(clean, noise, t)

    watched = Watched(schedule.prediction, schedule.bars)
    told = diffusion_classifier.conditioning.encode(pico.pipe, ["a dog"])
    asked(pico, schedule=watched).losses(marked, told, range(8), diffusion_classifier.LOOK)
    assert len(seen) == 8 and set(seen) == {0.0, 1.0, 2.0}


def test_only_whole_tokens_are_asked_about(pico, storybook):
    tokenizer, _ = pico.encoders[0]
    found = diffusion_classifier.looks(pico.pipe)
    assert {"red", "blue", "black"} <= set(found) and "turquoise" not in found
    assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in found)
    states = diffusion_classifier.states(storybook.pipe)
    assert {"running", "open"} <= set(states) and "kneeling" not in states
    places = diffusion_classifier.places(storybook.pipe)
    assert {"in a kitchen", "on the moon"} <= set(places) and "in a museum" not in places


def test_a_base_without_such_words_is_asked_nothing(shown):
    pipe = tiny.pico_sd()
    pipe.tokenizer = tiny.tokenizer("a photo of dog")
    base = bases.of(pipe, "pico")
    pool = latent_dataset.latent_dataset(base, shown, "<x> dog", 4, 0)
    assert asked(base).look(pool, "dog") is None


def test_two_text_encoders_are_asked_like_one(shown):
    base = bases.of(tiny.pico_sdxl(), "pico")
    pool = latent_dataset.latent_dataset(base, shown, "<x> dog", 8, 0)
    before = tiny.snapshot(base.pipe)
    first, again = (asked(base).look(pool, "dog") for _ in range(2))
    assert first == again and first in (None, *diffusion_classifier.looks(base.pipe))
    assert tiny.snapshot(base.pipe) == before


class Half(DistributedContext):
    """One of two processes that adds up nothing, so that its own share is seen."""

    def total(self, value: torch.Tensor) -> torch.Tensor:
        return value


def test_the_shares_of_several_processes_add_up_to_the_whole(pico, shown):
    pool = latent_dataset.latent_dataset(pico, shown, "<x> dog", 8, 0)
    told = diffusion_classifier.conditioning.encode(pico.pipe, ["a dog", "a red dog"])

    def losses(crew: DistributedContext) -> torch.Tensor:
        return asked(pico, crew).losses(pool, told, range(2, 9), diffusion_classifier.LOOK)

    with torch.no_grad():
        first, second, none, whole = (
            losses(Half(0, 2)),
            losses(Half(1, 2)),
            losses(Half(9, 10)),
            losses(DistributedContext()),
        )
    assert torch.allclose(first + second, whole, atol=1e-4)
    assert (first[:, ::2] > 0).all() and not first[:, 1::2].any() and not none.any()


def test_the_token_begins_beside_the_word_and_says_so(pico, shown):
    subject = Subject("my_dog", "dog", shown)
    (rows,), origin = init_token(pico, subject, RECIPE, 0, "red")
    tokenizer, encoder = pico.encoders[0]
    (red,) = encoder.get_input_embeddings().weight[tokenizer("red", add_special_tokens=False).input_ids]
    assert torch.allclose((rows - red).norm(dim=1), 0.5 * red.norm().expand(2), rtol=1e-4)
    assert not torch.equal(rows[0], rows[1]) and origin == {"look": "red"}


def test_what_is_learned_says_where_its_word_began(pico, shown, folder, registry, monkeypatch):
    monkeypatch.setattr(Classifier, "look", lambda *_: "red")
    recipe = TrainConfig(
        "custom",
        token_init="described",
        token_train_steps=0,
        max_train_steps=1,
        rank=1,
        train_batch_size=2,
        prior_loss_weight=0.0,
        num_augmented_views=4,
    )
    assert teach(pico, shown, recipe).provenance["look"] == "red"
    monkeypatch.setitem(DEFAULT_CONFIGS, DEFAULT, recipe)
    (told,) = add.add("my_dog", folder, class_noun="dog", base=pico, registry=registry).notices
    assert told == "The word of pico that describes my_dog best is 'red'; what is learned begins there."
    style = teach(pico, shown, recipe, noun=None)
    assert "look" not in style.provenance


def test_of_several_each_begins_at_its_own(pico, shown, monkeypatch):
    found = iter(["red", "blue"])
    monkeypatch.setattr(Classifier, "look", lambda *_: next(found))
    subjects = [Subject("my_dog", "dog", shown), Subject("my_cat", "cat", shown)]
    recipe = replace(RECIPE, token_train_steps=0, max_train_steps=1, rank=1, train_batch_size=2)
    joint = learn_together(pico, subjects, recipe)
    assert [part.provenance["look"] for part in joint.parts] == ["red", "blue"]


def stop_after_four(done, total, text):
    if done == 4:
        raise KeyboardInterrupt


def test_going_on_does_not_ask_again(pico, folder, registry, monkeypatch):
    questions = []
    monkeypatch.setattr(Classifier, "look", lambda *_: questions.append(1) or "red")
    recipe = replace(RECIPE, token_train_steps=3, max_train_steps=3, rank=1, train_batch_size=2)
    monkeypatch.setitem(DEFAULT_CONFIGS, DEFAULT, recipe)
    monkeypatch.setattr("conceptkit.workflows.add.CheckpointManager", partial(CheckpointManager, every=0.0))
    whole = add.add("my_dog", folder, class_noun="dog", base=pico, registry=registry).concept.to_bytes()

    again = {"noun": "dog", "base": pico, "registry": registry, "new_version": True}
    with pytest.raises(KeyboardInterrupt):
        add.add("my_dog", folder, progress=stop_after_four, **again)
    monkeypatch.setattr(Classifier, "look", lambda *_: "blue")
    resumed = add.add("my_dog", folder, resume=True, **again).concept
    assert len(questions) == 2 and resumed.provenance["look"] == "red" and resumed.to_bytes() == whole


def only(photos: PhotoSet, k: int = 0) -> PhotoSet:
    return replace(photos, pictures=photos.pictures[k : k + 1], names=photos.names[k : k + 1])


ALONE = TrainConfig(
    "custom",
    token_train_steps=1,
    max_train_steps=1,
    rank=1,
    train_batch_size=2,
    prior_loss_weight=0.0,
    num_augmented_views=4,
    auto_caption=True,
)


@pytest.fixture
def lessons(monkeypatch) -> list[training_step.TrainingContext]:
    """Those that are learned meanwhile."""
    seen, tell = [], training_step.encode_conditions
    monkeypatch.setattr(
        training_step,
        "encode_conditions",
        lambda taught, *a, **k: seen.append(taught) or tell(taught, *a, **k),
    )
    return seen


def test_the_only_photo_is_told_by_its_scene(pico, shown, monkeypatch, lessons):
    """All its prompts go on with it, SuDe's class too; of several photos the base is asked nothing."""
    monkeypatch.setattr(Classifier, "scene", lambda *_: StateAndPlace("running", "on the moon"))
    concept = teach(pico, only(shown), replace(ALONE, sude_weight=1.0))
    own = lessons[0].dataset.prompts
    assert all("<my_dog> dog running on the moon" in text for text in own)
    assert all("dog running on the moon" in text and "<my_dog>" not in text for text in lessons[0].plain(own))
    assert concept.provenance["scene"] == "running on the moon"
    assert concept.words == {"my_dog": "<my_dog> dog"}
    lessons.clear()
    several = teach(pico, shown, replace(ALONE, sude_weight=1.0))
    assert not any("running" in text for text in lessons[0].dataset.prompts)
    assert "scene" not in several.provenance


@pytest.mark.parametrize(
    "subject",
    [
        {"captions": ("photo of a dog sitting",), "noun": "dog"},
        {"noun": None},
        {"noun": None, "kind": "style"},
    ],
    ids=["captioned", "classless", "style"],
)
def test_nothing_is_asked_of_photos_that_say_it_or_have_no_class(pico, shown, monkeypatch, subject):
    subject = dict(subject)
    monkeypatch.setattr(Classifier, "scene", lambda *_: pytest.fail("asked"))
    photos = replace(only(shown), captions=subject.pop("captions", ()))
    learn_together(pico, [Subject(**{"name": "x", "noun": "dog", "photos": photos, **subject})], ALONE)


def test_a_recipe_without_scene_asks_nothing(pico, shown, monkeypatch):
    monkeypatch.setattr(Classifier, "scene", lambda *_: pytest.fail("asked"))
    teach(pico, only(shown), replace(ALONE, auto_caption=False))


def test_the_validation_of_one_photo_is_told_its_scene(pico, shown, monkeypatch):
    monkeypatch.setattr(Classifier, "scene", lambda *_: StateAndPlace("running"))
    told, still = [], latent_dataset.still_dataset
    monkeypatch.setattr(
        latent_dataset, "still_dataset", lambda *a, **k: told.append(still(*a, **k)) or told[-1]
    )
    teach(pico, only(shown), replace(ALONE, validation_steps=1))
    assert told[-1].prompts == ("photo of a <my_dog> dog running",)


def test_a_captioned_photo_beside_one_that_is_not(pico, shown, monkeypatch):
    """Of two learned in one run, each photo is told in its own way."""
    monkeypatch.setattr(Classifier, "scene", lambda *_: StateAndPlace("running"))
    subjects = [
        Subject("my_dog", "dog", only(shown)),
        Subject("my_cat", "cat", replace(only(shown, 1), captions=("a cat sitting",))),
    ]
    joint = learn_together(pico, subjects, ALONE)
    assert [part.provenance.get("scene") for part in joint.parts] == ["running", None]


def test_going_on_keeps_what_was_seen_in_the_photo(pico, folder, registry, monkeypatch, tmp_path):
    photo = tmp_path / "0.png"
    photo.write_bytes((folder / "0.png").read_bytes())
    monkeypatch.setattr(Classifier, "scene", lambda *_: StateAndPlace("running"))
    monkeypatch.setitem(DEFAULT_CONFIGS, DEFAULT, replace(ALONE, token_train_steps=3, max_train_steps=3))
    monkeypatch.setattr("conceptkit.workflows.add.CheckpointManager", partial(CheckpointManager, every=0.0))
    first = add.add("my_dog", photo, class_noun="dog", base=pico, registry=registry)
    assert first.notices == [
        "In 0.png pico sees my_dog running, and learns it so that other prompts are followed; "
        "if it is something else, put a caption beside the photo."
    ]

    again = {"noun": "dog", "base": pico, "registry": registry, "new_version": True}
    with pytest.raises(KeyboardInterrupt):
        add.add("my_dog", photo, progress=stop_after_four, **again)
    monkeypatch.setattr(Classifier, "scene", lambda *_: StateAndPlace("sitting"))
    assert add.add("my_dog", photo, resume=True, **again).concept.to_bytes() == first.concept.to_bytes()
