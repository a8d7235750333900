"""The losses are as published, and mean what a sampler takes them for."""

import pytest
import torch
from diffusers import DDPMScheduler

from conceptkit.base import noise_schedule
from conceptkit.errors import BadBase
from conceptkit.learn import losses
from tests import tiny


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
    noisy = noise_schedule.add_noise(clean, noise, bars)
    assert torch.allclose(noisy, schedule.add_noise(clean, noise, t), atol=1e-6)
    velocity = noise_schedule.target("v_prediction", clean, noise, bars)
    assert torch.allclose(velocity, schedule.get_velocity(clean, noise, t), atol=1e-6)
    assert noise_schedule.target("epsilon", clean, noise, bars) is noise
    assert noise_schedule.target("sample", clean, noise, bars) is clean
    with pytest.raises(BadBase, match="'flow'"):
        noise_schedule.target("flow", clean, noise, bars)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_what_the_scheduler_makes_of_a_perfect_prediction_is_the_picture(prediction):
    """The targets mean what a sampler takes them for."""
    schedule = tiny.scheduler("ddim", prediction)
    schedule.set_timesteps(10)
    clean, noise, t = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), schedule.timesteps[4:5]
    bars = schedule.alphas_cumprod[t]
    noisy = noise_schedule.add_noise(clean, noise, bars)
    told = noise_schedule.target(prediction, clean, noise, bars)
    found = schedule.step(told, int(t), noisy).pred_original_sample
    assert torch.allclose(found, clean, atol=1e-4)


def test_the_prior_is_added_with_its_weight():
    subject, prior = torch.tensor(2.0), torch.tensor(3.0)
    assert losses.prior_weighted(subject, prior, 0.5) == 3.5
    assert losses.prior_weighted(subject, None, 0.5) == 2.0
