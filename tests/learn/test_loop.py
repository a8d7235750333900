"""Learning on pico pipelines: the base comes out untouched, and what was learned is as its seed."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from conceptkit.base import pipeline as bases
from conceptkit.concepts.concept import Concept
from conceptkit.data import photos as pictures
from conceptkit.errors import ConceptError
from conceptkit.inference.attach import attach
from conceptkit.learn import losses, prior_preservation
from conceptkit.learn.trainer import learn_token
from tests import tiny
from tests.learning import TINY, draw_photos, start, teach, ups


def test_a_learned_concept_has_a_token_and_a_delta_with_one_shared_down(pico, shown):
    concept = teach(pico, shown, registry=None)
    assert (concept.name, concept.kind, concept.noun) == ("my_dog", "subject", "dog")
    assert concept.words == {"my_dog": "<my_dog> dog"} and list(concept.tokens) == ["<my_dog>"]
    assert set(concept.delta) == set(pico.sizes)
    assert all(up.any() for up, _ in concept.delta.values())
    assert len(concept.delta.downs) == 1
    assert all(up.shape == (pico.sizes[name], 2) for name, (up, _) in concept.delta.items())
    assert concept.rows is not None and concept.rows.shape == (2, pico.width)
    assert concept.recipe == TINY.to_json()
    assert concept.provenance == {"photos": list(shown.names), "photos_sha256": shown.digest, "seed": 0}
    assert concept.base == pico.fingerprint and concept.base_name == "pico"
    (rows,) = concept.tokens["<my_dog>"]
    assert rows.shape == (1, 32) and not torch.equal(rows, start(pico, shown)[0])
    stored = Concept.from_bytes(concept.to_bytes())
    assert len(stored.to_bytes()) < 10_000
    with attach(pico.pipe, stored):
        tiny.draw(pico.pipe, "a photo of a my_dog")


def test_the_keys_read_one_at_their_own_row_and_nothing_at_the_others(pico, shown):
    concept = teach(pico, shown)
    (_, down) = next(iter(concept.delta.values()))
    assert torch.allclose(concept.rows @ down.T, torch.eye(2), atol=1e-3)
    # so that what the delta adds at its constraint rows are the learned values themselves
    added = torch.cat([factors.apply(concept.rows) for factors in concept.delta.values()], dim=1)
    assert torch.allclose(added, ups(concept).T, atol=1e-3)


def test_same_seed_same_bytes_and_other_photos_other_bytes(pico, shown, tmp_path):
    torch.manual_seed(1)
    one = teach(pico, shown).to_bytes()
    torch.manual_seed(2)
    assert teach(pico, shown).to_bytes() == one
    others = pictures.read(draw_photos(tmp_path, [7, 8, 9]))
    assert teach(pico, others).to_bytes() != one
    assert teach(pico, shown, seed=1).to_bytes() != one


def test_other_photos_other_values_not_only_another_digest(pico, shown, tmp_path):
    others = pictures.read(draw_photos(tmp_path, [7, 8, 9]))
    one, other = teach(pico, shown), teach(pico, others)
    assert not torch.equal(ups(one), ups(other))
    assert not torch.equal(one.tokens["<my_dog>"][0], other.tokens["<my_dog>"][0])


def test_learning_leaves_the_base_and_the_dice_alone(pico, shown, registry):
    before, dice = tiny.snapshot(pico.pipe), torch.random.get_rng_state()
    teach(pico, shown, registry=registry)
    assert torch.equal(torch.random.get_rng_state(), dice)
    assert tiny.snapshot(pico.pipe) == before
    assert bases.of(pico.pipe, "pico").fingerprint == pico.fingerprint


def test_learning_leaves_flags_and_modes_alone(shown):
    pipe = tiny.pico_sd()
    pipe.unet.train()
    pipe.text_encoder.requires_grad_(False)
    before = tiny.snapshot(pipe)
    teach(bases.of(pipe, "pico"), shown)
    assert tiny.snapshot(pipe) == before
    assert pipe.unet.training and not pipe.vae.training
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_a_style_lora_of_the_base_stays_on(shown):
    pipe = tiny.pico_sd()
    style = LoraConfig(r=2, target_modules=["attn1.to_q"], init_lora_weights=False)
    pipe.unet.add_adapter(style, adapter_name="style")
    before = tiny.snapshot(pipe)
    teach(bases.of(pipe, "pico"), shown)
    assert pipe.unet.active_adapters() == ["style"]
    assert tiny.snapshot(pipe) == before


@pytest.mark.parametrize("call", [0, 1, 2, 4])
def test_a_loss_that_is_no_number_is_an_error_that_names_its_step(pico, shown, monkeypatch, call):
    before, mse, calls = tiny.snapshot(pico.pipe), losses.prior_weighted, iter(range(100))

    def broken(*args):
        return mse(*args) * (float("nan") if next(calls) == call else 1.0)

    monkeypatch.setattr(losses, "prior_weighted", broken)
    step = call if call < TINY.token_train_steps else call - TINY.token_train_steps
    with pytest.raises(ConceptError, match=f"no number at step {step};") as error:
        teach(pico, shown)
    assert "\n" not in str(error.value)
    assert tiny.snapshot(pico.pipe) == before


def test_the_other_rows_of_the_token_table_stand_still(pico, shown, monkeypatch):
    table = pico.pipe.text_encoder.get_input_embeddings().weight
    before, seen = table.detach().clone(), []

    def watched(taught, tokens, *more):
        start = tokens.rows[0].detach().clone()
        learn_token(taught, tokens, *more)
        seen.append((start, tokens.rows[0].detach().clone(), tokens.tables[0].weight.detach().clone()))

    monkeypatch.setattr("conceptkit.learn.trainer.learn_token", watched)
    teach(pico, shown, replace(TINY, token_train_steps=3, max_train_steps=1))
    ((start, end, during),) = seen
    assert not torch.equal(start, end)
    assert torch.equal(during[: len(before)], before)
    assert torch.equal(pico.pipe.text_encoder.get_input_embeddings().weight, before)


def test_the_token_stands_still_while_the_delta_learns(pico, shown):
    short, long = (teach(pico, shown, replace(TINY, max_train_steps=steps)) for steps in (1, 4))
    assert torch.equal(short.tokens["<my_dog>"][0], long.tokens["<my_dog>"][0])
    assert not torch.equal(ups(short), ups(long))


def test_no_two_concepts_begin_at_one_place(pico, shown):
    (mine,), (yours,) = start(pico, shown), start(pico, shown, name="your_dog")
    table = pico.encoders[0][1].get_input_embeddings().weight.detach()
    (dog,) = table[pico.encoders[0][0]("dog", add_special_tokens=False).input_ids].mean(0, keepdim=True)
    away = mine[0] - dog, yours[0] - dog
    assert torch.allclose(away[0].norm(), TINY.token_init_noise * dog.norm())
    assert abs(torch.cosine_similarity(*away, dim=0)) < 0.7


def test_a_token_alone_and_a_delta_alone(pico, shown):
    word = teach(pico, shown, replace(TINY, max_train_steps=0))
    assert not word.delta and word.rows is None
    assert Concept.from_bytes(word.to_bytes()).tokens
    look = teach(pico, shown, replace(TINY, token_train_steps=0))
    assert torch.equal(look.tokens["<my_dog>"][0], start(pico, shown)[0]) and ups(look).any()


def test_full_matrices_are_learned_with_rank_0(pico, shown):
    before = tiny.snapshot(pico.pipe)
    concept = teach(pico, shown, replace(TINY, rank=0))
    assert {name: (len(f.tensors), f.first.shape) for name, f in concept.delta.items()} == {
        name: (1, (o, pico.width)) for name, o in pico.sizes.items()
    }
    assert ups(concept).any()
    assert tiny.snapshot(pico.pipe) == before


def test_a_concept_without_a_noun_has_no_prior(pico, shown, registry, monkeypatch):
    monkeypatch.setattr(prior_preservation, "of_class", lambda *a: pytest.fail("there is no class to draw"))
    concept = teach(pico, shown, noun=None, registry=registry)
    assert concept.words == {"my_dog": "<my_dog>"} and ups(concept).any()


def test_learning_lowers_the_loss_of_the_subject(pico, shown, monkeypatch):
    seen = []
    mse = losses.masked_mse
    monkeypatch.setattr(losses, "masked_mse", lambda *a: seen.append(mse(*a)) or seen[-1])
    # one noise and one view again and again: what is left to learn is the answer
    monkeypatch.setattr("conceptkit.learn.training_step.hash_of", lambda *key: 5)
    teach(
        pico,
        shown,
        replace(TINY, token_train_steps=0, max_train_steps=30, prior_loss_weight=0.0, learning_rate=0.05),
    )
    assert seen[-1] < 0.97 * seen[0]


def test_sdxl_learns(shown):
    pico = bases.of(tiny.pico_sdxl(), "pico-xl")
    before = tiny.snapshot(pico.pipe)
    concept = teach(pico, shown, replace(TINY, token_train_steps=1, max_train_steps=1))
    assert tiny.snapshot(pico.pipe) == before
    assert [rows.shape[1] for rows in concept.tokens["<my_dog>"]] == [32, 48]
    starts = start(pico, shown)
    assert all(not torch.equal(a, b) for a, b in zip(concept.tokens["<my_dog>"], starts, strict=True))
    assert all(up.any() for up, _ in concept.delta.values())


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_other_predictions_learn_other_values(shown, pico, prediction):
    other = bases.of(tiny.pico_sd(prediction=prediction), "pico")
    assert not torch.equal(ups(teach(other, shown)), ups(teach(pico, shown)))
