"""Several subjects in one run: each is a concept of its own, and all of them are one."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from conceptkit.concepts import gates
from conceptkit.concepts.concept import Concept
from conceptkit.data import photos as pictures
from conceptkit.errors import BadRecipe, NameTaken
from conceptkit.inference.attach import attach
from conceptkit.learn import latent_dataset, prior_preservation
from conceptkit.learn.checkpoints import CheckpointManager
from conceptkit.learn.subject import Subject
from conceptkit.merging.compose import compose
from conceptkit.registry.catalogue import search
from conceptkit.registry.store import Registry
from conceptkit.workflows import add as adding
from conceptkit.workflows.add import STORED, UNFINISHED, add_together
from tests import tiny
from tests.learning import TINY, draw_photos, learn_together, method, teach, values


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("gate"), [7, 8])


@pytest.fixture
def pair(shown, other_folder):
    return [Subject("my_dog", "dog", shown), Subject("moongate", "gate", pictures.read(other_folder))]


def added(concept: Concept, rows: torch.Tensor) -> torch.Tensor:
    """What the maps that read text add at rows."""
    reading = [name for name in sorted(concept.delta) if gates.reads_text(name)]
    return torch.cat([concept.delta[name].apply(rows) for name in reading], dim=1)


@pytest.mark.parametrize("kind", ["custom", "custom-diffusion"])
def test_each_alone_does_at_its_own_words_what_it_does_in_the_joint_one(pico, pair, kind):
    before = tiny.snapshot(pico.pipe)
    recipe = TINY if kind == "custom" else method(kind)
    made = learn_together(pico, pair, recipe, name="both")
    assert tiny.snapshot(pico.pipe) == before
    joint, (dog, gate) = made.whole, made.parts
    assert (joint.name, joint.kind, joint.noun) == ("both", "merge", None)
    assert joint.words == {"my_dog": "<my_dog> dog", "moongate": "<moongate> gate"}
    assert set(joint.tokens) == {"<my_dog>", "<moongate>"} and joint.recipe["joint"] is True
    assert joint.provenance["parents"] == ["my_dog", "moongate"]
    assert (dog.kind, dog.noun, set(dog.tokens)) == ("subject", "dog", {"<my_dog>"})
    beyond = gates.maps_without_text(joint.delta)
    assert len(beyond) == (14 if kind == "custom-diffusion" else 0)
    assert all(torch.equal(dog.delta[name].first, beyond[name].first) for name in beyond)
    for part in (dog, gate):
        found, wanted = added(part, part.rows), added(joint, part.rows)
        assert (found - wanted).norm() < 0.01 * wanted.norm() and wanted.norm() > 0
    assert not torch.equal(added(dog, gate.rows), added(joint, gate.rows))
    stored = Concept.from_bytes(joint.to_bytes())
    with attach(pico.pipe, stored):
        tiny.draw(pico.pipe, "a my_dog next to a moongate")
    with attach(pico.pipe, Concept.from_bytes(gate.to_bytes())):
        tiny.draw(pico.pipe, "a moongate")


@pytest.mark.parametrize("text_rank", [4, 0])
def test_a_wide_lora_cannot_be_parted_and_everyone_has_all_of_it(pico, pair, text_rank):
    made = learn_together(pico, pair, replace(method("dreambooth"), text_encoder_rank=text_rank))
    assert made.whole.name == "my_dog-moongate"
    for part in made.parts:
        assert part.delta.keys() == made.whole.delta.keys()
        assert all(torch.equal(part.delta[n].first, made.whole.delta[n].first) for n in part.delta)


def test_beside_a_keyed_delta_everyone_has_all_of_the_rest_and_a_merge_has_it_once(pico, pair, registry):
    made = learn_together(pico, pair, replace(TINY, gated_lora_rank=2, prior_loss_weight=0.0))
    dog, gate = made.parts
    keyed, rest = (set(pico.sizes), set(gates.maps_without_text(made.whole.delta)))
    assert rest and keyed | rest == set(dog.delta)
    assert all(torch.equal(dog.delta[n].first, gate.delta[n].first) for n in rest)
    assert not all(torch.equal(dog.delta[n].first, gate.delta[n].first) for n in keyed)
    assert gates.rank_gates(dog) == (gates.RankGate(2, ("my_dog",)),)
    assert gates.rank_gates(made.whole) == (gates.RankGate(2, ("my_dog", "moongate")),)
    merged = compose(dog, gate, base=pico, registry=registry).concept
    assert gates.rank_gates(merged) == (gates.RankGate(2, ("moongate", "my_dog")),)
    for name in rest:
        assert torch.allclose(merged.delta[name].dense(), dog.delta[name].dense(), rtol=0.01, atol=1e-4)


def test_both_are_learned_from(pico, pair, shown):
    made = learn_together(pico, pair, replace(TINY, prior_loss_weight=0.0))
    alone = teach(pico, shown, replace(TINY, prior_loss_weight=0.0))
    assert not torch.equal(made.parts[0].tokens["<my_dog>"][0], alone.tokens["<my_dog>"][0])
    other = [pair[0], replace(pair[1], photos=shown)]
    changed = learn_together(pico, other, replace(TINY, prior_loss_weight=0.0))
    assert not torch.equal(made.parts[1].tokens["<moongate>"][0], changed.parts[1].tokens["<moongate>"][0])


def test_they_are_stored_one_by_one_and_together(pico, folder, other_folder, registry):
    photos = {"my_dog": folder, "moongate": other_folder}
    learned = add_together(photos, class_nouns={"moongate": "gate"}, base=pico, registry=registry)
    assert [one.entry.ref for one in learned] == ["my_dog@1", "moongate@1", "my_dog-moongate@1"]
    assert learned[0].notices == ["my_dog was taken to be a dog; give --class NOUN if it is something else."]
    assert registry.preview("my_dog-moongate").startswith(b"\x89PNG")
    assert Concept.from_bytes(registry.read("my_dog-moongate")).provenance["parents"] == [
        "my_dog",
        "moongate",
    ]
    with pytest.raises(NameTaken):
        add_together({"cup": folder, "moongate": other_folder}, base=pico, registry=registry)
    with pytest.raises(BadRecipe, match="two or more things, not 1"):
        add_together({"cup": folder}, base=pico, registry=registry)
    for given in ("class_nouns", "masks", "class_images"):
        with pytest.raises(BadRecipe, match="given for pot, which is not learned here"):
            add_together(
                {"cup": folder, "pan": folder}, base=pico, registry=registry, **{given: {"pot": "x"}}
            )


@pytest.mark.parametrize("at", [0, 1, 2])
def test_all_are_stored_or_none(pico, folder, other_folder, registry, monkeypatch, at):
    """Stopped at any preview all of them are there."""
    monkeypatch.setattr("conceptkit.workflows.add.CheckpointManager", partial(CheckpointManager, every=0.0))
    draw, calls = adding.preview, iter(range(9))

    def preview(*args):
        if next(calls) == at:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr("conceptkit.workflows.add.preview", preview)
    given = {"my_dog": folder, "moongate": other_folder}
    more = {"class_nouns": {"moongate": "gate"}, "base": pico, "registry": registry}
    with pytest.raises(KeyboardInterrupt) as stop:
        add_together(given, **more)
    assert stop.value.__notes__ == [STORED]
    assert sorted(e.name for e in registry.list()) == ["moongate", "my_dog", "my_dog-moongate"]


@pytest.mark.slow
def test_stopped_before_any_is_stored_the_run_goes_on(pico, folder, other_folder, registry, monkeypatch):
    monkeypatch.setattr("conceptkit.workflows.add.CheckpointManager", partial(CheckpointManager, every=0.0))
    given = {"my_dog": folder, "moongate": other_folder}
    more = {"class_nouns": {"moongate": "gate"}, "base": pico, "registry": registry}

    def stopped(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as stop:
        patch.setattr(registry, "add_many", stopped)
        add_together(given, **more)
    assert stop.value.__notes__ == [UNFINISHED] and registry.list() == []
    assert len(add_together(given, resume=True, **more)) == 3


def test_a_part_and_the_whole_have_names_of_their_own(pico, folder, other_folder, registry, monkeypatch):
    monkeypatch.setattr("conceptkit.workflows.add.train", lambda *a, **k: pytest.fail("learned in vain"))
    with pytest.raises(BadRecipe, match="one of its parts are both called my_dog"):
        add_together({"my_dog": folder, "moongate": other_folder}, name="my_dog", registry=registry)


def test_concepts_are_found_by_the_captions_of_their_photos(pico, folder, other_folder, registry, tmp_path):
    told = tmp_path / "told"
    shutil.copytree(folder, told)
    first = min(told.iterdir())
    first.with_suffix(".txt").write_text("a dog in grandmother's garden")
    add_together(
        {"my_dog": told, "moongate": other_folder},
        class_nouns={"moongate": "gate"},
        base=pico,
        registry=registry,
    )
    assert {entry.name for entry in search.search(registry, "garden")} == {"my_dog", "my_dog-moongate"}
    assert b"garden" not in registry.read("my_dog")


@pytest.mark.slow
def test_each_subject_has_masks_of_its_own(pico, folder, other_folder, registry, tmp_path, monkeypatch):
    for name in "78":
        mask = Image.new("L", (44, 36))
        mask.paste(255, (22, 0, 44, 36))
        mask.save(tmp_path / f"{name}.png")
    seen = {}
    pool = latent_dataset.latent_dataset

    def watched(base, photos, words, *args, **more):
        found = pool(base, photos, words, *args, **more)
        seen[words] = (photos.masks, float(found.masks.mean()))
        return found

    monkeypatch.setattr(latent_dataset, "latent_dataset", watched)
    photos = {"my_dog": folder, "moongate": other_folder}
    add_together(photos, base=pico, registry=registry, masks={"moongate": tmp_path})
    assert seen["<my_dog> dog"][0] == () and len(seen["<moongate> gate"][0]) == 2
    assert seen["<moongate> gate"][1] < 0.8 * seen["<my_dog> dog"][1]


@pytest.mark.slow
def test_pictures_are_given_of_one_class_and_drawn_of_the_other(
    pico, folder, other_folder, registry, tmp_path
):
    photos = {"my_dog": folder, "moongate": other_folder}
    ticks = []
    given = {"moongate": folder}
    learned = add_together(
        photos, base=pico, registry=registry, class_images=given, progress=lambda *told: ticks.append(told)
    )
    assert {text for _, _, text in ticks[:1]} == {"drawing dogs"}
    assert ticks[-1][:2] == (TINY.num_class_images + TINY.token_train_steps + TINY.max_train_steps,) * 2
    with Registry(tmp_path / "other") as other:
        drawn = add_together(photos, base=pico, registry=other)
    assert not torch.equal(values(learned[0].concept), values(drawn[0].concept))


def test_pictures_of_a_class_that_two_share_are_put_together(pico, shown, other_folder, folder):
    theirs = pictures.read(other_folder)
    own = [
        Subject("my_dog", "dog", shown, class_images=pictures.read(folder)),
        Subject("your_dog", "dog", theirs, class_images=theirs),
    ]
    found = prior_preservation.of_photo_sets(pico, own)
    assert set(found) == {"dog"} and len(found["dog"].latents) == len(found["dog"].prompts) == 5
    assert prior_preservation.undrawn(own, TINY, found) == []
    assert prior_preservation.undrawn(own, TINY, {}) == ["dog"]
    assert prior_preservation.undrawn(own, replace(TINY, prior_loss_weight=0.0), {}) == []
