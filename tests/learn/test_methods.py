"""Every method learns what it says and nothing else; without its distinguishing term the gradients differ."""

import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from conceptkit.base import attention, conditioning, pipeline
from conceptkit.base.architectures import Architecture
from conceptkit.concepts import gates
from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadRecipe
from conceptkit.features import caption_statistics, captions
from conceptkit.features.closed_form import factor
from conceptkit.features.concept_rows import MOST_ROWS, class_noun_rows
from conceptkit.formats.peft import lora
from conceptkit.inference.attach import attach
from conceptkit.learn import losses, trainable_delta
from conceptkit.learn.config import DEFAULT_CONFIGS, config_for
from conceptkit.learn.methods.base import Prepared
from conceptkit.learn.methods.table import adapter_of, adapters, method_of_adapter
from conceptkit.learn.subject import Subject
from conceptkit.learn.trainer import learn
from conceptkit.merging.compose import compose
from conceptkit.tuners import inject, targets
from conceptkit.tuners.inject import install_on, uninstall_from
from tests import tiny
from tests.learning import TINY, learn_together, method, outcome, start, teach, values


def maps(pico, preset):
    return list(targets.find(pico.unet, Architecture.presets[preset]))


@pytest.mark.parametrize("name", ["custom-diffusion", "dreambooth", "dreambooth-full", "textual-inversion"])
def test_every_method_learns_and_leaves_the_base_alone(pico, shown, name):
    before = tiny.snapshot(pico.pipe)
    concept = teach(pico, shown, method(name))
    assert tiny.snapshot(pico.pipe) == before
    assert concept.recipe["method"] == name
    stored = Concept.from_bytes(concept.to_bytes())
    plain = tiny.draw(pico.pipe, "a photo of a dog")
    with attach(pico.pipe, stored):
        assert not torch.equal(tiny.draw(pico.pipe, "a photo of a my_dog"), plain)
    assert tiny.snapshot(pico.pipe) == before


def test_textual_inversion_learns_its_vectors_and_nothing_else(pico, shown):
    concept = teach(pico, shown, method("textual-inversion", num_vectors=3))
    assert not concept.delta and concept.rows is None
    (rows,) = concept.tokens["<my_dog>"]
    (noun,) = start(pico, shown, recipe=replace(TINY, token_init_noise=0.0))
    assert rows.shape == (3, 32)
    assert not torch.equal(rows, noun.expand(3, -1)) and torch.allclose(rows, noun, atol=0.1)
    assert not torch.equal(rows[0], rows[1]), "each vector learns by itself"


def test_custom_diffusion_learns_token_and_maps_together(pico, shown):
    recipe = method("custom-diffusion")
    concept = teach(pico, shown, recipe)
    learned = maps(pico, "cross")
    assert list(concept.delta) == learned
    assert all((up.shape[1], down.shape[0]) == (2, 2) for up, down in concept.delta.values())
    assert len(concept.delta.downs) == len(learned)
    assert not gates.rank_gates(concept), "what it learns acts on every picture"
    still = teach(pico, shown, replace(recipe, train_token_jointly=False))
    moved, rare = concept.tokens["<my_dog>"][0], still.tokens["<my_dog>"][0]
    assert not torch.equal(moved, rare)
    table = pico.encoders[0][1].get_input_embeddings().weight
    assert (table == rare).all(dim=1).any(), "it began as a token of the vocabulary"
    assert concept.provenance["identifier"] == still.provenance["identifier"]


def test_nothing_is_learned_from_keys_and_values_at_bos(pico, shown, monkeypatch):
    """A prompt that is all BOS teaches nothing, and does without the option."""
    recipe = method("custom-diffusion", train_token_jointly=False, target_modules="kv")

    def gradients(detach):
        changed = replace(recipe, detach_bos=detach)
        with adapter_of(changed).inject(pico, changed, 0, Prepared([])) as look:
            hidden = torch.randn(1, 1, pico.width, generator=torch.Generator().manual_seed(0))
            made = pico.unet(torch.ones(1, 4, 8, 8), 10, hidden).sample
            if not made.requires_grad:
                return 0.0
            made.square().sum().backward()
            return float(sum(p.grad.abs().sum() for p in look.parameters if p.grad is not None))

    assert gradients(True) == 0 and gradients(False) > 0
    assert not torch.equal(
        *(values(teach(pico, shown, replace(recipe, detach_bos=d))) for d in (True, False))
    )


@pytest.mark.parametrize(("preset", "count"), [("kv", 14), ("cross", 28)])
def test_custom_diffusion_learns_full_matrices_where_it_is_told(pico, shown, preset, count):
    concept = teach(
        pico, shown, replace(method("custom-diffusion", target_modules=preset, prior_loss_weight=0.0), rank=0)
    )
    assert list(concept.delta) == maps(pico, preset) and len(concept.delta) == count
    assert all(".attn2." in name for name in concept.delta)
    assert all(factors.down is None and factors.first.any() for factors in concept.delta.values())
    assert not gates.rank_gates(concept), "what is not told apart by ranks acts on every picture"


@pytest.mark.parametrize(("preset", "count"), [("kv", 14), ("cross", 28), ("attn", 56), ("attn+ff", 70)])
def test_dreambooth_lays_a_lora_on_the_maps_it_names(pico, shown, preset, count):
    concept = teach(pico, shown, method("dreambooth", target_modules=preset, text_encoder_rank=0))
    assert list(concept.delta) == maps(pico, preset) and len(concept.delta) == count
    assert all(up.shape[1] == down.shape[0] == 2 for up, down in concept.delta.values())
    assert all(up.any() and down.any() for up, down in concept.delta.values())
    again = Concept.from_bytes(concept.to_bytes())
    assert list(again.delta) == sorted(concept.delta)


def test_a_lora_is_exported_and_loaded_by_plain_diffusers(pico, shown, tmp_path):
    concept = teach(pico, shown, method("dreambooth", target_modules="attn+ff", text_encoder_rank=2))
    fresh = tiny.pico_sd()
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(lora(concept))
    fresh.load_lora_weights(tmp_path)
    told = tiny.draw(fresh, "a photo of a cat")
    with attach(pico.pipe, concept), pytest.warns(UserWarning, match="mentions none"):
        assert torch.allclose(tiny.draw(pico.pipe, "a photo of a cat"), told, atol=1e-5)


def test_a_lora_on_the_text_encoders_too(shown):
    pico = pipeline.of(tiny.pico_sdxl(), "pico-xl")
    before = tiny.snapshot(pico.pipe)
    concept = teach(pico, shown, method("dreambooth", text_encoder_rank=1, target_modules="kv"))
    assert tiny.snapshot(pico.pipe) == before
    split = concept.delta.by_component()
    assert list(split) == ["unet", "text_encoder", "text_encoder_2"]
    assert all(len(part) == 8 for place, part in split.items() if place != "unet")
    # SDXL reads the last layer but one, so that the last one of its first encoder has nothing to learn
    assert {bool(up.any()) for n, (up, _) in split["text_encoder"].items() if ".0." in n} == {True}
    stored = Concept.from_bytes(concept.to_bytes())
    plain = pico.pipe.encode_prompt(prompt="a dog", do_classifier_free_guidance=False)[0]
    install_on(pico.pipe, stored.delta)
    read = pico.pipe.encode_prompt(prompt="a dog", do_classifier_free_guidance=False)[0]
    uninstall_from(pico.pipe)
    assert not torch.equal(read, plain)
    assert tiny.snapshot(pico.pipe) == before


def test_full_fine_tuning_reaches_every_linear_map_and_is_cut_to_low_rank(pico, shown):
    whole = teach(pico, shown, method("dreambooth-full"))
    linear = {name for name, module in pico.unet.named_modules() if isinstance(module, nn.Linear)}
    assert set(whole.delta) == linear and all(factors.down is None for factors in whole.delta.values())
    assert sum(bool(factors.first.any()) for factors in whole.delta.values()) == len(linear)
    low = teach(pico, shown, method("dreambooth-full", extract_rank=2))
    assert {f.first.shape[1] for n, f in low.delta.items()} == {2}
    for name, factors in low.delta.items():
        left, sizes, right = torch.linalg.svd(whole.delta[name].first)
        best = left[:, :2] * sizes[:2] @ right[:2]
        assert torch.allclose(factors.dense(), best, atol=1e-6)


def test_full_fine_tuning_is_what_moving_the_weights_would_be(pico, shown):
    """A full delta beside a map gets the gradient that the map itself would get."""
    latents, hidden = torch.ones(1, 4, 8, 8), torch.ones(1, 5, pico.width)
    recipe = method("dreambooth-full")
    with adapter_of(recipe).inject(pico, recipe, 0, Prepared([])) as look:
        pico.unet(latents, 10, hidden).sample.square().sum().backward()
        found = {
            name: layer.factors(inject.ADAPTER).first.grad.clone()
            for name, layer in trainable_delta.layers(pico.unet)
        }
        assert len(look.parameters) == len(found)
    fresh = tiny.pico_sd().unet
    fresh(latents, 10, hidden).sample.square().sum().backward()
    for name, grad in found.items():
        assert torch.allclose(grad, fresh.get_submodule(name).weight.grad, atol=1e-4), name


def test_prior_preservation_changes_dreambooth(pico, shown):
    with_prior, without = (teach(pico, shown, method("dreambooth", prior_loss_weight=w)) for w in (1.0, 0.0))
    assert not torch.equal(values(with_prior), values(without))


def test_each_photo_set_has_a_rare_token_that_is_no_common_word(pico, shown):
    concept = teach(pico, shown, method("dreambooth"))
    identifier = concept.provenance["identifier"]
    seen = {word for text in captions.captions("pico") for word in text.split()}
    assert 1 <= len(identifier) <= 3 and identifier not in seen
    assert concept.words == {"my_dog": "<my_dog> dog"}


@pytest.mark.parametrize("kind", ["custom", "textual-inversion", "dreambooth"])
def test_a_style_has_no_class(pico, shown, kind):
    recipe = TINY if kind == "custom" else method(kind)
    made = outcome(pico, shown, recipe, kind="style", noun=None)
    concept = made.whole
    assert concept.kind == "style" and concept.noun is None and concept.words == {"my_dog": "<my_dog>"}
    with attach(pico.pipe, concept):
        tiny.draw(pico.pipe, "a dog in the style of my_dog")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_sude_changes_what_is_learned_on_every_kind_of_base(shown, prediction):
    if prediction == "flow":
        pipe = tiny.pico_sd()
        pipe.register_modules(scheduler=FlowMatchEulerDiscreteScheduler())
    else:
        pipe = tiny.pico_sd(prediction=prediction)
    base = pipeline.of(pipe, "pico")
    recipe = method("dreambooth", prior_loss_weight=0.0)
    plain, pulled, other = (
        values(teach(base, shown, replace(recipe, sude_weight=weight, sude_timestep_weighting=variant)))
        for weight, variant in ((0.0, "code"), (5.0, "code"), (5.0, "paper"))
    )
    assert not torch.equal(plain, pulled) and not torch.equal(pulled, other)
    assert torch.isfinite(pulled).all()


@pytest.mark.parametrize("name", ["custom", "custom-diffusion", "textual-inversion", "dreambooth"])
def test_sude_goes_on_top_of_any_method_and_one_photo_is_enough(pico, shown, name):
    one = replace(shown, pictures=shown.pictures[:1], names=shown.names[:1])
    recipe = TINY if name == "custom" else method(name)
    concept = teach(pico, one, replace(recipe, sude_weight=1.0))
    assert concept.recipe["sude_weight"] == 1.0
    assert not torch.equal(values(concept), values(teach(pico, one, recipe)))


def test_penalties_at_edges_hold_the_delta_back(pico, shown):
    from conceptkit.learn.methods.regularizers import _edges

    def spilt(concept):
        moment = _edges(pico, [concept]).float()
        return float(sum(losses.leak(f.dense(), torch.eye(32), moment) for f in concept.delta.values()))

    recipe = method("custom-diffusion", train_token_jointly=False, target_modules="kv")
    free, held = (
        teach(pico, shown, replace(recipe, max_train_steps=10, special_token_preservation_weight=edges))
        for edges in (0.0, 1e5)
    )
    assert spilt(held) < 0.5 * spilt(free)


def test_locked_keys_are_those_of_the_class(pico, shown):
    from conceptkit.learn.methods.key_locking import class_rows

    concept = teach(pico, shown, replace(TINY, lock_keys=True))
    of_class = class_rows(concept, pico, concept.rows).float()
    free = teach(pico, shown, TINY)
    for name, linear in attention.kv_maps(pico.unet).items():
        up, down = concept.delta[name]
        made = concept.rows @ (linear.weight + up @ down).T
        wanted = of_class @ linear.weight.T
        if name.endswith("to_k"):
            assert torch.allclose(made, wanted, atol=2e-3)
        assert up.any() and not torch.equal(up, free.delta[name].first)


def test_keys_learn_at_a_rate_of_their_own(pico, shown):
    """A hundredth of the rate moves keys a hundredth as far, and leaves values theirs."""

    def moved(concept, ending):
        return sum(float(f.first.norm()) for name, f in concept.delta.items() if name.endswith(ending))

    recipe = replace(TINY, token_train_steps=0, max_train_steps=4)
    same, slow = (
        teach(pico, shown, replace(recipe, key_learning_rate=lr)) for lr in (0.0, recipe.learning_rate / 100)
    )
    assert (
        teach(pico, shown, replace(recipe, key_learning_rate=recipe.learning_rate)).delta.keys()
        == same.delta.keys()
    )
    assert moved(slow, "to_k") == pytest.approx(moved(same, "to_k") / 100, rel=0.2)
    assert moved(slow, "to_v") == pytest.approx(moved(same, "to_v"), rel=0.2)
    locked = teach(pico, shown, replace(recipe, key_learning_rate=1e-3, lock_keys=True))
    assert moved(locked, "to_v") > 0, "there is nothing of keys left to learn"


def test_beside_keyed_maps_a_lora_learns_on_the_rest_of_attention(pico, shown):
    recipe = replace(TINY, token_train_steps=0, max_train_steps=4, prior_loss_weight=0.0, gated_lora_rank=2)
    made, narrow = teach(pico, shown, recipe), teach(pico, shown, replace(recipe, gated_lora_rank=0))
    rest = gates.maps_without_text(made.delta)
    assert set(made.delta) == set(targets.find(pico.unet, Architecture.presets["attn"])) and set(
        narrow.delta
    ) == set(pico.sizes)
    assert all(up.any() and up.shape[1] == 2 for up, _ in rest.values())
    assert len(made.delta.only(pico.sizes).downs) == 1, "keyed maps share their keys"
    assert len(rest.downs) == len(rest)
    assert torch.equal(made.rows, narrow.rows) and "gated_lora_rank" not in narrow.recipe

    def moved(concept, among):
        return sum(float(concept.delta[name].first.norm()) for name in among)

    slow = teach(pico, shown, replace(recipe, gated_lora_learning_rate=recipe.gated_lora_learning_rate / 100))
    assert moved(slow, rest) == pytest.approx(moved(made, rest) / 100, rel=0.2)
    assert moved(slow, pico.sizes) == pytest.approx(moved(made, pico.sizes), rel=0.1)


def test_pictures_of_the_class_do_not_hear_what_was_learned_beside(pico, shown):
    """Prompts without the word read the keyed part alone."""
    made = teach(
        pico, shown, replace(TINY, prior_loss_weight=0.0, gated_lora_rank=2, gated_lora_learning_rate=0.1)
    )
    narrow = replace(made, delta={name: made.delta[name] for name in pico.sizes})
    drawn = {}
    for which, concept in (("whole", made), ("narrow", narrow)):
        with attach(pico.pipe, concept), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn[which] = [tiny.draw(pico.pipe, text) for text in ("a dog on grass", "my_dog on grass")]
    assert torch.equal(drawn["whole"][0], drawn["narrow"][0])
    assert not torch.allclose(drawn["whole"][1], drawn["narrow"][1], atol=1e-3)


def test_at_the_rows_of_its_class_a_keyed_delta_is_nothing_alone_and_in_a_merge(pico, shown, registry):
    """Whatever was learned, the held rows are zeros of D, and a merge's constraints keep them so."""

    def moved(concept, where):
        return sum(float((where @ f.dense().T).norm()) for f in concept.delta.values())

    recipe = replace(TINY, class_noun_rows=2, prior_loss_weight=0.0)
    held, free = (teach(pico, shown, r) for r in (recipe, replace(recipe, class_noun_rows=0)))
    plain = class_noun_rows(held, pico, factor(caption_statistics.statistics_of(pico, None).gram), 2).float()
    assert len(plain) == 2 and len(held.rows) == len(free.rows) + 2
    assert torch.allclose(held.rows[-2:], plain, rtol=0.01, atol=1e-3)
    own = held.rows[:-2]
    assert moved(held, plain) < 0.02 * moved(held, own) and moved(free, plain) > 0.1 * moved(free, own)
    other = learn(pico, shown, "my_cat", "cat", recipe)
    merged = compose(held, other, base=pico, registry=registry, merge_method="closed-form").concept
    assert moved(merged, plain) < 0.05 * moved(merged, own)


def test_two_of_one_class_hold_it_once(pico, shown, registry):
    """Their held rows are the same, which costs neither of them its own ones, learned together or merged."""
    recipe = replace(TINY, class_noun_rows=2, prior_loss_weight=0.0)
    subjects = [Subject(name, "dog", shown) for name in ("my_dog", "your_dog")]
    mine, yours = learn_together(pico, subjects, recipe, registry=registry).parts
    assert torch.allclose(mine.rows[-2:], yours.rows[-2:])
    alone = [teach(pico, shown, recipe), learn(pico, shown, "your_dog", "dog", recipe)]
    assert (
        "nearly coincide"
        not in compose(*alone, base=pico, registry=registry, merge_method="closed-form").report.text()
    )


def test_a_step_reads_its_own_prompts_alone(pico, shown, monkeypatch):
    told = []
    read = conditioning.encode

    def listening(pipe, prompts, device=None):
        told.append(list(prompts))
        return read(pipe, prompts, device)

    monkeypatch.setattr(conditioning, "encode", listening)
    found = conditioning.LiveCondition(pico.pipe, ["a dog", "a cat", "a gate"])[torch.tensor([2, 0, 2])]
    assert told == [["a dog", "a gate"]]
    assert torch.allclose(found.hidden, read(pico.pipe, ["a gate", "a dog", "a gate"]).hidden, atol=1e-6)
    told.clear()
    teach(
        pico,
        shown,
        replace(TINY, max_train_steps=0, token_train_steps=3, train_batch_size=2, num_augmented_views=40),
    )
    assert len(told) == 3 and all(len(prompts) <= 2 for prompts in told)


def test_rows_are_held_as_far_as_there_is_room_and_there_is_a_class(pico, shown):
    crowded = teach(pico, shown, replace(TINY, rank=7, class_noun_rows=5))
    assert len(crowded.rows) <= MOST_ROWS
    nameless = teach(pico, shown, replace(TINY, class_noun_rows=2, prior_loss_weight=0.0), noun=None)
    assert len(nameless.rows) == TINY.rank


def test_an_adapter_brings_its_numbers(monkeypatch):
    monkeypatch.setitem(
        DEFAULT_CONFIGS,
        "custom",
        replace(TINY, class_noun_rows=2, key_learning_rate=1e-3, gated_lora_rank=2, prior_loss_weight=0.0),
    )
    recipe = config_for("dreambooth", adapter="full")
    assert (recipe.adapter, recipe.rank, recipe.token_init) == ("full", 0, "rare")
    assert config_for("custom", adapter="keyed") == DEFAULT_CONFIGS["custom"]
    assert config_for("custom", adapter="kv").prior_loss_weight == 1, "it is not keyed any more"
    assert config_for("custom", adapter="kv").class_noun_rows == 0
    assert config_for("custom", adapter="kv").key_learning_rate == 0
    keyed = config_for("dreambooth", adapter="keyed")
    assert (keyed.class_noun_rows, keyed.text_encoder_rank, keyed.gated_lora_rank) == (2, 0, 2), (
        "its rows are features of a text encoder that stands still"
    )
    word = config_for("textual-inversion", adapter="kv")
    assert word.prior_loss_weight == 0, "it has no use for pictures of the class"
    assert config_for("custom", adapter="kv").gated_lora_rank == 0
    full = config_for("custom", rank=0)
    assert (full.class_noun_rows, full.key_learning_rate, full.gated_lora_rank, full.prior_loss_weight) == (
        0,
        0,
        0,
        1,
    ), "full matrices need pictures of the class"
    assert config_for("custom", adapter="lora", rank=8).rank == 8, "what is asked for goes first"
    assert config_for("dreambooth", adapter="keyed", rank=5, changes={"learning_rate": 1}).learning_rate == 1
    assert config_for("custom", adapter="kv", rank=2).class_noun_rows == 0
    with pytest.raises(BadRecipe, match="no adapter 'loha'; choose one of keyed, kv"):
        config_for("custom", adapter="loha")
    assert {m.adapter.name for m in adapters()} == {r.adapter for r in DEFAULT_CONFIGS.values()}
    assert method_of_adapter("keyed").name == "custom"
