"""Outlines of things in pictures, and pictures without them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptkit.inference import outlines as module
from conceptkit.inference.detail import CUT_OUT, PERHAPS, RIM_OF_A_PART, SURELY
from conceptkit.inference.outlines import filled, grown, random_walk
from tests.test_layout_masks import overlap

GREEN, RED, SKY = ((0.1, 0.6, 0.2), (0.8, 0.1, 0.1), (0.8, 0.9, 1.0))


def disc(y, x, radius, size=(64, 64)):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def painted(*things, size=(64, 64)):
    """A picture (3, H, W) of sky with things (mask, colour) in it."""
    picture = torch.tensor(SKY).view(3, 1, 1).repeat(1, *size)
    for mask, colour in things:
        picture[:, torch.from_numpy(mask)] = torch.tensor(colour).unsqueeze(1)
    return picture


def glimpses(*masks, cells=8):
    """Attention (N, cells, cells) that lies near things: coarse, blurred, and too far down."""
    seen = [
        F.adaptive_avg_pool2d(torch.from_numpy(np.roll(mask, 2, axis=0))[None, None].float(), cells)[0]
        for mask in masks
    ]
    return torch.cat(seen) + 0.05


def outlined(picture, seen, owners):
    """Outlines (N, H, W) with all that may be of the things."""
    (found,) = module.outlines(picture, seen, owners, [PERHAPS])
    return found


def test_a_random_walk_against_a_dense_system(monkeypatch):
    monkeypatch.setattr(module, "ALIKE", 3)
    monkeypatch.setattr(module, "EXACTLY", 1e-12)
    dice = np.random.default_rng(0)
    picture, prior = dice.random((3, 4, 5)) / 20, dice.random((2, 4, 5))
    prior /= prior.sum(axis=0)
    cells = [(y, x) for y in range(4) for x in range(5)]

    def away(one, other):
        apart = module.NEAR * np.subtract(one, other) / 5
        return np.square(picture[:, *one] - picture[:, *other]).sum() + np.square(apart).sum()

    weights = dice.random((4, 5))
    system = np.diag(weights.ravel())
    for i, one in enumerate(cells):
        nearest = sorted((away(one, other), j) for j, other in enumerate(cells) if j != i)[:3]
        for far, j in nearest:
            weight = np.exp(-far / module.COLOUR**2 / 2)
            system[[i, j], [j, i]] -= weight
            system[[i, j], [i, j]] += weight
    wanted = np.linalg.solve(system, (weights * prior).reshape(2, -1).T).T.reshape(2, 4, 5)
    found = random_walk(torch.from_numpy(picture), prior, weights)
    assert np.abs(wanted - prior).max() > 0.2 and np.allclose(found, wanted, atol=1e-10)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_labels_of_a_walk_share_each_pixel(height, width, seed):
    dice = np.random.default_rng(seed)
    prior, weights = dice.random((3, height, width)), 0.01 + dice.random((height, width))
    picture = torch.from_numpy(dice.random((3, height, width)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EXACTLY", 1e-12)
        found = random_walk(picture, prior / prior.sum(axis=0), weights)
    assert np.allclose(found.sum(axis=0), 1) and found.min() >= -1e-9


def test_a_walk_is_solved_as_nearly_as_it_says():
    """Against the same solved exactly, on a picture of two things."""
    one, other = disc(40, 20, 9), disc(40, 46, 9)
    picture, level = painted((one, GREEN), (other, RED)), glimpses(one, other)
    prior = F.interpolate(level[None].double(), (64, 64), mode="bilinear")[0].clamp(max=0.5)
    prior = torch.cat([prior, 1 - prior.sum(dim=0, keepdim=True)]).numpy()
    weights = np.full((64, 64), module.PRIOR)
    found = random_walk(picture, prior, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EXACTLY", 1e-12)
        wanted = random_walk(picture, prior, weights)
    assert np.abs(found - wanted).max() < 0.02 and not np.array_equal(found, wanted)


@pytest.mark.parametrize("size", [(64, 64), (300, 200)])
def test_an_outline_is_the_things_and_not_the_attentions(size):
    one, other = (disc(0.6 * size[0], x * size[1], 0.17 * size[1], size) for x in (0.27, 0.75))
    seen = glimpses(one, other)
    found = outlined(painted((one, GREEN), (other, RED), size=size), seen, seen)
    reach = round(module.REACH * max(size))
    for mask, wanted in zip(found, (one, other), strict=True):
        assert mask.shape == wanted.shape and (mask | ~wanted).mean() > 0.99, "all of it is inside"
        assert overlap(mask, _wider(wanted, reach)) > 0.85
    coarse = F.interpolate(seen[None], size, mode="bilinear")[0, 0].numpy()
    rough = coarse > coarse.max() / 2
    assert overlap(found[0], _wider(one, reach)) > overlap(rough, _wider(one, reach)) + 0.1


def _wider(mask, reach):
    padded = F.max_pool2d(torch.from_numpy(mask)[None, None].float(), 2 * reach + 1, 1, reach)
    return padded[0, 0].numpy() > 0


def test_a_thing_of_one_colour_beside_its_like_keeps_to_its_own_side():
    one, other = disc(36, 20, 11), disc(36, 44, 11)
    picture = painted((one | other, GREEN))
    owners = torch.zeros(2, 8, 8)
    owners[0, :, :4] = owners[1, :, 4:] = 1
    left, right = outlined(picture, glimpses(one | other, one | other), owners)
    assert left[:, :28].sum() > 20 * left[:, 36:].sum() and right[:, 36:].sum() > 20 * right[:, :28].sum()


def test_what_is_far_and_small_is_a_speck(monkeypatch):
    thing, dot = disc(36, 20, 11), disc(14, 50, 3)
    seen = glimpses(thing) + 2 * glimpses(dot)
    (found,) = outlined(painted((thing | dot, GREEN)), seen, torch.ones(1, 1, 1))
    assert found[36, 20] and not found[:22, 40:].any()
    monkeypatch.setattr(module, "SPECK", 0.0)
    (found,) = outlined(painted((thing | dot, GREEN)), seen, torch.ones(1, 1, 1))
    assert found[14, 50], "it is seen before it is dropped"


def test_a_thing_is_less_likely_on_the_rim(monkeypatch):
    """Patches on both sides of one within, to which just enough attention goes."""
    inside, rim = disc(36, 30, 6), disc(36, 63, 6) | disc(36, 0, 6)
    picture = painted((inside, GREEN), (rim, RED))
    seen = glimpses(inside) + 0.5 * glimpses(rim)
    counts = []
    for likely in (module.ON_RIM, 1.0):
        monkeypatch.setattr(module, "ON_RIM", likely)
        (found,) = outlined(picture, seen, torch.ones(1, 1, 1))
        assert found[36, 30]
        counts.append(int(found[:, 56:].sum()))
    assert counts[0] < counts[1]


@pytest.mark.parametrize("others", [1, 3, 7])
def test_how_many_things_there_are_does_not_move_an_outline(others):
    thing = disc(36, 20, 11)
    picture, seen = painted((thing, GREEN)), glimpses(thing)
    owners = torch.zeros(1 + others, 8, 8)
    owners[0] = F.adaptive_avg_pool2d(torch.from_numpy(thing)[None].float(), 8)
    wanted = outlined(picture, seen.repeat(2, 1, 1), owners[:2])[0]
    found = outlined(picture, seen.repeat(1 + others, 1, 1), owners)
    assert np.array_equal(found[0], wanted) and wanted.sum() > 300


def test_a_thing_that_is_seen_nowhere_takes_nothing_from_the_others():
    one, other = disc(36, 16, 9), disc(36, 46, 9)
    seen = glimpses(one, other)
    picture = painted((one, GREEN), (other, RED))
    both = outlined(picture, seen, seen)
    seen[1] = 0
    found = outlined(picture, seen, glimpses(one, other))
    assert np.array_equal(found[0], both[0]) and not found[1].any()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 64), (64, 5), (12, 12)])
def test_pictures_of_any_size_have_outlines(size):
    seen = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = outlined(torch.rand(3, *size), seen, torch.ones(2, 1, 1))
    assert found.shape == (2, *size) and found.dtype == bool


def test_attention_that_is_no_number_is_none():
    thing = disc(36, 20, 11)
    seen, owners = glimpses(thing), torch.ones(1, 1, 1)
    wanted = outlined(painted((thing, GREEN)), seen, owners)
    seen[0, 0, 7] = float("nan")
    assert overlap(outlined(painted((thing, GREEN)), seen, owners)[0], wanted[0]) > 0.9
    assert not outlined(painted((thing, GREEN)), torch.full((1, 8, 8), float("nan")), owners).any()


def test_scenery_of_its_own_colour_is_no_thing():
    """A band of sea behind two things, to which half as much attention goes as to them."""
    one, other = disc(40, 20, 9), disc(40, 46, 9)
    sea = np.zeros((64, 64), dtype=bool)
    sea[26:34] = True
    picture = painted((sea, (0.1, 0.3, 0.8)), (one, GREEN), (other, RED))
    seen = glimpses(one | sea, other | sea)
    seen += glimpses(one, other)
    found = outlined(picture, seen, glimpses(one, other)).any(axis=0)
    assert found[one | other].mean() > 0.95
    assert found[:24].mean() < 0.02 and found[26:34, :6].mean() < 0.1 and found[26:34, 58:].mean() < 0.1


def test_what_goes_on_beyond_the_picture_is_no_thing_however_much_it_is_looked_at():
    one, other = disc(40, 20, 9), disc(40, 46, 9)
    sea = np.zeros((64, 64), dtype=bool)
    sea[28:36] = True
    picture = painted((sea, (0.1, 0.3, 0.8)), (one, GREEN), (other, RED))
    near = sea.copy()
    near[:, :4] = near[:, 60:] = False
    seen = glimpses(one | near, other | near)
    found = outlined(picture, seen, glimpses(one, other)).any(axis=0)
    assert found[one | other].mean() > 0.95 and found[sea & ~one & ~other].mean() < 0.2


@pytest.mark.parametrize(
    "thing",
    [
        pytest.param(disc(56, 32, 16), id="a disc that the lower edge cuts"),
        pytest.param(disc(32, 60, 14) | disc(20, 60, 8), id="one that the right edge cuts"),
        pytest.param(np.pad(np.ones((24, 24), dtype=bool), ((40, 0), (20, 20))), id="one that stands on it"),
    ],
)
def test_a_thing_that_one_side_cuts_off_is_a_thing(thing):
    for least in (SURELY, PERHAPS):
        picture, seen = painted((thing, GREEN)), glimpses(thing, cells=32)
        (found,) = module.outlines(picture, seen, torch.ones(1, 1, 1), [least])[0]
        assert found[thing].mean() > 0.95 and found[~thing].mean() < 0.05


def test_a_part_weighs_its_rim_less():
    """A thing that reaches both sides of what it is drawn in."""
    long = np.zeros((64, 64), dtype=bool)
    long[28:36] = True
    picture, seen = painted((long, GREEN)), glimpses(long, cells=32)
    shares = [
        module.outlines(picture, seen, torch.ones(1, 1, 1), [CUT_OUT], weight)[0][0][long].mean()
        for weight in (module.RIM_WEIGHT, RIM_OF_A_PART)
    ]
    assert shares[0] < 0.5 and shares[1] > 0.95


def test_all_that_may_be_of_a_thing_is_more_than_what_surely_is():
    thing, more = disc(40, 20, 9), disc(40, 46, 6)
    picture, seen = painted((thing, GREEN), (more, RED)), glimpses(thing) + 0.5 * glimpses(more)
    surely, perhaps = module.outlines(picture, seen, torch.ones(1, 1, 1), [SURELY, PERHAPS])
    assert surely[0, 40, 20] and not surely[0, 40, 46] and perhaps[0, 40, 20] and perhaps[0, 40, 46]


def test_a_horizon_goes_on_behind_what_is_taken_away():
    picture = painted()
    picture[:, 36:] = torch.tensor(GREEN).view(3, 1, 1)
    hole = disc(36, 32, 12)
    found = filled(torch.where(torch.from_numpy(hole), torch.tensor(0.0), picture), hole)
    assert (found - picture).abs()[:, hole].mean() < 0.06


@pytest.mark.parametrize("size", [(48, 64), (200, 256)])
def test_what_is_taken_away_follows_from_around_it(size):
    """A slope solves the Laplace equation, so it is found again."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    slope = torch.from_numpy(np.stack([rows / size[0], columns / size[1], 0 * rows + 0.5])).float()
    hole = disc(size[0] / 2, size[1] / 2, size[0] / 4, size)
    covered = torch.where(torch.from_numpy(hole), torch.tensor(1.0), slope)
    found = filled(covered, hole)
    kept = torch.from_numpy(~hole)
    assert torch.equal(found[:, kept], covered[:, kept])
    assert (found - slope).abs().max() < (1e-5 if max(size) <= module.WALKED else 0.02)


def test_what_is_left_over_beside_a_hole_does_not_run_into_it():
    """A dark tail on a shore; where nothing is like its row, all of it counts."""
    rows = torch.linspace(0.2, 0.8, 32)[None, :, None].expand(3, 32, 32)
    hole = np.zeros((32, 32), dtype=bool)
    hole[10:26, 4:20] = True
    spoilt = rows.clone()
    spoilt[:, 14:17, 20:24] = 0
    found = filled(spoilt, hole)
    inside = torch.from_numpy(hole)
    assert (found - rows).abs()[:, inside].max() < 0.02
    assert torch.equal(found[:, ~inside], spoilt[:, ~inside]), "it stays where it is"
    mixed = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = filled(mixed, hole)[:, inside]
    assert blurred.isfinite().all() and mixed.min() <= blurred.min() and blurred.max() <= mixed.max()


def test_nothing_is_taken_away_where_there_is_no_hole_or_nothing_else():
    picture = torch.rand(3, 16, 16)
    assert torch.equal(filled(picture, np.zeros((16, 16), dtype=bool)), picture)
    assert torch.equal(filled(picture, np.ones((16, 16), dtype=bool)), picture)
    thin = np.ones((512, 512), dtype=bool)
    thin[:4] = False
    picture = torch.rand(3, 512, 512)
    found = filled(picture, thin)
    assert torch.equal(found[:, :4], picture[:, :4])
    assert torch.allclose(found[:, 4:], picture[:, :4].mean(dim=(1, 2)).view(3, 1, 1).expand(3, 508, 512))
    picture[0, 0, 0] = float("nan")
    assert filled(picture, thin)[:, 4:].isfinite().all()
    assert not grown(np.zeros((64, 64), dtype=bool)).any()
    assert grown(disc(32, 32, 5))[32, 38] and not grown(disc(32, 32, 5))[32, 41]


def test_attention_that_is_the_same_everywhere_shows_no_thing():
    picture = painted((disc(36, 20, 11), GREEN))
    assert not outlined(picture, torch.zeros(1, 8, 8), torch.ones(1, 1, 1)).any()
    assert not outlined(picture, torch.full((2, 8, 8), 0.3), torch.ones(2, 1, 1)).any()


def test_what_is_no_number_is_no_edge():
    picture, thing = painted((disc(36, 20, 11), GREEN)), disc(36, 20, 11)
    picture[:, 60:, 60:] = float("nan")
    found = outlined(picture, glimpses(thing), torch.ones(1, 1, 1))
    assert overlap(found[0], thing) > 0.75
    assert filled(picture, thing)[:, 36, 20].isfinite().all()
