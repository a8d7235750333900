"""Early stopping: the loss on fixed noise, the best step kept, the curve as a picture."""

from dataclasses import replace

import numpy as np
import torch

from conceptkit.learn import early_stopping
from conceptkit.learn.early_stopping import EarlyStopping
from conceptkit.pictures import charts
from tests.learning import TINY, method, outcome, values


def test_the_best_step_is_kept_and_learning_stops_when_it_gets_no_better():
    told = iter([3.0, 2.0, 2.5, 2.6, 0.0])
    row = torch.nn.Parameter(torch.zeros(2))
    watch, steps = EarlyStopping(2, 2, lambda: next(told)), 0
    for step in range(20):
        if watch.look(step, [row]):
            break
        row.data += 1
        steps = step + 1
    assert steps == 6 and watch.best_step == 2
    assert watch.curve == [(0, 3.0), (2, 2.0), (4, 2.5), (6, 2.6)]
    watch.put_back([row])
    assert row.tolist() == [2, 2]


def test_what_a_stage_begins_with_may_be_the_best_of_it():
    told = iter([3.0, 1.0, 2.0, 2.5])
    row = torch.nn.Parameter(torch.zeros(1))
    watch = EarlyStopping(20, 0, lambda: next(told))
    watch.look(0, [row])
    watch.look(30, [row], last=True)
    watch.begin(30, [row])  # the values of the best step before, which is not what was measured last
    row.data += 1
    watch.look(40, [row])
    assert watch.best_step == 30 and watch.curve == [(0, 3.0), (30, 2.0), (40, 2.5)]
    watch.put_back([row])
    assert row.item() == 0


def test_without_patience_it_only_keeps_the_best():
    told = iter([3.0, 1.0, 2.0, 4.0])
    row = torch.nn.Parameter(torch.zeros(1))
    watch = EarlyStopping(1, 0, lambda: next(told))
    assert not any(watch.look(step, [row]) for step in range(3))
    assert not watch.look(3, [row], last=True) and watch.best_step == 1


def test_the_last_photo_is_judged_on_and_not_learned_from(pico, shown, monkeypatch):
    seen = []
    from conceptkit.learn import latent_dataset

    pool, still = latent_dataset.latent_dataset, latent_dataset.still_dataset
    monkeypatch.setattr(
        latent_dataset,
        "latent_dataset",
        lambda b, p, *a, **k: seen.append(("learned", p.names)) or pool(b, p, *a, **k),
    )
    monkeypatch.setattr(
        latent_dataset,
        "still_dataset",
        lambda b, p, *a, **k: seen.append(("judged", p.names)) or still(b, p, *a, **k),
    )
    made = outcome(pico, shown, replace(TINY, validation_steps=1, prior_loss_weight=0.0))
    assert seen == [("learned", shown.names[:2]), ("judged", shown.names[2:])]
    assert [step for step, _ in made.curve] == list(range(6)) and made.kept in range(6)
    few = replace(shown, pictures=shown.pictures[:2], names=shown.names[:2])
    seen.clear()
    outcome(pico, few, replace(TINY, validation_steps=2, prior_loss_weight=0.0))
    assert seen == [("learned", few.names), ("judged", few.names)]


def test_measuring_changes_nothing_that_is_learned(pico, shown, monkeypatch):
    few = replace(shown, pictures=shown.pictures[:2], names=shown.names[:2])
    recipe = method("textual-inversion")
    plain = outcome(pico, few, recipe)
    monkeypatch.setattr(early_stopping.EarlyStopping, "put_back", lambda *a: None)
    watched = outcome(pico, few, replace(recipe, validation_steps=1))
    assert torch.equal(values(plain.whole), values(watched.whole))
    again = outcome(pico, few, replace(recipe, validation_steps=1))
    assert again.curve == watched.curve, "the same noise, every time"


def test_the_curve_is_a_picture_with_the_kept_step_marked():
    curve = [(0, 1.0), (20, 0.5), (40, 0.7)]
    marked = np.asarray(charts.loss_curve(curve, 20, "my_dog"))
    plain = np.asarray(charts.loss_curve(curve, None, "my_dog"))
    assert marked.shape == (400, 640, 3) and (marked != plain).any()
    orange = (np.abs(marked.astype(int) - (194, 65, 12)).sum(2) < 20).nonzero()
    assert len(orange[0]) > 20
    assert charts.loss_curve([(0, 1.0)], 0, "one point").size == (640, 400)


def test_a_scatter_names_its_points_and_joins_those_of_one_kind():
    points = {"ours small": (1e3, 0.8), "ours full": (1e5, 0.9), "other": (1e6, 0.5)}
    joined = np.asarray(charts.scatter("title", "bytes", "share", points, joined="ours"))
    apart = np.asarray(charts.scatter("title", "bytes", "share", points))
    assert joined.shape == apart.shape == (560, 900, 3) and (joined != apart).any()
    assert charts.scatter("title", "bytes", "share", {"one": (1.0, 0.0)}).size == (900, 560)


def test_names_of_points_that_are_near_stand_beside_each_other():
    figure, axes = charts._figure((900, 560), "title")
    points = {f"a rather long name {k}": (1000.0 + k, 0.5 + 0.001 * k) for k in range(4)}
    points |= {"left": (0.0, 0.0), "right": (2000.0, 1.0)}
    for x, y in points.values():
        axes.plot([x], [y], "o")
    charts._name_points(figure, axes, points, [])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(points)
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])
