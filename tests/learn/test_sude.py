"""SuDe's weights and its truncation are those of the paper, by independent computation and by gradients."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptkit.base import conditioning
from conceptkit.base.noise_schedule import schedule_of
from conceptkit.errors import BadBase
from conceptkit.learn import latent_dataset, training_step
from conceptkit.learn.methods.sude import sude, weights
from conceptkit.learn.subject import StateAndPlace, Subject
from tests import tiny
from tests.learning import TINY, teach, values

BARS = tiny.scheduler("ddpm").alphas_cumprod


@pytest.mark.parametrize("t", [1, 2, 100, 500, 999])
def test_the_weights_are_those_of_the_posterior_mean(t):
    """From the posterior q(x_{t-1} | x_t, x0) itself (2006.11239, eq. 7), not from the shortened formula."""
    bar, before = float(BARS[t].double()), float(BARS[t - 1].double())
    alpha, beta = bar / before, 1 - bar / before
    variance = (1 - before) / (1 - bar) * beta
    of_x0 = np.sqrt(before) * beta / (1 - bar)
    eps_to_x0 = np.sqrt((1 - bar) / bar)
    paper = (of_x0 * eps_to_x0) ** 2 / (2 * variance)
    code = paper / of_x0
    step = torch.tensor([t])
    assert weights(BARS, step, "paper").item() == pytest.approx(paper, rel=1e-4)
    assert weights(BARS, step, "code").item() == pytest.approx(code, rel=1e-4)
    assert weights(BARS, step, "code").item() == pytest.approx(1 / (2 * np.sqrt(bar)), rel=0.06 + 2 / t)
    assert alpha < 1


def test_the_step_without_variance_is_left_out():
    assert weights(BARS, torch.tensor([0, 1]), "code")[0] == 0
    assert (weights(BARS, torch.arange(1000), "code")[1:] > 0).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 5), size=st.floats(0.01, 3))
def test_its_gradient_is_that_of_the_hinge(seed, n, size):
    make = torch.Generator().manual_seed(seed)
    subject, kind, nothing = (size * torch.randn(n, 4, 3, 3, generator=make) for _ in range(3))
    weight = torch.rand(n, generator=make)
    one, other = (subject.clone().requires_grad_() for _ in range(2))
    sude(one, kind, nothing, weight).backward()
    inner = ((other - kind) * (nothing - kind)).flatten(1).mean(1)
    hinge = (weight * (2 * inner).clamp(min=0)).mean()
    hinge.backward()
    clear = inner.detach().abs() > 1e-6
    assert torch.allclose(one.grad[clear], other.grad[clear], atol=1e-6)


def test_each_sample_is_truncated_by_itself_and_the_references_get_no_gradient():
    kind, nothing = torch.zeros(2, 1, 1, 1, requires_grad=True), torch.ones(2, 1, 1, 1, requires_grad=True)
    subject = torch.tensor([0.5, -0.5]).view(2, 1, 1, 1).requires_grad_()  # towards nothing, and away from it
    sude(subject, kind, nothing, torch.ones(2)).backward()
    assert subject.grad[0] != 0 and subject.grad[1] == 0
    assert kind.grad is None and nothing.grad is None


def test_parts_of_a_batch_add_up():
    make = torch.Generator().manual_seed(0)
    given = [torch.randn(6, 4, 3, 3, generator=make) for _ in range(3)]
    weight = torch.rand(6, generator=make)
    whole = sude(*given, weight)
    halves = [sude(*(g[k::2] for g in given), weight[k::2], 6) for k in range(2)]
    assert torch.allclose(sum(halves), whole)


def test_without_truncation_it_would_have_no_floor():
    """Far on the side of the class the loss stands still, where the plain difference falls and falls."""
    kind, nothing = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    far = torch.full((1, 1, 1, 1), -100.0)
    assert sude(far, kind, nothing, torch.ones(1)) == 0
    assert (far - kind).square().mean() - (far - nothing).square().mean() < -200


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_a_perfect_prediction_speaks_of_the_noise(prediction):
    schedule = schedule_of(
        FlowMatchEulerDiscreteScheduler(shift=2.0)
        if prediction == "flow"
        else tiny.scheduler(prediction=prediction)
    )
    make = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(3, 4, 8, 8, generator=make), torch.randn(3, 4, 8, 8, generator=make)
    t = torch.tensor([30, 400, 990])
    noisy = schedule.add_noise(clean, noise, t)
    found = schedule.as_noise(schedule.target(clean, noise, t), noisy, t)
    assert torch.allclose(found, noise, atol=1e-3)


def test_a_flow_is_noised_as_its_scheduler_does_it_and_told_its_times():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = schedule_of(scheduler)
    scheduler.set_timesteps(4)
    assert len(schedule_of(scheduler)) == len(schedule) == 1000, (
        "drawing changes a scheduler, not the schedule"
    )
    fresh = FlowMatchEulerDiscreteScheduler(shift=3.0)
    clean, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    expected = fresh.scale_noise(clean, schedule.told(t), noise)
    assert torch.allclose(schedule.add_noise(clean, noise, t), expected, atol=1e-6)
    assert (schedule.sigmas.diff() > 0).all() and (schedule.bars.diff() < 0).all()
    ratio = ((1 - schedule.sigmas) / schedule.sigmas).square()
    assert torch.allclose(schedule.bars / (1 - schedule.bars), ratio, rtol=1e-2, atol=1e-4)


def test_what_cannot_be_noised_is_told_apart():
    class Odd:
        config: ClassVar[dict] = {}

    with pytest.raises(BadBase, match="scheduler Odd has no alphas_cumprod"):
        schedule_of(Odd())
    with pytest.raises(BadBase, match="predicts 'magic'"):
        schedule_of(tiny.scheduler(prediction="magic"))


def test_another_state_stands_where_the_photos_own_stood(shown):
    told = Subject("my_dog", "dog", shown, auto_caption=StateAndPlace("runs", "in the snow"))
    assert (
        told.doing("sits", "a <my_dog> dog runs in the snow today") == "a <my_dog> dog sits in the snow today"
    )
    untold = Subject("my_dog", "dog", shown)
    assert untold.doing("sits", "a <my_dog> dog today") == "a <my_dog> dog sits today"
    captioned = Subject("my_dog", "dog", replace(shown, captions=("my_dog in a hat", None, None)))
    assert captioned.doing("sits", "a <my_dog> dog in a hat") == "a <my_dog> dog in a hat"


def taught(base, photos, recipe, states) -> training_step.TrainingContext:
    subject = Subject("my_dog", "dog", photos)
    pool = latent_dataset.still_dataset(base, photos, subject.words)
    return training_step.TrainingContext(
        base, (subject,), pool, None, recipe, 0, schedule_of(base.pipe.scheduler), states=tuple(states)
    )


def test_the_state_that_is_drawn_is_the_one_that_is_asked(pico, shown, able, monkeypatch):
    """The subject and its class are told the same, each picture its own state."""
    recipe = replace(TINY, train_batch_size=4, sude_weight=1.0, sude_prompts="states")
    given = taught(pico, shown, recipe, able)
    drawn, read = training_step.sample_step(given, ("token", 0), with_prior=False), []
    told = training_step.encode_conditions(given, with_prior=False, token_learns=True, encoder_learns=False)
    predict = conditioning.predict

    def watched(pipe, noisy, t, condition):
        read.append(condition.hidden)
        return predict(pipe, noisy, t, condition)

    monkeypatch.setattr(conditioning, "predict", watched)
    training_step.loss(given, drawn, told)
    asked = [able[k] for k in drawn.states]
    assert len(set(asked)) > 1
    for found, thing in ((read[1], "<my_dog> dog"), (read[2][:4], "dog")):
        wanted = conditioning.encode(pico.pipe, [f"photo of a {thing} {state}" for state in asked]).hidden
        assert torch.allclose(found, wanted, atol=1e-5)


def test_states_are_asked_for_while_the_word_learns_and_not_after(pico, shown, able):
    recipe = replace(TINY, sude_weight=1.0, sude_prompts="states")
    given = taught(pico, shown, recipe, able)
    later = training_step.encode_conditions(given, with_prior=False, token_learns=False, encoder_learns=False)
    assert later.able is None and later.plain is None
    published = training_step.encode_conditions(taught(pico, shown, recipe, ()), False, False, False)
    assert published.plain is not None


def test_asking_for_states_changes_what_is_learned(pico, shown, able):
    recipe = replace(TINY, sude_weight=20.0, prior_loss_weight=0.0)
    own, asked, none = (
        values(teach(pico, shown, replace(recipe, **more)))
        for more in ({"sude_prompts": "own"}, {"sude_prompts": "states"}, {"sude_weight": 0.0})
    )
    assert not torch.equal(own, asked) and not torch.equal(asked, none) and torch.isfinite(asked).all()
