"""How the storybook's UNet learns: its loss, its optimiser, and how it grows."""

import copy

import pytest
import torch
from torch import nn

from conceptkit.storybook.training import __main__, data, timed_training, unet
from conceptkit.storybook.training.muon import Muon, matrix, orthogonal

SCHEDULE = unet.scheduler()


def errors(error):
    """The losses of predictions that are off by `error` (n, 8, 16, 16)."""
    make = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(error.shape, generator=make) for _ in range(2))
    t = torch.arange(0, 1000, 1000 // len(error))[: len(error)]
    return unet.v_losses(SCHEDULE.get_velocity(clean, noise, t) + error, clean, noise, t, SCHEDULE)


def test_the_right_prediction_costs_nothing_at_any_noise():
    assert errors(torch.zeros(5, 8, 16, 16)).abs().max() < 1e-10


def test_what_neighbours_have_in_common_counts_more_than_detail():
    coarse = torch.ones(1, 8, 16, 16)
    fine = coarse * (-1.0) ** torch.arange(16)
    assert errors(fine).item() == pytest.approx(unet.SCALES[1])
    assert errors(coarse).item() == pytest.approx(sum(unet.SCALES.values()))


def test_no_noise_drowns_the_others():
    level = unet.Level(bins=2, decay=0.5)
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
    assert plain and {data.weight(s) for s in plain} == {1.0}
    for busy, most in (([s for s in told if s.style], 0.5), ([s for s in told if s.framing == "far"], 0.75)):
        assert busy and max(data.weight(s) for s in busy) < most


def test_a_deepened_unet_draws_what_it_drew():
    torch.manual_seed(0)
    shallow = unet.unet(layers=1).eval()
    deep = unet.deepened(shallow).eval()
    noisy, t, words = torch.randn(2, 8, 16, 16), torch.tensor([3, 700]), torch.randn(2, 7, unet.WIDTH)
    with torch.no_grad():
        before, after = shallow(noisy, t, words).sample, deep(noisy, t, words).sample
    assert sum(p.numel() for p in deep.parameters()) > 1.4 * sum(p.numel() for p in shallow.parameters())
    assert torch.equal(before, after)


def test_training_onward_begins_with_the_weights_it_is_given(tmp_path):
    __main__.begin_onward(tmp_path)
    known = unet.UNet2DConditionModel.from_pretrained(str(tmp_path / __main__.ONWARD))
    before = copy.deepcopy(known.state_dict())
    latents, ids = torch.zeros(4, 8, 16, 16).half(), torch.zeros(4, 1, 32, dtype=torch.int16)
    trained = unet.train(__main__._text(tmp_path), latents, ids, 0.0, tmp_path, batch=2, onward=known)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    (tmp_path / "moved").mkdir()
    moved = unet.train(
        __main__._text(tmp_path), latents, ids, 1e-9, tmp_path / "moved", batch=2, onward=known
    )
    # torch.compile once lost the gradients of all inner blocks, and left them to weight decay alone
    decay = unet.LEARNING_RATE * timed_training.one_cycle(0.0) * timed_training.WEIGHT_DECAY
    for name, value in moved.state_dict().items():
        assert (value - before[name]).abs().max() > 5 * decay * before[name].abs().max(), name


@pytest.mark.parametrize(("capability", "dtype"), [("AVX512", torch.bfloat16), ("AVX2", torch.float32)])
def test_bfloat16_is_used_where_the_cpu_multiplies_it(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with timed_training.half():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(("capability", "near"), [("AVX512", 0.1), ("AVX2", 1e-4)])
def test_orthogonalising_keeps_the_singular_vectors_and_evens_out_the_values(monkeypatch, capability, near):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    torch.manual_seed(0)
    for shape in ((24, 40), (40, 24)):
        matrix = torch.randn(shape)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        inner = left.T @ orthogonal(matrix) @ right.T
        assert inner.diagonal().min() > 0.6 and inner.diagonal().max() < 1.3
        assert (inner - inner.diagonal().diag()).abs().max() < near
        together = orthogonal(torch.stack([matrix, 2 * matrix]))
        torch.testing.assert_close(together[0], orthogonal(matrix), rtol=0, atol=near)
        torch.testing.assert_close(together[1], together[0], rtol=0, atol=near)


def test_muon_moves_a_convolution_by_an_orthogonal_step_and_a_bias_by_adams():
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 32, 3).to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in layer.named_parameters()}
    optimiser = Muon(layer.parameters(), lr=0.01, weight_decay=0.0)
    layer(torch.randn(4, 24, 8, 8)).square().sum().backward()
    optimiser.step()
    moved = matrix(before["weight"] - layer.weight.detach())
    # five Newton-Schulz steps bring singular values near one; 0.2 sqrt(longer side) is AdamW's size
    values = torch.linalg.svdvals(moved) / (0.01 * 0.2 * max(moved.shape) ** 0.5)
    assert values.min() > 0.5 and values.max() < 1.5
    torch.testing.assert_close(
        (before["bias"] - layer.bias).abs(), torch.full((32,), 0.01), rtol=1e-3, atol=0
    )


def test_muon_goes_on_where_it_stopped():
    def steps(layer, optimiser, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            optimiser.zero_grad()
            layer(torch.randn(4, 24)).square().sum().backward()
            optimiser.step()

    torch.manual_seed(0)
    whole = nn.Linear(24, 32)
    broken = copy.deepcopy(whole)
    steps(whole, Muon(whole.parameters(), lr=0.01), range(6))
    first = Muon(broken.parameters(), lr=0.01)
    steps(broken, first, range(3))
    second = Muon(broken.parameters(), lr=0.01)
    second.load_state_dict(first.state_dict())
    steps(broken, second, range(3, 6))
    assert torch.equal(whole.weight, broken.weight) and torch.equal(whole.bias, broken.bias)


def test_muon_refuses_a_convolution_it_would_have_to_copy():
    with pytest.raises(ValueError, match="channels_last"):
        Muon(nn.Conv2d(24, 32, 3).parameters(), lr=0.01)
