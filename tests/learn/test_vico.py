"""Learning to look at a reference photo: what learns, from which photos, and what each term of it does."""

from dataclasses import replace

import pytest
import torch

from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import Concept, read
from conceptkit.errors import BadRecipe
from conceptkit.inference.attach import attach
from conceptkit.learn import latent_dataset, trainer
from conceptkit.learn.checkpoints import CheckpointManager
from conceptkit.learn.config import DEFAULT_CONFIGS, config_for
from conceptkit.learn.subject import Subject
from conceptkit.tuners import image_attention_functional
from conceptkit.workflows.add import add
from tests import tiny
from tests.learning import learn_together, method, outcome, teach

PROMPT = "a photo of a my_dog"


def looked(concept: Concept) -> torch.Tensor:
    """All that was learned about looking, and the token's rows."""
    maps = concept.reference.maps
    parts = [factor.flatten() for name in sorted(maps) for factor in maps[name]]
    return torch.cat([*parts, *(row.flatten() for rows in concept.tokens.values() for row in rows)])


def token(concept: Concept) -> torch.Tensor:
    return concept.tokens["<my_dog>"][0]


def test_it_learns_and_leaves_the_base_alone(pico, shown):
    before = tiny.snapshot(pico.pipe)
    concept = teach(pico, shown, method("vico"))
    assert tiny.snapshot(pico.pipe) == before
    assert not concept.delta and concept.rows is None
    assert len(concept.reference.maps) == 8, "four maps in each of two blocks"
    assert all(up.any() and down.any() for up, down in concept.reference.maps.values())
    stored = Concept.from_bytes(concept.to_bytes())
    with attach(pico.pipe, replace(stored, reference=None)):
        word = tiny.draw(pico.pipe, PROMPT)
    with attach(pico.pipe, stored):
        assert not torch.equal(tiny.draw(pico.pipe, PROMPT), word)
    assert tiny.snapshot(pico.pipe) == before


def test_two_encoders_and_full_matrices(shown):
    base = bases.of(tiny.pico_sdxl(), "pico-xl")
    concept = teach(base, shown, replace(method("vico"), rank=0))
    assert all(factors.down is None for factors in concept.reference.maps.values())
    assert len(concept.tokens["<my_dog>"]) == 2
    with attach(base.pipe, concept):
        tiny.draw(base.pipe, PROMPT)


def test_the_first_photo_is_looked_at_and_the_others_are_learned_from(pico, shown, monkeypatch):
    pools, true = [], latent_dataset.latent_dataset

    def watched(base, photos, *args, **options):
        pools.append(photos.names)
        return true(base, photos, *args, **options)

    monkeypatch.setattr(trainer.latent_dataset, "latent_dataset", watched)
    concept = teach(pico, shown, method("vico"))
    first = replace(shown, pictures=shown.pictures[:1], names=shown.names[:1])
    latent = latent_dataset.still_dataset(pico, first, "x").latents[0]
    assert pools == [shown.names[1:]]
    assert torch.equal(concept.reference.latent, latent.half().float())
    alone = teach(pico, first, method("vico"))
    assert pools[1:] == [shown.names[:1]], "one photo is both"
    assert torch.equal(alone.reference.latent, concept.reference.latent)


def test_without_looking_the_word_learns_something_else(pico, shown, monkeypatch):
    recipe = method("vico")
    with_photo = teach(pico, shown, recipe)
    monkeypatch.setattr(
        image_attention_functional, "look", lambda block, cells, *rest: torch.zeros_like(cells)
    )
    without = teach(pico, shown, recipe)
    assert not torch.equal(token(with_photo), token(without))
    assert not any(
        factors.first.any() for name, factors in without.reference.maps.items() if name.endswith("to_out")
    )


def test_without_its_regulariser_attention_learns_something_else(pico, shown):
    recipe = method("vico")
    held, free, drawn = (
        teach(pico, shown, replace(recipe, attention_regularization_weight=a)) for a in (5e-4, 0.0, 50.0)
    )
    assert not torch.equal(looked(held), looked(free))
    assert not torch.equal(looked(drawn), looked(held))


def test_sude_goes_on_top(pico, shown):
    recipe = method("vico")
    assert not torch.equal(*(looked(teach(pico, shown, replace(recipe, sude_weight=w))) for w in (0.0, 1.5)))


def test_parts_of_a_batch_add_up(pico, shown):
    recipe = replace(method("vico"), train_batch_size=4, attention_regularization_weight=1.0)
    whole, parts = (teach(pico, shown, replace(recipe, gradient_accumulation_steps=k)) for k in (1, 2))
    assert (looked(whole) - looked(parts)).norm() < 0.01 * looked(whole).norm()


class Stopped(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("validate", [0, 2])
def test_stopped_and_resumed_gives_the_same_bytes(pico, shown, tmp_path, validate):
    recipe = replace(method("vico"), max_train_steps=4, validation_steps=validate)
    never = outcome(pico, shown, recipe)
    assert len(never.curve) == (3 if validate else 0)
    path = tmp_path / "kept.safetensors"

    def stop(done, total, text):
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        outcome(pico, shown, recipe, checkpoints=CheckpointManager(path, every=0.0), progress=stop)
    keeper = CheckpointManager(path, every=0.0)
    keeper.resume()
    resumed = outcome(pico, shown, recipe, checkpoints=keeper)
    assert resumed.whole.to_bytes() == never.whole.to_bytes()


def test_learned_by_name_and_drawn_from_the_registry(pico, folder, registry, monkeypatch):
    monkeypatch.setitem(DEFAULT_CONFIGS, "vico", method("vico"))
    learned = add("my_dog", folder, class_noun="dog", base=pico, registry=registry, method="vico")
    assert learned.entry.summary["reference"] is True and learned.entry.summary["method"] == "vico"
    stored = read(registry, "my_dog")
    assert stored.to_bytes() == learned.concept.to_bytes()
    with attach(pico.pipe, "my_dog", registry=registry):
        one = tiny.draw(pico.pipe, PROMPT)
    with attach(pico.pipe, stored):
        assert torch.equal(tiny.draw(pico.pipe, PROMPT), one)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rank": 17}, "Rank 17 is larger than up_blocks"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing = yes"),
        ({"torch_compile": True}, "torch_compile = yes"),
        ({"caption_preservation_weight": 1.0}, "caption_preservation_weight = 1.0"),
        ({"attention_regularization_weight": -1.0}, "attention_regularization_weight = -1.0"),
        ({"adapter": "kv"}, "attention_regularization_weight = 0.0005 is about a reference photo"),
    ],
)
def test_what_makes_no_sense_is_told_before_any_work(pico, shown, monkeypatch, values, named):
    monkeypatch.setattr(latent_dataset, "encode", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(BadRecipe, match=named) as error:
        teach(pico, shown, replace(method("vico"), **values))
    assert "\n" not in str(error.value)


def test_one_photo_of_one_thing(pico, shown):
    both = [Subject("my_dog", "dog", shown), Subject("moongate", "gate", shown)]
    with pytest.raises(BadRecipe, match="my_dog and moongate cannot be learned in one run"):
        learn_together(pico, both, method("vico"))


def test_an_adapter_brings_its_weight():
    assert config_for("dreambooth", adapter="image").attention_regularization_weight == 5e-4
    assert config_for("vico", adapter="kv").attention_regularization_weight == 0
