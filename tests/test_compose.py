"""The closed form against a dense solution of the whole KKT system, which shares no step with it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conceptkit.features.closed_form import (
    CROWDED,
    FULL,
    MAX_CONDITION,
    PRICE,
    SPAN_ENERGY,
    Solution,
    balanced,
    closed_form,
    factor,
    gram,
    merge_rows,
    near_rows,
    principal_rows,
    relative_error,
    soft_form,
    weak_span,
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


def test_whitening_has_a_way_back_and_a_way_on():
    moment, rows, _ = problem(9, 4, 1, seed=8)
    metric = factor(moment)
    white = metric.whiten(rows)
    assert relative_error(metric.colour(white), rows) < 1e-10
    assert relative_error(metric.read(white), metric.solve(rows)) < 1e-10
    assert relative_error(white @ white.T, rows @ metric.solve(rows).T) < 1e-10


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 24), st.integers(1, 12), st.integers(1, 20), st.integers(0, 2**31))
def test_few_rows_are_merged_by_the_closed_form(d, s, outputs, seed):
    moment, rows, targets = problem(d, min(s, max(1, int(CROWDED * d))), outputs, seed)
    metric = factor(moment)
    found, plain = merge_rows(metric.whiten(rows), targets, metric), closed_form(rows, targets, metric)
    if found.shared == 0:
        assert agree(product(found), product(plain))
        assert (found.problem, found.damping) == (plain.problem, plain.damping)


@settings(max_examples=40, deadline=None)
@given(st.integers(6, 20), st.integers(1, 3), st.integers(2, 3), st.integers(0, 2**31))
def test_rows_that_nearly_coincide_become_one_and_share_fairly(d, s, copies, seed):
    moment, rows, _ = problem(d, s, 4, seed)
    make = torch.Generator().manual_seed(seed)
    lengths = 0.2 + torch.rand(copies, s, 1, generator=make).double()
    signs = torch.where(torch.rand(copies, s, 1, generator=make) < 0.5, -1.0, 1.0).double()
    asked = torch.randn(copies, s, 4, generator=make).double()
    metric = factor(moment)
    many = (lengths * signs * rows).flatten(0, 1)
    found = merge_rows(metric.whiten(many), (lengths * signs * asked).flatten(0, 1), metric)
    once = merge_rows(metric.whiten(rows), asked.mean(dim=0), metric)
    if once.shared == 0:
        assert found.shared == (copies - 1) * s
        assert agree(product(found), product(once), 1e-6)
        # The order of the rows, or of the concepts they come from, is no matter.
        order = torch.randperm(len(many), generator=make)
        wanted = (lengths * signs * asked).flatten(0, 1)
        again = merge_rows(metric.whiten(many[order]), wanted[order], metric)
        assert agree(product(again), product(found), 1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 20), st.integers(1, 4), st.integers(1, 4), st.floats(1e-3, 1e3), st.integers(0, 2**31))
def test_soft_constraints_are_one_least_squares_problem(d, concepts, rank, weight, seed):
    """Against numpy's lstsq of D [G^1/2, w^1/2 X_i^T, ...] = [0, w^1/2 D_i X_i^T, ...]."""
    make = torch.Generator().manual_seed(seed)
    moment, _, _ = problem(d, 1, 1, seed)
    shape = factor(moment)
    deltas = [
        torch.randn(6, rank, generator=make).double() @ torch.randn(rank, d, generator=make).double()
        for _ in range(concepts)
    ]
    features = [torch.randn(m, d, generator=make).double() for m in range(2, 2 + concepts)]
    asked, given_values = [], []
    for delta, rows in zip(deltas, features, strict=True):
        left, sizes, right = torch.linalg.svd(rows @ delta.T, full_matrices=False)
        asked.append(left.T @ shape.whiten(rows))
        given_values.append(sizes.unsqueeze(1) * right)
    seen = torch.cat([shape.whiten(rows) for rows in features])
    down, used, condition = soft_form(torch.cat(asked), seen, shape, weight)
    found = (torch.cat(given_values).T @ down).numpy()

    whole = moment + shape.ridge * torch.eye(d, dtype=torch.float64)
    blocks = [torch.linalg.cholesky(whole), *(weight**0.5 * rows.T for rows in features)]
    wanted = [torch.zeros(6, d).double()]
    wanted += [weight**0.5 * delta @ rows.T for delta, rows in zip(deltas, features, strict=True)]
    left, right = torch.cat(blocks, 1).T.numpy(), torch.cat(wanted, 1).T.numpy()
    expected = np.linalg.lstsq(left, right, rcond=None)[0].T
    assert agree(found, expected, 1e-6)
    moments = sum(rows.T @ rows for rows in features)
    hat = weight * moments @ torch.linalg.inv(whole + weight * moments)
    assert used == pytest.approx(float(hat.trace()), rel=1e-6, abs=1e-9)
    assert 0 < used < d
    assert condition >= 1


def test_groups_are_complete_not_chains():
    """Each of these rows is near the next, the first and the last are not near: they are not one group."""
    angles = torch.arange(12) * 0.04
    white = torch.stack([angles.cos(), angles.sin()], dim=1).double()
    together = near_rows(white)
    groups = (together != 0).double().T @ (together != 0).double()
    likeness = white @ white.T
    bound = (MAX_CONDITION - 1) / (MAX_CONDITION + 1)
    assert 1 < len(together) < 12
    assert (likeness[groups > 0] >= bound - 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 24), st.floats(CROWDED + 0.01, FULL), st.integers(0, 2**31))
def test_a_crowd_pays_a_bounded_price(d, share, seed):
    moment, rows, targets = problem(d, int(share * d), 6, seed)
    metric = factor(moment)
    found = merge_rows(metric.whiten(rows), targets, metric)
    s = len(rows) - found.shared
    if found.shared or not CROWDED < s / d <= FULL:
        return
    lengths = torch.stack([row @ metric.solve(row[None])[0] for row in rows])
    expected = dense_kkt(moment, metric.ridge, rows, targets, found.damping * lengths)
    assert agree(product(found), expected, 1e-6)
    scaled = (rows @ metric.solve(rows).T) / torch.outer(lengths, lengths).sqrt()
    values = torch.linalg.eigvalsh(scaled)
    price = float((values / (values + found.damping) ** 2).mean())
    assert price <= PRICE * (1 + 1e-6)
    assert found.damping == 0 or price > 0.5 * PRICE or found.condition > MAX_CONDITION


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 16), st.integers(1, 3), st.integers(0, 2**31))
def test_beyond_the_limit_only_weak_directions_are_read(d, times, seed):
    moment, _, _ = problem(d, 1, 1, seed)
    make = torch.Generator().manual_seed(seed)
    rows = torch.randn(times * d, d, generator=make, dtype=torch.float64)
    targets = torch.randn(times * d, 5, generator=make, dtype=torch.float64)
    metric = factor(moment)
    found = merge_rows(metric.whiten(rows), targets, metric)
    if (len(rows) - found.shared) / d <= FULL:
        return
    assert found.problem == "span"
    sizes, span = weak_span(metric)
    whole = torch.from_numpy(product(found))
    assert relative_error(whole @ span @ span.T, whole) < 1e-8
    energy = moment.double() + metric.ridge * torch.eye(d)
    held = float((span.T @ energy @ span).trace() / energy.trace())
    assert held <= SPAN_ENERGY + 1e-9 or len(sizes) == 1
    # It is the KKT point of the damped problem among those: features seen through the span alone.
    inner = rows @ span
    lengths = (inner / sizes).square().sum(dim=1)
    if found.shared == 0 and (lengths > 1e-8).all():
        wide = metric.whiten(rows).norm(dim=1, keepdim=True)
        unit = inner / wide
        slack = found.damping * (unit / sizes).square().sum(dim=1)
        expected = dense_kkt(torch.diag(sizes**2), 0.0, unit, targets / wide, slack)
        assert agree(product(found) @ span.numpy(), expected, 1e-5)
