"""What the loops of published scripts need: schedules, noise levels, weights, optimizers, crops, priors."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from PIL import Image
from torch import nn

from benchmarks import carry_over
from conceptkit.base.added_tokens import add_tokens
from conceptkit.data.augmentation import augment
from conceptkit.errors import BadRecipe
from conceptkit.learn import latent_dataset, losses, lr_schedules, optimizers, training_step
from conceptkit.learn.checkpoints import capture, restore
from conceptkit.learn.config import DEFAULT_CONFIGS, config_for
from conceptkit.learn.target_modules import TargetMaps
from conceptkit.learn.trainable_delta import inject, layers
from conceptkit.learn.trainer import _word_groups
from conceptkit.learn.view_options import CROP, ViewOptions
from conceptkit.tuners.inject import ADAPTER
from tests import tiny
from tests.learning import TINY, outcome, teach, ups

PUBLISHED = config_for("dreambooth", family="stable-diffusion")


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_schedules_are_those_of_diffusers(name):
    warmup = 0 if name == "constant" else 4
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    ours = lr_schedules.schedule_of(
        replace(TINY, lr_scheduler=name, lr_warmup_steps=warmup), lr_schedules.annealed
    )
    for step in range(20):
        assert ours(step, 20) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_levels_of_noise_are_drawn_as_the_scheme_says():
    def drawn(**changes):
        dice = torch.Generator().manual_seed(0)
        return losses.sample_levels(replace(PUBLISHED, **changes), 20_000, 1000, dice).float()

    even = drawn(weighting_scheme="none")
    assert abs(float(even.mean()) - 500) < 10 and abs(float(even.std()) - 289) < 5
    normal = drawn(weighting_scheme="logit_normal", logit_mean=1.0, logit_std=0.5)
    share = 1 - (normal + 0.5) / 1000  # u of the scripts goes from noise to picture
    assert abs(float(torch.logit(share).mean()) - 1.0) < 0.02
    assert abs(float(torch.logit(share).std()) - 0.5) < 0.02
    mode = drawn(weighting_scheme="mode")
    assert mode.min() >= 0 and mode.max() <= 999 and float(mode.std()) < 280


def test_weights_of_noise_levels_are_those_of_the_papers():
    sigmas = torch.tensor([0.1, 0.5, 0.9])
    for scheme in ("sigma_sqrt", "cosmap", "none"):
        theirs = compute_loss_weighting_for_sd3(scheme, sigmas)
        assert torch.allclose(losses.flow_weights(scheme, sigmas), theirs.float(), rtol=1e-5)
    clean, noise, found = (torch.randn(3, 4, 2, 2) for _ in range(3))
    sigma = sigmas.view(-1, 1, 1, 1)
    picture = (1 - sigma) * clean + sigma * noise - sigma * found
    apart = (found - (noise - clean)).square().mean([1, 2, 3])
    weighted = losses.flow_weights("none", sigmas, preconditioned=True) * apart
    assert torch.allclose(weighted, (picture - clean).square().mean([1, 2, 3]), rtol=1e-4)
    bars = torch.tensor([0.99, 0.5, 0.01])
    snr = bars / (1 - bars)
    assert torch.allclose(losses.min_snr("epsilon", bars, 5.0), snr.clamp(max=5) / snr)
    assert torch.allclose(losses.min_snr("v_prediction", bars, 5.0), snr.clamp(max=5) / (snr + 1))


def test_prodigy_finds_a_rate_for_each_group_and_goes_on_bit_for_bit():
    recipe = replace(TINY, optimizer="prodigy")
    goals = torch.full((8,), 3.0), torch.full((8,), 0.003)

    def begun():
        own = [nn.Parameter(torch.zeros(8)) for _ in goals]
        return own, optimizers.optimizer_for([([p], 1.0) for p in own], (0.9, 0.99), recipe)

    def go(own, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            for p, goal in zip(own, goals, strict=True):
                (p - goal).abs().sum().backward()
            optimizer.step()

    own, optimizer = begun()
    go(own, optimizer, 30)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    kept = {name: value.clone() for name, value in capture(own, optimizer, None, scaler).items()}
    go(own, optimizer, 10)
    far, near = (group["d"] for group in optimizer.param_groups)
    assert far > 10 * near, "one rate would do for neither"
    others, again = begun()
    restore(kept, others, again, scaler)
    go(others, again, 10)
    assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True))


def test_prodigy_is_given_no_rate_of_adamw(pico, shown):
    with pytest.raises(BadRecipe, match=r"learning_rate = 0.001 .* give learning_rate = 1"):
        teach(pico, shown, replace(TINY, optimizer="prodigy", token_learning_rate=1.0, learning_rate=1e-3))


def test_whole_weights_decay_with_what_they_were():
    weight, lr, decay = torch.randn(3, 4), 0.1, 0.5
    alone, delta = nn.Parameter(weight.clone()), nn.Parameter(torch.zeros(3, 4))
    for parameter in (alone, delta):
        optimizer = torch.optim.AdamW([parameter], lr=lr, weight_decay=decay)
        parameter.grad = torch.ones(3, 4)
        optimizer.step()
    optimizers.decay_towards_zero([delta], [weight], lr * decay)
    assert torch.allclose(weight + delta, alone, atol=1e-6)


def test_crops_are_whole_unmirrored_and_centred_where_asked():
    photo = Image.fromarray(np.arange(40 * 80 * 3, dtype=np.uint64).reshape(40, 80, 3).astype(np.uint8))
    views = [
        augment(photo, 16, np.random.default_rng(k), 2, hflip=False, framing=CROP, centered=True)
        for k in range(5)
    ]
    assert all((view.pixels == views[0].pixels).all() and view.mask.all() for view in views)
    moved = [augment(photo, 16, np.random.default_rng(k), 2, hflip=False, framing=CROP) for k in range(5)]
    assert any((view.pixels != moved[0].pixels).any() for view in moved)


def test_photos_have_the_instance_prompt_and_latents_are_drawn(pico, shown):
    options = ViewOptions.of(PUBLISHED)
    found = latent_dataset.latent_dataset(pico, shown, "<x> dog", 6, 0, options=options)
    assert found.prompts == ("a photo of <x> dog",) and found.masks.all()
    clean = training_step._clean(found, torch.tensor([0, 0]), torch.ones(2, 4, 8, 8))
    assert torch.allclose(clean[0] - found.latents[0], found.deviations[0], atol=1e-5)
    assert torch.equal(training_step._clean(found, torch.tensor([0]), None)[0], found.latents[0])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr_warmup_steps": 5}, "lr_warmup_steps = 5 has no effect with lr_scheduler = annealed"),
        ({"instance_prompt": "a photo"}, "instance_prompt = 'a photo'"),
        ({"center_crop": True}, "center_crop is about crops"),
        ({"weighting_scheme": "cosmap"}, "weighting_scheme = cosmap weighs the noise levels of a flow"),
        ({"precondition_outputs": True}, "precondition_outputs weighs the noise levels of a flow"),
        ({"adam_beta2": 1.0}, "adam_beta2 = 1 is no decay rate"),
        ({"adam_epsilon": 0.0}, "adam_epsilon = 0"),
        ({"train_text_encoder_ti_frac": 0.0}, "train_text_encoder_ti_frac = 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm = -1"),
    ],
)
def test_a_loop_that_makes_no_sense_is_refused(pico, shown, changes, named):
    with pytest.raises(BadRecipe, match=named):
        teach(pico, shown, replace(TINY, **changes))


LORA = replace(
    TINY,
    adapter="lora",
    target_modules="attn",
    token_train_steps=0,
    max_train_steps=8,
    learning_rate=0.1,
    num_class_images=0,
)


def test_the_bases_own_prediction_holds_the_class_without_pictures(pico, shown):
    def class_moved(weight):
        recipe = replace(LORA, prior_source="base_prediction", prior_loss_weight=weight)
        found = outcome(pico, shown, recipe).whole
        return found, math.sqrt(sum(float(f.dense().square().sum()) for f in found.delta.values()))

    told = []
    free, _ = class_moved(0.0)
    held, _ = class_moved(30.0)
    outcome(
        pico,
        shown,
        replace(LORA, prior_source="base_prediction", num_class_images=4),
        progress=lambda done, total, text: told.append(text),
    )
    assert not any("drawing" in text for text in told)
    assert not torch.equal(ups(free), ups(held))


def test_the_base_agrees_with_itself_before_anything_is_learned(pico, shown, monkeypatch):
    """The first step's prior term is zero, so that its gradient is that of the subject alone."""
    seen, preserved = [], training_step._preserved

    def watching(*args):
        seen.append(float(preserved(*args).detach()))
        return preserved(*args)

    monkeypatch.setattr(training_step, "_preserved", watching)
    teach(pico, shown, replace(LORA, prior_source="base_prediction", max_train_steps=3))
    assert seen[0] < 1e-10 < seen[-1]


def test_a_word_stands_still_in_the_end_of_pivotal_tuning(pico, shown):
    recipe = replace(
        LORA,
        train_token_jointly=True,
        train_text_encoder_ti_frac=0.5,
        prior_loss_weight=0.0,
        lr_scheduler="constant",
        max_train_steps=4,
    )
    half = replace(recipe, max_train_steps=2, train_text_encoder_ti_frac=1.0)
    whole = replace(recipe, train_text_encoder_ti_frac=1.0)
    rows = [teach(pico, shown, one).tokens["<my_dog>"][0] for one in (recipe, half, whole)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_a_rescaled_base_draws_the_same_from_other_weights(pico):
    again = carry_over.rescaled(pico)
    picks = [tiny.draw(base.pipe, "a photo of a dog") for base in (pico, again)]
    assert torch.allclose(*picks, atol=1e-4) and again.family is pico.family
    for name in ("attn1.to_v", "attn2.to_k", "attn2.to_out.0"):
        path = f"mid_block.attentions.0.transformer_blocks.0.{name}.weight"
        weights = [base.unet.get_parameter(path) for base in (pico, again)]
        assert not torch.allclose(*weights, rtol=0.5)


def test_in_units_of_the_weights_a_rescaled_base_learns_the_same(pico, shown, monkeypatch):
    """One rate carries over exactly: what is learned is scaled as the map that it is on."""
    monkeypatch.delitem(DEFAULT_CONFIGS, "custom", raising=False)
    again = carry_over.rescaled(pico)
    recipe = replace(carry_over.rows(6)["carried"], token_train_steps=2, train_batch_size=2, rank=2)
    recipe = replace(recipe, num_augmented_views=6, gated_lora_rank=2)
    one, other = (teach(base, shown, recipe) for base in (pico, again))
    for name, factors in one.delta.items():
        by = (again.unet.get_parameter(f"{name}.weight") / pico.unet.get_parameter(f"{name}.weight")).median()
        wanted = (
            by * factors.dense()
        )  # AdamW makes much of the rounding of gradients that are next to nothing
        assert (other.delta[name].dense() - wanted).norm() <= 1e-2 * wanted.norm(), name


def test_values_are_in_units_of_what_their_map_gives_for_the_words(pico):
    """Where text features are larger and the map as much smaller, a rate means the same."""
    name, linear = next(iter(pico.text_site.items()))
    rows, kept = torch.randn(2, pico.width), linear.weight.data
    targets, recipe = {"": TargetMaps({name: linear}, 2)}, replace(TINY, relative_to_weights=True)

    def unit(rows):
        with inject(pico, recipe, 0, targets, rows, rows):
            return dict(layers(pico.denoiser))[name].scaling[ADAPTER]

    found = unit(rows)
    assert found == pytest.approx(float((rows @ kept.T).square().mean().sqrt()))
    try:
        linear.weight.data = kept / 4
        assert unit(4 * rows) == pytest.approx(found) and unit(rows) == pytest.approx(found / 4)
    finally:
        linear.weight.data = kept


def test_a_word_learns_in_units_of_the_tokens_of_its_base(pico):
    rows = torch.zeros(1, pico.width)
    with add_tokens(pico.pipe, {"<x>": (rows,)}) as tokens:
        (group,) = _word_groups(tokens, replace(TINY, relative_to_weights=True))
        table = pico.pipe.text_encoder.get_input_embeddings().weight
        assert group.unit == pytest.approx(float(table.detach().square().mean().sqrt()))
        for changes in ({"relative_to_weights": False}, {"optimizer": "prodigy"}):
            (group,) = _word_groups(tokens, replace(TINY, **{"relative_to_weights": True} | changes))
            assert group.unit == 1


def test_a_copy_is_held_to_what_was_tuned_on_the_storybook(monkeypatch):
    monkeypatch.delitem(DEFAULT_CONFIGS, "custom", raising=False)
    means = {
        "storybook": {"tuned": 0.8, "carried": 0.76},
        "storybook-rescaled": {"tuned": 0.1, "carried": 0.6},
        "another": {"tuned": 0.5, "carried": 0.5},
    }
    assert carry_over.shares_of(means) == pytest.approx(
        {"storybook": 0.95, "storybook-rescaled": 0.75, "another": 1.0}
    )
    tuned, carried = carry_over.rows(None).values()
    assert tuned.max_train_steps == carried.max_train_steps and carried.relative_to_weights


def test_gaps_are_measured_once_and_again_when_what_they_depend_on_has_changed(tmp_path):
    file, measured = tmp_path / "gaps.json", []

    def measure():
        measured.append(len(measured))
        return 0.5 + measured[-1]

    kept, beside = carry_over.Kept(file), carry_over.Kept(file)
    assert kept.get("dog", [1], measure) == kept.get("dog", [1], measure) == 0.5
    assert beside.get("cat", [1], measure) == 1.5
    again = carry_over.Kept(file)
    assert (again.get("dog", [1], measure), again.get("cat", [1], measure)) == (0.5, 1.5)
    assert again.get("dog", [2], measure) == 2.5 and len(measured) == 3
    assert carry_over.Kept().get("dog", [1], measure) == 3.5
