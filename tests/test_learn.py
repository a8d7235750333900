"""Learning on pico pipelines: losses are as published, the base comes out untouched, the registry whole."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDPMScheduler
from peft import LoraConfig
from PIL import Image

from conceptkit import base as bases
from conceptkit import metric
from conceptkit import photos as pictures
from conceptkit.attach import attach
from conceptkit.concept import Concept, apply
from conceptkit.errors import BadBase, BadName, BadPhotos, BadRecipe, ConceptError, NameTaken
from conceptkit.evaluate.metrics import AttributeJudge
from conceptkit.kv_delta import install, uninstall
from conceptkit.learn import add, learn, losses, priors, recipe_for, views
from conceptkit.learn.loop import _learn_token, first_rows, hash_of
from conceptkit.recipes import DEFAULT, RECIPES, Recipe
from conceptkit.registry.store import Registry
from tests import tiny

TINY = Recipe(
    "custom",
    token_steps=2,
    steps=3,
    rank=2,
    batch=2,
    prior_batch=2,
    prior_size=4,
    prior_steps=2,
    views=6,
)
SEEDS = [0, 1, 2]


def start(base, photos, name="my_dog", recipe=None):
    """Where the word of `teach` begins."""
    return first_rows(base, "dog", (recipe or TINY).aside, hash_of(0, name, photos.digest))


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    texts = bases.captions("any")[:40]
    monkeypatch.setattr(metric, "captions", lambda name: texts)


@pytest.fixture(autouse=True)
def tiny_recipe(monkeypatch):
    monkeypatch.setitem(RECIPES, DEFAULT, TINY)


@pytest.fixture(scope="module")
def pico() -> bases.Base:
    return bases.of(tiny.pico_sd(), "pico")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("dog"), SEEDS)


@pytest.fixture(scope="module")
def shown(folder) -> pictures.PhotoSet:
    return pictures.read(folder)


@pytest.fixture
def registry():
    with Registry() as registry:
        yield registry


def draw_photos(folder, seeds):
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(0, 255, (36, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def teach(pico: bases.Base, shown: pictures.PhotoSet, recipe: Recipe = TINY, **more) -> Concept:
    return learn(pico, shown, "my_dog", more.pop("noun", "dog"), recipe, **more)


def ups(concept: Concept) -> torch.Tensor:
    return torch.cat([factors[0] for factors in concept.delta.values()])


# losses


def test_leak_is_the_dense_trace():
    make = torch.Generator().manual_seed(0)
    up, down = torch.randn(30, 3, generator=make).double(), torch.randn(3, 12, generator=make).double()
    features = torch.randn(50, 12, generator=make).double()
    gram, dense = features.T @ features / 50, up @ down
    assert torch.allclose(losses.leak(up, down, gram), torch.trace(dense @ gram @ dense.T))
    assert torch.allclose(losses.leak(up, down, gram), (dense @ features.T).square().sum() / 50)


def test_masked_mse_is_the_mean_over_the_masked_cells():
    make = torch.Generator().manual_seed(1)
    found, wanted = torch.randn(2, 4, 6, 6, generator=make), torch.randn(2, 4, 6, 6, generator=make)
    mask = torch.zeros(2, 6, 6)
    mask[0, 1:3, 2:5] = 1
    mask[1] = 1
    boxes = [(found[0, :, 1:3, 2:5] - wanted[0, :, 1:3, 2:5]), found[1] - wanted[1]]
    expected = torch.cat([box.flatten() for box in boxes]).square().mean()
    assert torch.allclose(losses.masked_mse(found, wanted, mask), expected)
    elsewhere = found + 100 * (1 - mask.unsqueeze(1))
    assert torch.allclose(losses.masked_mse(elsewhere, wanted, mask), expected)
    assert losses.masked_mse(found, wanted, torch.zeros_like(mask)) == 0


def test_timesteps_are_spread_over_all_of_the_noise():
    t = losses.spread(8, 1000, torch.Generator().manual_seed(3))
    assert sorted((t // 125).tolist()) == list(range(8)) and t.tolist() != sorted(t.tolist())


def test_noise_and_targets_are_those_of_the_scheduler():
    schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    make = torch.Generator().manual_seed(2)
    clean, noise = torch.randn(5, 4, 8, 8, generator=make), torch.randn(5, 4, 8, 8, generator=make)
    t = torch.tensor([0, 1, 400, 850, 999])
    bars = schedule.alphas_cumprod[t]
    noisy = losses.add_noise(clean, noise, bars)
    assert torch.allclose(noisy, schedule.add_noise(clean, noise, t), atol=1e-6)
    velocity = losses.target("v_prediction", clean, noise, bars)
    assert torch.allclose(velocity, schedule.get_velocity(clean, noise, t), atol=1e-6)
    assert losses.target("epsilon", clean, noise, bars) is noise
    assert losses.target("sample", clean, noise, bars) is clean
    with pytest.raises(BadBase, match="'flow'"):
        losses.target("flow", clean, noise, bars)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_what_the_scheduler_makes_of_a_perfect_prediction_is_the_picture(prediction):
    """The targets mean what a sampler takes them for."""
    schedule = tiny.scheduler("ddim", prediction)
    schedule.set_timesteps(10)
    clean, noise, t = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), schedule.timesteps[4:5]
    bars = schedule.alphas_cumprod[t]
    noisy = losses.add_noise(clean, noise, bars)
    told = losses.target(prediction, clean, noise, bars)
    found = schedule.step(told, int(t), noisy).pred_original_sample
    assert torch.allclose(found, clean, atol=1e-4)


def test_the_prior_is_added_with_its_weight():
    subject, prior = torch.tensor(2.0), torch.tensor(3.0)
    assert losses.prior_weighted(subject, prior, 0.5) == 3.5
    assert losses.prior_weighted(subject, None, 0.5) == 2.0


# views


def test_prompts_of_views_read_well(pico, shown, monkeypatch):
    monkeypatch.setattr(views, "SMALL", 0)
    prompts = views.pool(pico, shown, "<my_dog> dog", 900, seed=0).prompts
    assert {
        "photo of a <my_dog> dog",
        "photo of a far away <my_dog> dog",
        "a photo of a very small <my_dog> dog",
        "a zoomed in <my_dog> dog",
        "a picture of a close up <my_dog> dog",
    } <= set(prompts)
    kinds = ("", "far away ", "very small ", "zoomed in ", "close up ")
    assert set(prompts) == {
        context.format(kind + "<my_dog> dog") for context in views.CONTEXTS for kind in kinds
    }


@pytest.mark.parametrize("words", ["<x> panda bear", "<a> tea pot", "<pizza>"])
def test_prompts_of_views_keep_words_together(pico, shown, words):
    for prompt in views.pool(pico, shown, words, 60, seed=0).prompts:
        assert f" {words}" in prompt and " a a " not in prompt


def test_a_pool_is_as_its_seed(pico, shown):
    pool, again, other = (views.pool(pico, shown, "<x> dog", 12, seed) for seed in (0, 0, 1))
    assert pool.latents.shape == (12, 4, 8, 8) and pool.masks.shape == (12, 8, 8)
    assert torch.equal(pool.latents, again.latents) and pool.prompts == again.prompts
    assert not torch.equal(pool.latents, other.latents)
    assert 0 < pool.masks.mean() < 1


# learning


def test_a_learned_concept_has_a_token_and_a_delta_with_one_shared_down(pico, shown):
    concept = teach(pico, shown, registry=None)
    assert (concept.name, concept.kind, concept.noun) == ("my_dog", "subject", "dog")
    assert concept.words == {"my_dog": "<my_dog> dog"} and list(concept.tokens) == ["<my_dog>"]
    assert set(concept.delta) == set(pico.sizes)
    assert all(up.any() for up, _ in concept.delta.values())
    assert len({id(down) for _, down in concept.delta.values()}) == 1
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
    added = torch.cat([apply(factors, concept.rows) for factors in concept.delta.values()], dim=1)
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
    step = call if call < TINY.token_steps else call - TINY.token_steps
    with pytest.raises(ConceptError, match=f"no number at step {step};") as error:
        teach(pico, shown)
    assert "\n" not in str(error.value)
    assert tiny.snapshot(pico.pipe) == before


def test_the_other_rows_of_the_token_table_stand_still(pico, shown, monkeypatch):
    table = pico.pipe.text_encoder.get_input_embeddings().weight
    before, seen = table.detach().clone(), []

    def watched(lesson, tokens, tick):
        start = tokens.rows[0].detach().clone()
        _learn_token(lesson, tokens, tick)
        seen.append((start, tokens.rows[0].detach().clone(), tokens.tables[0].weight.detach().clone()))

    monkeypatch.setattr("conceptkit.learn.loop._learn_token", watched)
    teach(pico, shown, replace(TINY, token_steps=3, steps=1))
    ((start, end, during),) = seen
    assert not torch.equal(start, end)
    assert torch.equal(during[: len(before)], before)
    assert torch.equal(pico.pipe.text_encoder.get_input_embeddings().weight, before)


def test_the_token_stands_still_while_the_delta_learns(pico, shown):
    short, long = (teach(pico, shown, replace(TINY, steps=steps)) for steps in (1, 4))
    assert torch.equal(short.tokens["<my_dog>"][0], long.tokens["<my_dog>"][0])
    assert not torch.equal(ups(short), ups(long))


def test_no_two_concepts_begin_at_one_place(pico, shown):
    (mine,), (yours,) = start(pico, shown), start(pico, shown, name="your_dog")
    table = pico.encoders[0][1].get_input_embeddings().weight.detach()
    (dog,) = table[pico.encoders[0][0]("dog", add_special_tokens=False).input_ids].mean(0, keepdim=True)
    away = mine[0] - dog, yours[0] - dog
    assert torch.allclose(away[0].norm(), TINY.aside * dog.norm())
    assert abs(torch.cosine_similarity(*away, dim=0)) < 0.7


def test_a_token_alone_and_a_delta_alone(pico, shown):
    word = teach(pico, shown, replace(TINY, steps=0))
    assert not word.delta and word.rows is None
    assert Concept.from_bytes(word.to_bytes()).tokens
    look = teach(pico, shown, replace(TINY, token_steps=0))
    assert torch.equal(look.tokens["<my_dog>"][0], start(pico, shown)[0]) and ups(look).any()


def test_full_matrices_are_learned_with_rank_0(pico, shown):
    before = tiny.snapshot(pico.pipe)
    concept = teach(pico, shown, replace(TINY, rank=0))
    assert {name: (len(f), f[0].shape) for name, f in concept.delta.items()} == {
        name: (1, (o, pico.width)) for name, o in pico.sizes.items()
    }
    assert ups(concept).any()
    assert tiny.snapshot(pico.pipe) == before


def test_a_concept_without_a_noun_has_no_prior(pico, shown, registry, monkeypatch):
    monkeypatch.setattr(priors, "of_class", lambda *a: pytest.fail("there is no class to draw"))
    concept = teach(pico, shown, noun=None, registry=registry)
    assert concept.words == {"my_dog": "<my_dog>"} and ups(concept).any()


def test_learning_lowers_the_loss_of_the_subject(pico, shown, monkeypatch):
    seen = []
    mse = losses.masked_mse
    monkeypatch.setattr(losses, "masked_mse", lambda *a: seen.append(mse(*a)) or seen[-1])
    # one noise and one view again and again: what is left to learn is the answer
    monkeypatch.setattr("conceptkit.learn.loop.hash_of", lambda *key: 5)
    teach(pico, shown, replace(TINY, token_steps=0, steps=30, prior_weight=0.0, lr=0.05))
    assert seen[-1] < 0.97 * seen[0]


def test_sdxl_learns(shown):
    pico = bases.of(tiny.pico_sdxl(), "pico-xl")
    before = tiny.snapshot(pico.pipe)
    concept = teach(pico, shown, replace(TINY, token_steps=1, steps=1))
    assert tiny.snapshot(pico.pipe) == before
    assert [rows.shape[1] for rows in concept.tokens["<my_dog>"]] == [32, 48]
    starts = start(pico, shown)
    assert all(not torch.equal(a, b) for a, b in zip(concept.tokens["<my_dog>"], starts, strict=True))
    assert all(up.any() for up, _ in concept.delta.values())


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_other_predictions_learn_other_values(shown, pico, prediction):
    other = bases.of(tiny.pico_sd(prediction=prediction), "pico")
    assert not torch.equal(ups(teach(other, shown)), ups(teach(pico, shown)))


# what the recipe switches


@pytest.mark.parametrize(
    "other", [{"prior_weight": 0.0}, {"prior_weight": 0.5}, {"leak": 5.0}, {"lr": 1e-3}, {"prior_size": 0}]
)
def test_the_prior_the_leak_and_the_rate_change_what_is_learned(pico, shown, other):
    """The delta alone learns beside the prior, so the word is the same and the values are not."""
    usual, changed = teach(pico, shown), teach(pico, shown, replace(TINY, **other))
    assert torch.equal(usual.tokens["<my_dog>"][0], changed.tokens["<my_dog>"][0])
    assert not torch.equal(ups(usual), ups(changed))


def test_a_heavy_leak_holds_the_delta_back(pico, shown):
    def spilt(concept: Concept) -> float:
        (_, down) = next(iter(concept.delta.values()))
        return float(losses.leak(ups(concept), down, metric.of_base(pico).gram))

    free, held = (teach(pico, shown, replace(TINY, steps=12, leak=leak)) for leak in (0.0, 1e4))
    assert spilt(held) < 0.5 * spilt(free)


def test_the_mask_changes_what_is_learned(pico, shown, monkeypatch):
    monkeypatch.setattr(views, "SMALL", 0)
    usual = teach(pico, shown)
    pool = views.pool

    def unmasked(*args):
        found = pool(*args)
        return replace(found, masks=torch.ones_like(found.masks))

    monkeypatch.setattr(views, "pool", unmasked)
    whole = teach(pico, shown)
    assert not torch.equal(usual.tokens["<my_dog>"][0], whole.tokens["<my_dog>"][0])
    assert not torch.equal(ups(usual), ups(whole))


def test_cells_outside_the_mask_give_no_gradient():
    found, wanted = torch.randn(1, 4, 6, 6, requires_grad=True), torch.randn(1, 4, 6, 6)
    mask = torch.zeros(1, 6, 6)
    mask[0, 2:4, 2:4] = 1
    losses.masked_mse(found, wanted, mask).backward()
    assert torch.equal(found.grad.abs().sum(1).bool(), mask.bool())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"steps": 0, "token_steps": 0}, "0 steps"),
        ({"steps": -5}, "steps = -5"),
        ({"token_steps": -1}, "token_steps = -1"),
        ({"rank": -2}, "rank = -2"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(pico, shown, values, named):
    with pytest.raises(BadRecipe, match=named):
        teach(pico, shown, replace(TINY, **values))


def test_a_pipeline_that_carries_concepts_is_no_base_to_learn_on(pico, shown):
    with attach(pico.pipe, tiny.pico_concept(pico.pipe, "moongate", "gate")):
        carrying = tiny.snapshot(pico.pipe, "a moongate")
        with pytest.raises(ConceptError, match="carries moongate"):
            teach(pico, shown)
        assert tiny.snapshot(pico.pipe, "a moongate") == carrying


def test_another_delta_on_the_unet_survives_the_refusal(pico, shown):
    other = tiny.pico_concept(pico.pipe)
    install(pico.unet, other.delta)
    try:
        carrying = tiny.state_hash(pico.unet)
        with pytest.raises(ConceptError, match="already carries"):
            teach(pico, shown)
        assert tiny.state_hash(pico.unet) == carrying
    finally:
        uninstall(pico.unet)


# prior sets


def test_a_prior_set_is_drawn_once_and_shared(pico, shown, registry, monkeypatch):
    drawn = []
    draw = priors._draw
    monkeypatch.setattr(priors, "_draw", lambda *a: drawn.append(a[1]) or draw(*a))
    first = teach(pico, shown, registry=registry)
    assert len(drawn) == 1 and len(drawn[0]) == TINY.prior_size
    second = teach(pico, shown, registry=registry)
    assert len(drawn) == 1
    assert first.to_bytes() == second.to_bytes() == teach(pico, shown, registry=None).to_bytes()
    teach(pico, shown, noun="cat", registry=registry)
    teach(pico, shown, replace(TINY, prior_steps=3), registry=registry)
    other = bases.of(tiny.pico_sd(seed=5), "pico")
    teach(other, shown, registry=registry)
    assert len(drawn) == 5, "another class, other steps or another base need a set of their own"


def test_prior_prompts_name_the_class_and_are_as_many_as_asked():
    prompts = priors.prompts_for("dog", "pico", 10)
    assert len(prompts) == 10
    assert all("dog" in prompt.split() for prompt in prompts)
    assert priors.prompts_for("coffee cup", "pico", 3) == ("photo of a coffee cup",) * 3


def test_prior_sets_come_back_from_their_bytes():
    there = priors.PriorSet(torch.randn(3, 4, 8, 8).half().float(), ("a dog", "a café", "a dog"))
    data = there.to_bytes()
    back = priors.PriorSet.from_bytes(data)
    assert torch.equal(back.latents, there.latents) and back.prompts == there.prompts
    assert data == there.to_bytes()
    assert set(safetensors.torch.load(data)) == {"latents"}


def test_a_prior_set_does_not_depend_on_how_many_are_drawn_at_once(pico, monkeypatch):
    tick = []
    whole = priors._draw(pico, ("a dog",) * 5, TINY, lambda *at: None)
    monkeypatch.setattr(priors, "BATCH", 2)
    parts = priors._draw(pico, ("a dog",) * 5, TINY, lambda *at: tick.append(at))
    assert torch.allclose(whole, parts, atol=1e-4)
    assert tick == [(2, 5), (4, 5), (5, 5)]
    assert not torch.allclose(whole[0], whole[1])


# add


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
    assert {text for *_, text in steps} == {"drawing dogs", "learning the word", "learning the look"}
    again = add("my_dog", folder, base=pico, registry=registry, new_version=True)
    assert again.entry.ref == "my_dog@2" and again.entry.hash == entry.hash


def test_progress_counts_only_what_is_done(pico, shown):
    steps = []
    teach(pico, shown, replace(TINY, prior_weight=0.0), tick=lambda *at: steps.append(at))
    assert [at[:2] for at in steps] == [(k, 5) for k in range(1, 6)]


def test_the_noun_is_taken_from_the_name_or_the_folder_and_said(
    pico, folder, registry, tmp_path, monkeypatch
):
    monkeypatch.setattr("conceptkit.learn.preview", lambda *a: Image.new("RGB", (8, 8)))
    learned = add("my_dog", folder, base=pico, registry=registry)
    assert learned.concept.noun == "dog"
    assert learned.notices == ["my_dog was taken to be a dog; give --class NOUN if it is something else."]
    cats = tmp_path / "cats"
    cats.mkdir()
    file = next(iter(draw_photos(cats, [4]).iterdir()))
    for photos in (cats, [file], str(file)):
        learned = add("tom", photos, base=pico, registry=registry, new_version=True)
        assert learned.concept.noun == "cat" and "taken to be a cat" in learned.notices[0]
    given = add("rex", folder, noun="dog", base=pico, registry=registry)
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
        add("my_dog", folder, noun="unicorn", base=storybook, registry=registry)
    assert "\n" not in str(error.value) and registry.list() == []


def test_photos_that_look_nothing_like_the_storybook_are_noticed(pico, shown, monkeypatch):
    from conceptkit.learn import _faint

    storybook = bases.of(pico.pipe, bases.STORYBOOK)
    monkeypatch.setattr(AttributeJudge, "__init__", lambda self: None)
    for sure, count in ((0.1, 1), (0.9, 0)):
        monkeypatch.setattr(AttributeJudge, "familiar", lambda *a, sure=sure: sure)
        notices = _faint(storybook, shown)
        assert len(notices) == count and all("--base" in text for text in notices)
    monkeypatch.setattr(AttributeJudge, "familiar", lambda *a: pytest.fail("only the storybook is asked"))
    assert _faint(pico, shown) == []


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
    monkeypatch.setattr("conceptkit.learn.learn", lambda *a, **k: pytest.fail("learned in vain"))
    with pytest.raises(NameTaken):
        add("my_dog", folder, base=pico, registry=registry)


@pytest.mark.parametrize("phase", ["drawing dogs", "learning the word", "learning the look"])
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
    name = {"preview": "conceptkit.learn.preview", "learn": "conceptkit.learn.losses.masked_mse"}[part]

    def broken(*args, **more):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(name, broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        add("my_dog", folder, base=pico, registry=registry)
    assert registry.list() == []
    assert tiny.snapshot(pico.pipe) == before


def test_steps_are_shared_between_the_word_and_the_look():
    for steps in (1, 2, 5, 300):
        recipe = recipe_for(steps=steps)
        assert recipe.token_steps + recipe.steps == steps and recipe.steps >= 1
    assert recipe_for() == TINY and recipe_for(rank=7).rank == 7
