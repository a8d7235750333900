"""The benchmarks of learning: their sums are right, and a trial runs to its last line and holds nothing."""

import json
from dataclasses import replace

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import (
    compose_cost,
    compose_many,
    compose_pairs,
    compose_style,
    learn_common,
    learn_methods,
    learn_prior,
    learn_scripts,
    learn_speed,
    learn_sude,
    plain_loop,
    report,
    taught,
)
from conceptkit.base import conditioning
from conceptkit.base import pipeline as bases
from conceptkit.base.noise_schedule import schedule_of
from conceptkit.evaluate import scorers
from conceptkit.features import caption_statistics
from conceptkit.learn import latent_dataset, training_step
from conceptkit.learn.config import DEFAULT_CONFIGS, config_for
from conceptkit.learn.subject import Subject
from conceptkit.storybook.training.judges import ATTRIBUTES
from conceptkit.storybook.world import scene
from conceptkit.workflows import add_settings
from tests import tiny
from tests.confining import calls_of_the_unet
from tests.learning import method
from tests.tiny import pico_concept

TRIAL = ["--subjects", "1", "--seeds", "2", "--drawing", "1"]


class Eye:
    """Tells pictures apart by their pixels."""

    def embed(self, pictures, batch=64):
        flat = torch.from_numpy(np.stack([np.asarray(p.convert("RGB").resize((8, 8))) for p in pictures]))
        return torch.nn.functional.normalize(flat.flatten(1).float() - 127.5, dim=1)


class Guess(scorers.AttributeJudge):
    """Sees something in every picture, by its pixels."""

    def __init__(self):
        self.names = ATTRIBUTES

    def logits(self, pictures, batch=64):
        seeds = [int(np.asarray(p.convert("RGB")).astype(int).sum()) for p in pictures]
        return torch.stack(
            [torch.randn(len(ATTRIBUTES), generator=torch.Generator().manual_seed(s)) for s in seeds]
        )


@pytest.fixture
def bench(pico, monkeypatch):
    monkeypatch.setattr(bases, "load", lambda *a, **k: pico)
    monkeypatch.setattr(scorers, "SubjectJudge", Eye)
    monkeypatch.setattr(scorers, "AttributeJudge", Guess)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for name, recipe in DEFAULT_CONFIGS.items():
        small = {
            "num_class_images": 2,
            "class_image_steps": 1,
            "num_augmented_views": 4,
            "train_batch_size": 2,
            "prior_batch_size": 2,
        }
        monkeypatch.setitem(DEFAULT_CONFIGS, name, replace(recipe, **small))


def last_line(command, *words):
    result = CliRunner().invoke(command, [*TRIAL, *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "A trial, which says nothing about the bar: " in result.stdout
    told = json.loads(lines[-1], parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert told["holds"] is None and "1 subjects of" in told["trial"]
    return told


def test_what_a_trial_lacks_is_said():
    assert report.shortfall(None, subjects=(10, 10), seeds=(5, 4)) == ""
    assert report.shortfall(7, subjects=(2, 10), seeds=(4, 4)) == "2 subjects of 10, 7 learning steps"


@pytest.mark.parametrize(("trial", "holds"), [("", True), ("1 subjects of 10", None)])
def test_a_trial_holds_nothing(capsys, trial, holds):
    report.finish("x", {"gap": float("nan"), "all": (1.0, np.float64("inf"))}, "y", 1, True, 0, trial=trial)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["holds"] is holds and told.get("trial", "") == trial
    assert told["value"] == {"gap": None, "all": [1.0, None]}


def test_means_leave_out_what_could_not_be_measured():
    assert taught.mean(np.array([1.0, float("nan"), 3.0])) == 2.0
    assert np.isnan(taught.mean(np.array([float("nan")])))


def test_diversity_is_the_mean_distance_within_a_prompt():
    same, apart = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert learn_prior.diversity(torch.stack([same, same, apart, apart]), 2) == pytest.approx(0.0)
    assert learn_prior.diversity(torch.stack([same, apart, same, apart]), 2) == pytest.approx(1.0)
    assert learn_prior.diversity(torch.stack([same, apart, same, same]), 2) == pytest.approx(0.5)
    three = torch.nn.functional.normalize(
        torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=1
    )
    pairs = [float(1 - three[i] @ three[j]) for i, j in ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5))]
    assert learn_prior.diversity(three, 3) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert np.isnan(learn_prior.diversity(three, 1))


def test_every_class_has_related_words_of_the_world():
    assert set(learn_prior.RELATED) == set(scene.CLASSES)
    for noun, others in learn_prior.RELATED.items():
        assert noun not in others and set(others) <= set(scene.CLASSES)


def test_bars_of_the_prior():
    good = {"diversity": 0.97, "turned": 0.02, "related": 0.99}
    assert learn_prior.misses(good) == []
    assert learn_prior.misses(good | {"turned": 0.3, "diversity": float("nan")}) == ["diversity", "turned"]


@pytest.mark.parametrize(("weight", "arm"), [(1.0, "prior"), (0.5, "prior"), (0.0, "no prior")])
def test_the_prior_is_judged_as_a_method_ships(monkeypatch, weight, arm):
    monkeypatch.setitem(
        DEFAULT_CONFIGS, "custom", replace(DEFAULT_CONFIGS["custom"], prior_loss_weight=weight)
    )
    assert learn_prior.by_default("custom") == arm


def test_captions_change_by_what_the_text_encoder_does_too():
    pipe = tiny.pico_sd()
    pico, concept = bases.of(pipe, "pico"), tiny.pico_concept(pipe, text_rank=2)
    before = tiny.snapshot(pipe)
    whole = learn_methods.captions_change(pico, concept)
    kept = {name: factors for name, factors in concept.delta.items() if not name.startswith("text_")}
    maps_alone = learn_methods.captions_change(pico, replace(concept, delta=kept))
    assert whole > maps_alone > 0 and tiny.snapshot(pipe) == before
    shape, moved = caption_statistics.statistics_of(pico), 0.0
    for factors in kept.values():
        moved += float((shape.held_out @ factors.dense().double().T).square().sum())
    assert maps_alone == pytest.approx(moved**0.5 / shape.size, rel=1e-4)
    nothing = {name: (0 * up, down) for name, (up, down) in kept.items()}
    assert learn_methods.captions_change(pico, replace(concept, delta=nothing)) == 0


def test_many_merges_lose_in_the_mean():
    lost = [{"class": 0.03, "place": 0.0}, {"class": -0.01, "place": 0.02}]
    assert compose_many.lost_most(lost) == pytest.approx(0.01)
    assert np.isnan(compose_many.lost_most([]))


def test_a_subjects_crop_is_from_the_pictures_in_which_it_alone_was_taught():
    """In the first picture the first subject stands left, in the second right."""
    first = np.array([[[0.9, 0.1], [0.2, 0.6]]])
    second = np.array([[[0.1, 0.8], [0.7, 0.2]]])
    found = compose_pairs.own_crops(first, second)
    assert found.tolist() == [[[0.9, 0.1], [0.1, 0.8]]] and compose_pairs.one_twice(found) == 0
    second[0, 0] = 0.9, 0.5
    assert compose_pairs.one_twice(compose_pairs.own_crops(first, second)) == 1


def test_what_is_left_of_a_look_stands_beside_what_its_colours_leave():
    lines = [{"subject alone": 0.4, "subject together": 0.2, "subject coloured": 0.25}] * 3
    assert compose_style.share(lines, "subject", "together")["share"] == pytest.approx(0.5)
    beside = compose_style.share(lines, "subject", "coloured")
    assert beside["share"] == pytest.approx(0.625) and beside["interval"] == pytest.approx([0.625, 0.625])


def test_each_way_to_draw_two_is_timed(pico, registry, monkeypatch):
    """A layout that is kept takes fewer calls than a new one."""
    pipe = pico.pipe
    for name, noun in (("my_dog", "dog"), ("moongate", "gate")):
        concept = pico_concept(pipe, name, noun)
        registry.add(name, concept.to_bytes(), concept.summary())
    monkeypatch.setattr(compose_cost, "STEPS", 4)
    monkeypatch.setattr(compose_cost, "seconds", lambda action: calls_of_the_unet(pipe, action))
    found = compose_cost.times(pico, registry, ("my_dog", "moongate"), range(2))
    assert list(found) == ["everywhere"] + [
        f"{way}, {layout} layout" for way in compose_cost.WAYS for layout in ("new", "kept")
    ]
    for way in compose_cost.WAYS:
        assert found[f"{way}, kept layout"] < found[f"{way}, new layout"]


def test_what_was_taught_by_another_recipe_is_taught_again(pico, registry, monkeypatch):
    few = config_for(
        changes={
            "token_train_steps": 1,
            "max_train_steps": 1,
            "train_batch_size": 1,
            "num_augmented_views": 2,
        }
    )
    for module in (taught.config, add_settings):
        monkeypatch.setattr(
            module,
            "config_for",
            lambda method=None, steps=None, *_, **__: replace(few, max_train_steps=steps or 1),
        )
    for steps, versions in ((2, 1), (2, 1), (None, 2)):
        taught.teach(pico, Eye(), registry, 0, steps)
        assert len(registry.versions("thing0")) == versions


def test_sude_must_gain_beyond_chance_and_stay_itself():
    def line(sude, without, alone, likeness=0.8):
        arms = dict(zip(learn_sude.ARMS, (sude, without, alone), strict=True))
        return arms | {"class": 0.9, "likeness sude": likeness, "likeness without": 0.8, "gap sude": 1.0}

    clear = [line(0.8, 0.5, 0.6), line(0.9, 0.5, 0.7), line(0.7, 0.6, 0.6)]
    figures = learn_sude.summary(clear)
    assert figures["gained over without"] == pytest.approx(0.8 / 3) and figures["fidelity"] == 1.0
    assert learn_sude.misses(figures) == []
    chance = learn_sude.summary([line(0.8, 0.5, 0.9), line(0.3, 0.5, 0.9, 0.7)])
    assert learn_sude.misses(chance) == ["gain over without", "gain over prompts alone", "fidelity"]


def test_the_same_gap_is_reached_on_the_straight_line_between_points():
    curve = [(10.0, 0.2), (20.0, 0.6), (30.0, 0.5)]
    assert learn_speed.reached(curve, 0.1) == pytest.approx(5.0)
    assert learn_speed.reached(curve, 0.4) == pytest.approx(15.0)
    assert learn_speed.reached(curve, 0.6) == pytest.approx(20.0)
    assert learn_speed.reached(curve, 0.7) is None and learn_speed.reached(curve, float("nan")) is None


def test_causes_add_up_to_the_difference():
    spent = {
        "reading pictures": 1.0,
        "encoding pictures": 2.0,
        "encoding prompts": 3.0,
        "UNet": 5.0,
        "optimiser": 0.5,
    }
    found = learn_speed.causes(spent, per_step=4.0, whole=50.0, steps=10)
    assert sum(found.values()) == pytest.approx(sum(spent.values()) - 50.0 / 10)
    assert found["UNet and optimiser"] == pytest.approx(1.5) and found["prepared once"] == pytest.approx(-1.0)


def plain(pico, shown, name, **more):
    recipe = replace(method(name), rank=min(2, plain_loop.recipe_of(name).rank), **more)
    return recipe, plain_loop.Plain(pico, shown.pictures, shown.pictures[:2], "dog", recipe)


@pytest.mark.parametrize("name", plain_loop.METHODS)
def test_the_plain_loop_learns_on_a_copy(pico, shown, name):
    before = tiny.snapshot(pico.pipe)
    _, run = plain(pico, shown, name)
    usual = tiny.draw(run.base.pipe, f"a photo of a {run.word}")
    losses = [run.step() for _ in range(3)]
    assert np.isfinite(losses).all() and all(spent > 0 for spent in run.clock.spent.values())
    assert not torch.equal(tiny.draw(run.base.pipe, f"a photo of a {run.word}"), usual)
    assert tiny.snapshot(pico.pipe) == before


def test_the_plain_loop_of_custom_diffusion_learns_nothing_at_the_beginning_of_text(pico, shown):
    _, run = plain(pico, shown, "custom-diffusion")
    layer = run.base.unet.get_submodule(next(name for name in pico.sizes if name.endswith("to_v")))
    made = layer(torch.ones(1, 3, layer.weight.shape[1]))
    for position, learns in enumerate([False, True, True]):
        (grad,) = torch.autograd.grad(made[:, position].sum(), layer.weight, retain_graph=True)
        assert bool(grad.any()) == learns


def test_the_plain_loop_teaches_the_text_encoder_too(pico, shown):
    _, run = plain(pico, shown, "dreambooth")
    text = [p for p in run.base.pipe.text_encoder.parameters() if p.requires_grad]
    assert text and {id(p) for p in text} < {id(p) for p in run.learned}
    before = [p.detach().clone() for p in text]
    for _ in range(2):
        run.step()
    assert all(not torch.equal(p, old) for p, old in zip(text, before, strict=True))


@pytest.mark.parametrize("name", plain_loop.METHODS)
def test_the_plain_loop_has_the_same_loss(pico, shown, name):
    """Before anything is learned, of the same pictures at the same noise: else seconds compare nothing."""
    recipe, run = plain(
        pico, shown, name, prior_loss_weight=0.0, prior_batch_size=0, train_token_jointly=False
    )
    subject = Subject("my_dog", "dog", shown)
    pool = latent_dataset.still_dataset(pico, shown, f"{run.word}")
    taught = training_step.TrainingContext(
        pico, (subject,), pool, None, recipe, 0, schedule_of(pico.pipe.scheduler)
    )
    drawn = training_step.sample_step(taught, ("delta", 0), with_prior=False)
    told = conditioning.encode(run.base.pipe, pool.prompts)
    own = training_step.Conditionings(told)
    clean, mask = pool.latents[drawn.picks], pool.masks[drawn.picks]
    with torch.no_grad():
        mine = training_step.loss(taught, drawn, own)
        theirs = run._loss(clean, drawn.noise, drawn.t, told[pool.prompt_of[drawn.picks]], mask)
    assert float(mine) == pytest.approx(float(theirs), rel=1e-5)


def test_custom_diffusion_moves_its_token_and_no_other_by_its_gradient(pico, shown):
    _, run = plain(pico, shown, "custom-diffusion")
    run.optimiser.step = lambda: None
    run.optimiser.zero_grad = lambda: None
    run.step()
    moved = run.table.grad.abs().sum(1).nonzero().flatten().tolist()
    assert moved == [run.row]


@pytest.mark.slow
def test_a_trial_of_the_prior(bench):
    told = last_line(learn_prior.main, "--steps", 2, "--methods", "dreambooth")
    assert set(told["value"]) == {"dreambooth, prior", "dreambooth, no prior"}
    line = told["value"]["dreambooth, prior"]
    assert {"diversity", "turned", "related", "same", "gap", "pres"} <= set(line) and told["subjects"] == 2
    assert set(told["turned_more_without"]) == {"dreambooth"}


@pytest.mark.slow
def test_a_trial_of_sude(bench):
    told = last_line(learn_sude.main, "--steps", 2, "--methods", "dreambooth")
    line = told["value"]["dreambooth"]
    assert set(learn_sude.ARMS) <= set(line) and len(line["gained over without, interval"]) == 2
    assert told["bar"]["fidelity"] == 0.98


def test_a_trial_of_the_methods(bench):
    told = last_line(learn_methods.main, "--steps", 2, "--methods", "custom,dreambooth-no-prior")
    assert set(told["value"]) == {"custom", "dreambooth-no-prior"}
    assert {"gap", "named", "confirmed", "captions", "interval"} <= set(told["value"]["custom"])


def test_a_trial_of_speed(bench, monkeypatch):
    monkeypatch.setattr(
        learn_speed, "memory", lambda method, loop, drawing: {"plain": 2.0, "ours": 1.0}[loop]
    )
    told = last_line(learn_speed.main, "--steps", 3, "--methods", "dreambooth")
    line = told["by_method"]["dreambooth"]
    assert line["peak_gb"] == {"plain": 2.0, "ours": 1.0} and set(told["value"]) == {"dreambooth"}
    assert line["seconds_per_step"]["plain"] > 0 and line["seconds_per_step"]["ours"] > 0
    assert len(line["curves"]["plain"]) == len(line["curves"]["ours"]) == 3
    assert set(line["saved_per_step"]) == {
        "reading pictures",
        "encoding pictures",
        "encoding prompts",
        "UNet and optimiser",
        "prepared once",
    }


@pytest.mark.parametrize("loop", ["ours", "plain"])
def test_memory_of_one_loop_alone(bench, registry, loop, monkeypatch):
    studio = learn_common.Studio(bases.of(tiny.pico_sd(), "pico"), 1, 1)
    pupil = studio.pupil("thing", taught.unseen(1)[0], 0)
    recipe = config_for("dreambooth", 2)
    peaks = iter([1.0, 3.5])
    monkeypatch.setattr(learn_speed, "peak_gb", lambda device: next(peaks))
    assert learn_speed.alone(studio, pupil, recipe, loop, registry) == 2.5


SCRIPT = """
import argparse, pathlib
parser = argparse.ArgumentParser()
for name in {names}:
    parser.add_argument("--" + name, required=True)
parser.add_argument("--with_prior_preservation", action="store_true")
parser.add_argument("--train_text_encoder", action="store_true")
told = parser.parse_args()
assert len(list(pathlib.Path(told.instance_data_dir).iterdir())) == 5
assert len(list(pathlib.Path(told.class_data_dir).iterdir())) == 2
assert (pathlib.Path(told.pretrained_model_name_or_path) / "model_index.json").is_file()
sum(k * k for k in range(200_000 * int(told.max_train_steps)))
out = pathlib.Path(told.output_dir)
out.mkdir()
(out / "learned").write_text(told.learning_rate + " " + told.max_train_steps)
"""
NAMES = (
    *("pretrained_model_name_or_path", "resolution", "max_train_steps", "learning_rate", "lr_scheduler"),
    *("lr_warmup_steps", "output_dir", "seed", "checkpointing_steps", "instance_data_dir"),
    *("instance_prompt", "train_batch_size", "rank", "num_class_images", "class_data_dir", "class_prompt"),
)


@pytest.mark.slow
def test_a_trial_beside_scripts(bench, monkeypatch, tmp_path):
    """A script in a process of its own: its work is what is counted, and what it wrote is what is judged."""
    loaded = []
    monkeypatch.setitem(
        learn_scripts.SCRIPTS,
        "dreambooth",
        replace(
            learn_scripts.SCRIPTS["dreambooth"],
            load=lambda pipe, made: loaded.append((made / "learned").read_text()),
        ),
    )
    path = tmp_path / learn_scripts.SCRIPTS["dreambooth"].path
    path.parent.mkdir()
    path.write_text(SCRIPT.format(names=NAMES))
    told = last_line(learn_scripts.main, "--steps", 6, "--methods", "dreambooth", "--examples", tmp_path)
    fast, slow = learn_scripts.SCRIPTS["dreambooth"].rates(config_for("dreambooth"))
    assert set(loaded) >= {f"{fast} 6", f"{slow} 6"} and len(loaded) == 4, "both rates, and two points more"
    line = told["by_method"]["dreambooth"]
    assert line["rate"] in (fast, slow) and len(line["curves"]["script"]) == 3
    assert line["seconds_per_step"]["script"] > 0 and line["seconds_per_step"]["ours"] > 0


def test_a_scripts_start_is_not_counted_and_its_best_rate_is_taken(bench, monkeypatch, tmp_path):
    pico = bases.of(tiny.pico_sd(), "pico")
    studio = learn_common.Studio(pico, 1, 1)
    pupil = studio.pupil("thing", taught.unseen(1)[0], 0)
    used, recipe = [], config_for("dreambooth", 30)

    def seven_and_two_a_step(path, model, told, steps, rate, out):
        used.append(rate)
        return 7.0 + 2.0 * steps

    gaps = {0.1: 0.3, 0.2: 0.9, 0.3: float("nan")}
    monkeypatch.setattr(learn_scripts, "run", seven_and_two_a_step)
    monkeypatch.setattr(learn_common.Studio, "likeness", lambda self, pictures, real: used[-1])
    monkeypatch.setattr(learn_common.Pupil, "gap", lambda self, rate: gaps[rate])
    script = replace(learn_scripts.SCRIPTS["dreambooth"], load=lambda pipe, made: None)
    lesson = learn_scripts.Lesson(recipe, tmp_path, 64, tmp_path / "photos", tmp_path / "class", "up", "dog")
    curve, per_step, rate = learn_scripts.theirs(studio, pupil, script, tmp_path, lesson, (0.1, 0.2, 0.3))
    assert per_step == pytest.approx(2.0) and rate == 0.2
    assert curve == [(pytest.approx(2.0 * steps), 0.9) for steps in (10, 20, 30)]


def test_a_script_that_fails_says_why(tmp_path):
    script = tmp_path / "one.py"
    script.write_text("raise SystemExit('no such option')")
    with pytest.raises(click.ClickException, match=r"one\.py failed: no such option"):
        learn_scripts.run(script, tmp_path, {}, 1, 1e-3, tmp_path / "out")


def test_a_folder_without_the_scripts_is_a_mistake(bench, tmp_path):
    result = CliRunner().invoke(learn_scripts.main, ["--examples", str(tmp_path)])
    assert result.exit_code == 2 and "train_dreambooth_lora.py" in result.output


@pytest.mark.parametrize("program", [learn_prior, learn_sude, learn_speed, learn_methods])
def test_an_unknown_method_is_a_mistake(bench, program):
    result = CliRunner().invoke(program.main, ["--methods", "magic"])
    assert result.exit_code == 2 and "magic" in result.output
