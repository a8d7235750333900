"""The closed form against a dense solution of the whole KKT system, which shares no step with it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conceptkit.compose import (
    Solution,
    balanced,
    closed_form,
    factor,
    gram,
    principal_rows,
    relative_error,
)


def problem(d: int, s: int, outputs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A moment G (d, d) of uneven features, rows C (s, d) and targets R (s, O)."""
    make = torch.Generator().manual_seed(seed)
    shape = torch.randn(d, d, generator=make, dtype=torch.float64)
    features = torch.randn(4 * d, d, generator=make, dtype=torch.float64) @ shape
    moment = gram(features[None], torch.ones(1, 4 * d))
    rows = torch.randn(s, d, generator=make, dtype=torch.float64) @ shape
    return moment, rows, torch.randn(s, outputs, generator=make, dtype=torch.float64)


def dense_kkt(moment: Tensor, ridge: float, rows: Tensor, targets: Tensor, slack: Tensor) -> np.ndarray:
    """D (O, d) from [[G, C^T], [C, -slack]] [D^T; multipliers] = [0; R]."""
    d, s = len(moment), len(rows)
    system = np.zeros((d + s, d + s))
    system[:d, :d] = moment.numpy() + ridge * np.eye(d)
    system[:d, d:] = rows.numpy().T
    system[d:, :d] = rows.numpy()
    system[d:, d:] = -np.diag(slack.numpy())
    right = np.concatenate([np.zeros((d, targets.shape[1])), targets.numpy()])
    return np.linalg.solve(system, right)[:d].T


def product(solution: Solution) -> np.ndarray:
    return (solution.up @ solution.down).numpy()


def agree(found: np.ndarray, expected: np.ndarray, accuracy: float = 1e-8) -> bool:
    return bool(np.linalg.norm(found - expected) <= accuracy * np.linalg.norm(expected))


shapes = st.integers(2, 24).flatmap(
    lambda d: st.tuples(st.just(d), st.integers(1, d), st.integers(1, 40), st.integers(0, 2**31))
)


@settings(max_examples=80, deadline=None)
@given(shapes)
def test_exact_constraints(shape):
    moment, rows, targets = problem(*shape)
    metric = factor(moment)
    solution = closed_form(rows, targets, metric, max_condition=1e14)
    # The dense system squares the condition of the problem; its own accuracy is the limit of the comparison.
    accuracy = max(1e-8, 1e-13 * solution.condition * float(torch.linalg.cond(moment)))
    assert solution.damping == 0
    assert solution.down.shape == rows.shape
    assert solution.up.shape == targets.T.shape
    expected = dense_kkt(moment, metric.ridge, rows, targets, torch.zeros(len(rows)))
    assert agree(product(solution), expected, accuracy)
    assert relative_error(rows @ solution.down.T @ solution.up.T, targets) < 1e-13 * solution.condition + 1e-9


@settings(max_examples=60, deadline=None)
@given(shapes, st.floats(1.5, 1e6))
def test_damped_is_the_kkt_point_of_the_damped_problem(shape, bound):
    moment, rows, targets = problem(*shape)
    # Two concepts of one class: every row again, hardly moved, with another target.
    rows = torch.cat([rows, rows + 1e-9 * rows.roll(1, 0)])
    targets = torch.cat([targets, targets.roll(1, 1) + 1])
    metric = factor(moment)
    solution = closed_form(rows, targets, metric, max_condition=bound)
    assert solution.condition > 1e6
    assert solution.damping > 0
    lengths = torch.stack([row @ metric.solve(row[None])[0] for row in rows])
    expected = dense_kkt(moment, metric.ridge, rows, targets, solution.damping * lengths)
    assert agree(product(solution), expected, 1e-6)
    scaled = (rows @ metric.solve(rows).T) / torch.outer(lengths, lengths).sqrt()
    damped = scaled + solution.damping * torch.eye(len(rows))
    assert float(torch.linalg.cond(damped)) == pytest.approx(bound, rel=1e-3)


def test_equal_rows_get_their_mean_whatever_their_length_and_order():
    moment, rows, targets = problem(8, 1, 5, seed=3)
    other = targets.flip(1) + 2
    metric = factor(moment)
    # A longer row asks for as much more; both ask for something else at the same feature.
    first = closed_form(torch.cat([rows, 3 * rows]), torch.cat([targets, 3 * other]), metric)
    second = closed_form(torch.cat([3 * rows, rows]), torch.cat([3 * other, targets]), metric)
    assert agree(product(first), product(second))
    got = rows @ first.down.T @ first.up.T
    assert relative_error(got, (targets + other) / 2) < 2e-3
    assert first.condition == float("inf")


def test_a_row_that_is_there_twice_changes_nothing():
    moment, rows, targets = problem(12, 3, 7, seed=4)
    once = closed_form(rows, targets, factor(moment))
    twice = closed_form(rows.repeat(2, 1), targets.repeat(2, 1), factor(moment))
    assert agree(product(twice), product(once), 5e-3)


def test_more_rows_than_width_and_rows_of_zeros_still_have_an_answer():
    moment, rows, targets = problem(4, 4, 3, seed=5)
    many = closed_form(torch.cat([rows, rows + 1, rows - 2]), targets.repeat(3, 1), factor(moment))
    assert np.isfinite(product(many)).all()
    assert many.condition == float("inf")
    empty = closed_form(torch.zeros(1, 4), targets[:1], factor(moment))
    assert not product(empty).any()


def test_features_that_do_not_span_the_space():
    """Rank-deficient captions: the ridge, relative to the mean eigenvalue, keeps the answer finite."""
    features = torch.randn(1, 3, 16, dtype=torch.float64)
    moment = gram(features, torch.ones(1, 3))
    rows, targets = torch.randn(2, 16, dtype=torch.float64), torch.randn(2, 9, dtype=torch.float64)
    metric = factor(moment, ridge=1e-3)
    assert metric.ridge == pytest.approx(1e-3 * float(moment.trace()) / 16)
    solution = closed_form(rows, targets, metric)
    assert relative_error(rows @ solution.down.T @ solution.up.T, targets) < 1e-8
    with pytest.raises(ValueError, match="trace"):
        factor(torch.zeros(3, 3))


def test_gram_weighs_positions():
    hidden = torch.randn(2, 3, 4)
    weights = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]])
    expected = sum(
        weights[i, t] * torch.outer(hidden[i, t], hidden[i, t]) for i in range(2) for t in range(3)
    ) / float(weights.sum())
    assert torch.allclose(gram(hidden, weights), expected.double(), atol=1e-6)


def test_principal_rows_hold_the_energy_in_the_metric():
    moment, _, _ = problem(10, 1, 1, seed=6)
    metric = factor(moment)
    directions, sizes = torch.randn(3, 10, dtype=torch.float64), torch.tensor([10.0, 3.0, 1e-3]).double()
    rows = torch.randn(40, 3, dtype=torch.float64) * sizes @ directions
    picked = principal_rows(rows, metric, energy=0.9999)
    assert picked.shape == (2, 10)
    assert principal_rows(rows, metric, energy=1.0, most=1).shape == (1, 10)
    assert torch.linalg.matrix_rank(torch.cat([picked, directions]), rtol=1e-9) == 3
    products = picked @ metric.solve(picked).T
    assert abs(float(products[0, 1])) < 1e-9 * float(products[0, 0])
    held = len(rows) * products.trace() / (rows @ metric.solve(rows).T).trace()
    assert 0.9999 <= float(held) <= 1
    heavy = principal_rows(rows, metric, torch.cat([torch.ones(1), torch.zeros(39)]), most=1)
    assert relative_error(heavy * float(rows[0, 0] / heavy[0, 0]), rows[:1]) < 1e-9


def test_balancing_changes_no_product():
    down, up = torch.randn(3, 5), torch.randn(20, 3) * torch.tensor([1e-6, 1.0, 0.0])
    new_down, new_up = balanced(down, up)
    assert torch.equal(new_up @ torch.diag(torch.ones(3)), new_up)
    assert torch.allclose(new_up @ new_down, up @ down, rtol=1e-6)
    assert ((new_up.abs().amax(0) >= 1) | (new_up.abs().amax(0) == 0)).all()
    assert (new_up.abs().amax(0) < 2).all()
