"""Masks from attention: against what was drawn into it, for things of one class and of several."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from conceptkit.inference import layout_masks
from conceptkit.inference.layout_masks import find_parts, joint_bilateral, otsu, soft_masks, without_specks

SIDE = 16


def blob(y: float, x: float, radius: float = 3.0, side: int = SIDE) -> np.ndarray:
    """A disc (side, side) of bool."""
    rows, columns = np.mgrid[:side, :side]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def attention(discs, leak: float = 0.0, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """(N, side, side): each noun looks at its own disc, and by `leak` of it at the others'."""
    rng = np.random.default_rng(seed)
    drawn = np.stack(discs).astype(float)
    seen = 0.1 * (drawn * (1 - leak) + leak * drawn.sum(axis=0))
    return seen + noise * 0.1 * rng.random(seen.shape)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("nouns", [("dog", "gate"), ("dog", "dog"), ("dog", "gate", "cat"), ("dog",) * 3])
def test_each_noun_has_the_disc_that_was_drawn_for_it(nouns):
    discs = [blob(8, x) for x in ((3, 12) if len(nouns) == 2 else (2, 8, 14))]
    discs = [disc & blob(8, 8, 20) for disc in discs]
    for order in itertools.permutations(range(len(nouns))):
        own = [discs[k] for k in order]
        parts = find_parts(attention(own, leak=0.4), nouns)
        assert parts.found.all()
        assert all(overlap(mask, disc) > 0.7 for mask, disc in zip(parts.masks, own, strict=True))
        assert parts.masks.sum(axis=0).max() == 1, "no cell is given away twice"


def test_a_noun_that_looks_nowhere_is_missing_and_has_some_free_cells():
    rng = np.random.default_rng(1)
    seen = attention([blob(8, 4), blob(8, 12)])
    seen[1] = 0.03 + 0.01 * rng.random(seen[1].shape)
    parts = find_parts(seen, ("dog", "gate"))
    assert parts.found.tolist() == [True, False]
    assert parts.masks[1].any() and not (parts.masks[0] & parts.masks[1]).any()


def test_one_part_of_two_things_is_parted_where_they_differ():
    whole = blob(8, 5) | blob(8, 10)
    left, right = attention([whole & (np.arange(SIDE) < 8), whole & (np.arange(SIDE) >= 8)], leak=0.5)
    parts = find_parts(np.stack([right, left]), ("dog", "dog"))
    first, second = (ndimage.center_of_mass(mask)[1] for mask in parts.masks)
    assert first > second and abs(int(parts.masks[0].sum()) - int(parts.masks[1].sum())) <= 4
    alike = find_parts(attention([whole, whole]), ("dog", "dog"))
    assert min(mask.sum() for mask in alike.masks) > 0.3 * whole.sum(), "nothing tells them apart: halves"


@pytest.mark.parametrize("left_of", [((0, 1),), ((1, 0),)])
def test_left_and_right_are_as_the_prompt_says_among_things_of_a_class(left_of):
    seen = attention([blob(8, 3), blob(8, 12)], leak=0.45)
    parts = find_parts(seen, ("dog", "dog"), left_of)
    middles = [ndimage.center_of_mass(mask)[1] for mask in parts.masks]
    ((left, right),) = left_of
    assert middles[left] < middles[right]


def test_a_place_that_is_given_is_kept_and_others_stay_out_of_it():
    given = np.zeros((SIDE, SIDE), dtype=bool)
    given[:, :8] = True
    seen = attention([blob(8, 12), blob(8, 5)])
    parts = find_parts(seen, ("dog", "gate"), given={0: given})
    assert np.array_equal(parts.masks[0], given) and parts.found[0]
    assert not (parts.masks[1] & given).any()


def test_otsu_parts_two_heaps_and_specks_are_dropped():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 0.1, 200), rng.normal(1, 0.1, 50)])
    assert 0.3 < otsu(values) < 0.7
    assert otsu(np.full(4, 2.0)) == 2.0
    mask = blob(8, 4) | blob(2, 14, 1)
    kept = without_specks(mask, mask.astype(float))
    assert np.array_equal(kept, blob(8, 4))


def test_a_joint_bilateral_filter_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    masks, guide = (torch.rand(n, 5, 6, generator=generator) for n in (2, 3))
    found = joint_bilateral(masks, guide)
    around = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]

    def at(y, x):
        return min(max(y, 0), 4), min(max(x, 0), 5)

    off = {
        (y, x, *d): float((guide[:, *at(y + d[0], x + d[1])] - guide[:, y, x]).square().sum())
        for y in range(5)
        for x in range(6)
        for d in around
    }
    scale = 2 * sum(off.values()) / len(off)
    for n, y, x in itertools.product(range(2), range(5), range(6)):
        weights = {d: np.exp(-off[y, x, *d] / scale - (d[0] ** 2 + d[1] ** 2) / 4) for d in around}
        wanted = sum(w * float(masks[n, *at(y + d[0], x + d[1])]) for d, w in weights.items())
        assert float(found[n, y, x]) == pytest.approx(wanted / sum(weights.values()), abs=1e-5)


def test_edges_follow_the_outline_in_the_latents_and_the_front_one_has_its_way():
    rough = np.zeros((2, 8, 8), dtype=bool)
    rough[0, 2:6, 1:4], rough[1, 2:6, 4:7] = True, True
    guide = torch.zeros(1, 16, 16)
    guide[:, 4:12, 2:9] = 1  # the thing itself ends a cell further right than the coarse mask
    guide[:, 4:12, 9:14] = -1
    soft = soft_masks(rough, guide)
    assert soft.shape == (2, 16, 16) and soft.sum(dim=0).max() <= 1 + 1e-6
    assert soft[0, 8, 4] > 0.9 and soft[1, 8, 12] > 0.9 and soft[:, 15, 15].max() < 1e-3
    assert 0.05 < float(soft[0, 8, 0]) < 1, "an edge is soft"
    for front, back in ((0, 1), (1, 0)):
        ordered = soft_masks(rough, guide, [(front, back)])
        seam = slice(7, 11)
        assert (ordered[front, 8, seam] >= soft[front, 8, seam] - 1e-6).all()
        assert (ordered[back, 8, seam] <= soft[back, 8, seam] + 1e-6).all()
        assert ordered[front, 8, seam].sum() > soft[front, 8, seam].sum() + 0.1


def test_a_thing_is_in_one_place_with_its_pieces_and_another_of_its_class_is_said():
    body, head, other = blob(10, 4), blob(5, 4, 1.5), blob(8, 13, 2.5)
    gate = attention([body | head, blob(2, 13, 1.0)])[1]
    seen = np.stack([attention([body | head | other])[0], gate])
    parts = find_parts(seen, ("dog", "gate"))
    assert overlap(parts.masks[0], body | head) > 0.7 and not (parts.masks[0] & other).any()
    assert parts.spare.tolist() == [True, False]
    several = find_parts(seen, ("dogs", "gate"), plural=[0])
    assert overlap(several.masks[0], body | head | other) > 0.7 and not several.spare.any()
    assert not find_parts(np.stack([attention([body | head])[0], gate]), ("dog", "gate")).spare.any()


def test_a_piece_of_two_things_goes_to_the_nearer_and_one_shape_of_two_is_said():
    left, right, head = blob(11, 3), blob(11, 12), blob(6, 12, 1.5)
    seen = attention([left, right | head], leak=0.5)
    parts = find_parts(seen, ("dog", "dog"))
    assert overlap(parts.masks[1], right | head) > 0.7 and not parts.parted.any() and not parts.spare.any()
    joined = blob(8, 5) | blob(8, 10)
    assert find_parts(attention([joined, joined]), ("dog", "dog")).parted.all()


def test_a_mask_reaches_over_its_outline_but_not_into_another_thing(monkeypatch):
    monkeypatch.setattr(layout_masks, "SPREAD", 3.0)
    rough = np.stack([blob(8, 4, 3.0), blob(8, 11, 3.0)])
    soft = soft_masks(rough, None)
    assert soft[0, 8, 0] > 0.9 and soft[0, 3, 4] > 0.5
    own = torch.from_numpy(rough)
    assert soft[0][own[1]].max() < 0.3 and soft[1][own[0]].max() < 0.3
    assert soft[1][own[1]].mean() > 0.95


def test_what_is_in_front_has_its_cells_though_the_thing_behind_is_looked_for_there():
    gate, dog = blob(7, 9, 6), blob(11, 5, 3)
    seen = attention([dog, gate])
    seen[0] *= 0.7
    seen[1][dog] = 0.12
    parts = find_parts(seen, ("dog", "gate"), over=[(0, 1)])
    assert overlap(parts.masks[0], dog) > 0.7 and overlap(parts.masks[1], gate & ~dog) > 0.7
    assert parts.found.all()
    behind = find_parts(seen, ("dog", "gate"), over=[(1, 0)])
    assert overlap(behind.masks[1], gate | dog) > 0.7
