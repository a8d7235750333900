"""Scores against small cases that can be worked out by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from conceptkit.evaluate import metrics


def unit(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def test_similarity_is_the_mean_over_all_pairs():
    found, real = unit([1, 0], [0, 1]), unit([1, 0], [1, 1])
    assert metrics.similarity(found, real) == pytest.approx((1 + 0 + 2 * math.sqrt(0.5)) / 4)


def test_the_ceiling_never_compares_a_photo_with_its_own_round_trip():
    real = unit([1, 0, 0], [0, 1, 0], [0, 0, 1])
    assert metrics.held_out_similarity(real, real) == 0.0
    alike = unit([1, 0], [1, 0])
    assert metrics.held_out_similarity(alike, alike) == 1.0
    assert metrics.held_out_similarity(unit([1, 1]), unit([1, 0])) == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(("score", "told"), [(0.2, 0.0), (0.9, 1.0), (0.55, 0.5)])
def test_gap_is_0_at_the_floor_and_1_at_the_ceiling(score, told):
    assert metrics.gap(score, 0.2, 0.9) == pytest.approx(told)


def test_gap_is_no_number_where_the_class_noun_is_as_good_as_the_photos():
    assert math.isnan(metrics.gap(0.5, 0.9, 0.9))


def test_identified_counts_the_pictures_nearest_to_the_right_subject():
    real = unit([1, 0, 0], [1, 0.1, 0])
    others = torch.stack([unit([0, 1, 0], [0, 1, 0.1]), unit([0, 0, 1], [0.1, 0, 1])])
    found = unit([1, 0.2, 0], [0.1, 1, 0], [0.9, 0, 0.3], [0, 0, 1])
    assert metrics.identified(found, real, others) == 0.5
