"""The loss that the storybook's UNet learns by."""

import pytest
import torch

from conceptkit.storybook import data, denoiser

SCHEDULE = denoiser.scheduler()


def errors(error):
    """The losses of predictions that are off by `error` (n, 8, 16, 16)."""
    make = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(error.shape, generator=make) for _ in range(2))
    t = torch.arange(0, 1000, 1000 // len(error))[: len(error)]
    return denoiser.v_losses(SCHEDULE.get_velocity(clean, noise, t) + error, clean, noise, t, SCHEDULE)


def test_the_right_prediction_costs_nothing_at_any_noise():
    assert errors(torch.zeros(5, 8, 16, 16)).abs().max() < 1e-10


def test_what_neighbours_have_in_common_counts_more_than_detail():
    coarse = torch.ones(1, 8, 16, 16)
    fine = coarse * (-1.0) ** torch.arange(16)
    assert errors(fine).item() == pytest.approx(denoiser.SCALES[1])
    assert errors(coarse).item() == pytest.approx(sum(denoiser.SCALES.values()))


def test_no_noise_drowns_the_others():
    level = denoiser.Level(bins=2, decay=0.5)
    t = torch.tensor([100, 900])
    for _ in range(40):
        level(torch.tensor([0.01, 5.0]), t)
    losses = torch.tensor([0.01, 5.0], requires_grad=True)
    mean = level(losses, t)
    assert mean.item() == pytest.approx(1.0, rel=1e-3)
    (grad,) = torch.autograd.grad(mean, losses)
    assert (grad * losses).tolist() == pytest.approx([0.5, 0.5], rel=1e-3)


def test_plain_scenes_come_more_often():
    told = [data.scene("base", k) for k in range(300)]
    plain = [
        s
        for s in told
        if len(s.figures) == 1
        and s.framing is None
        and s.style is None
        and all(f.surface == "plain" and f.accessory is None for f in s.figures)
    ]
    busy = [s for s in told if s.style or s.framing == "far"]
    assert plain and {data.weight(s) for s in plain} == {1.0}
    assert busy and max(data.weight(s) for s in busy) < 0.5
