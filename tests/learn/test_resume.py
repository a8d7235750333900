"""Killed at any step and resumed, learning gives the bytes that it would have given without."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from conceptkit.errors import BadRecipe, ConceptError
from conceptkit.learn import checkpoints, losses
from conceptkit.learn.checkpoints import CheckpointManager
from conceptkit.learn.config import DEFAULT_CONFIGS
from conceptkit.workflows.add import UNFINISHED, add
from tests.learning import TINY, method, outcome

LONG = replace(TINY, token_train_steps=3, max_train_steps=4)


class Stopped(BaseException):
    """As Ctrl-C, or a power cut that leaves the disk as it is."""


def stop_at(count):
    def tick(done, total, text):
        if done == count:
            raise Stopped

    return tick


@pytest.mark.parametrize(
    "recipe",
    [
        "custom-diffusion",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("wide", "custom", "keyed on the move", "validated")
        ),
        pytest.param("able", marks=pytest.mark.slow),
    ],
)
def test_stopped_at_any_step_and_resumed_gives_the_same_bytes(pico, shown, tmp_path, able, recipe):
    given = {
        "custom": replace(LONG, prior_loss_weight=0.0),
        "wide": replace(LONG, prior_loss_weight=0.0, gated_lora_rank=2),
        "custom-diffusion": method("custom-diffusion", prior_loss_weight=0.0),
        "keyed on the move": replace(LONG, train_token_jointly=True, prior_loss_weight=0.0),
        "able": replace(LONG, prior_loss_weight=0.0, sude_weight=1.0, sude_prompts="states"),
        "validated": replace(LONG, validation_steps=2, early_stopping_patience=2, prior_loss_weight=0.0),
    }[recipe]
    never = outcome(pico, shown, given)
    last = given.token_train_steps + given.max_train_steps - 1
    for step in sorted({1, given.token_train_steps, given.token_train_steps + 1, last} - {0}):
        path = tmp_path / f"{step}.safetensors"
        with pytest.raises(Stopped):
            outcome(
                pico, shown, given, checkpoints=CheckpointManager(path, every=0.0), progress=stop_at(step)
            )
        keeper = CheckpointManager(path, every=0.0)
        keeper.resume()
        again = outcome(pico, shown, given, checkpoints=keeper)
        assert again.whole.to_bytes() == never.whole.to_bytes(), step
        assert again.curve == never.curve and again.kept == never.kept


PROCESS = """
import sys
from dataclasses import replace
from conceptkit.base import pipeline as bases
from conceptkit.features import caption_statistics, captions
from conceptkit.learn.checkpoints import CheckpointManager
from conceptkit.learn.config import DEFAULT_CONFIGS
from conceptkit.workflows import add as library
from conceptkit.workflows.add import add
from tests import tiny
from tests.learning import TINY
texts = captions.captions("any")[:40]
caption_statistics.captions = lambda name: texts
library.CheckpointManager = lambda path, about: CheckpointManager(path, about, every=0.0)
DEFAULT_CONFIGS["custom"] = replace(TINY, token_train_steps=6, max_train_steps=6, prior_loss_weight=0.0)

def tick(done, total, text):
    print(done, flush=True)

pico = bases.of(tiny.pico_sd(), "pico")
made = add("my_dog", sys.argv[1], class_noun="dog", base=pico, resume="resume" in sys.argv, progress=tick)
print(made.entry.hash, flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_for_real_goes_on(folder, tmp_path):
    def run(home, *words, kill_at=None):
        environment = os.environ | {"CONCEPTKIT_HOME": str(tmp_path / home), "PYTHONPATH": os.getcwd()}
        command = [sys.executable, "-c", PROCESS, str(folder), *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if kill_at is not None and lines[-1] == str(kill_at):
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
        return lines

    whole = run("whole")[-1]
    assert len(whole) == 64
    run("killed", kill_at=3)
    resumed = run("killed", "resume", kill_at=9)
    assert int(resumed[0]) >= 3, "it went on, and did not begin anew"
    assert run("killed", "resume")[-1] == whole
    assert not list((tmp_path / "killed").glob("checkpoints/*")), "what was learned needs no checkpoint"


def test_a_checkpoint_of_something_else_says_what_differs(pico, folder, registry, monkeypatch):
    monkeypatch.setitem(DEFAULT_CONFIGS, "custom", replace(LONG, prior_loss_weight=0.0))
    more = {"base": pico, "registry": registry}
    with pytest.raises(Stopped):
        add("my_dog", folder, progress=stop_at(5), **more)
    for given, named in (
        ({"steps": 30}, "max_train_steps = 4, not 17; token_train_steps = 3, not 13"),
        ({"seed": 4}, "seed = 0, not 4"),
        ({"noun": "cat"}, "class = dog, not cat"),
        ({"changes": {"sude_weight": 1}}, "sude_weight = off, not 1.0"),
    ):
        with pytest.raises(BadRecipe, match=named) as error:
            add("my_dog", folder, resume=True, **given, **more)
        assert "\n" not in str(error.value)
    learned = add("my_dog", folder, resume=True, changes={"learning_rate": 1e-3}, **more)
    changed = f"at other rates than it began: learning_rate = {TINY.learning_rate}, not 0.001"
    assert any(changed in text for text in learned.notices)
    with pytest.raises(ConceptError, match="Nothing unfinished"):
        add("my_dog", folder, resume=True, new_version=True, **more)


@pytest.mark.parametrize("at", [4, 6])
def test_ctrl_c_says_how_to_go_on_once_there_is_something_to_go_on_with(
    pico, folder, registry, monkeypatch, at
):
    """The first four steps draw the class, and leave nothing to go on with."""

    def tick(done, total, text):
        if done == at:
            raise KeyboardInterrupt

    monkeypatch.setitem(DEFAULT_CONFIGS, "custom", replace(LONG, num_class_images=4))
    with pytest.raises(KeyboardInterrupt) as stopped:
        add("my_dog", folder, base=pico, registry=registry, progress=tick)
    assert getattr(stopped.value, "__notes__", []) == ([] if at <= 4 else [UNFINISHED])
    again = add("my_dog", folder, base=pico, registry=registry, resume=at > 4)
    assert again.entry.ref == "my_dog@1"


def test_a_damaged_checkpoint_is_told(pico, folder, registry):
    path = checkpoints.path_for(registry.home, "my_dog")
    path.parent.mkdir()
    path.write_bytes(b"half a checkpoint")
    with pytest.raises(ConceptError, match="cannot be read; delete it"):
        add("my_dog", folder, base=pico, registry=registry, resume=True)


def test_when_the_loss_is_no_number_the_last_good_state_is_there(pico, shown, tmp_path, monkeypatch):
    recipe = replace(LONG, prior_loss_weight=0.0)
    path, true, calls = tmp_path / "kept.safetensors", losses.prior_weighted, iter(range(99))

    def broken(*args):
        return true(*args) * (float("nan") if next(calls) == 5 else 1.0)

    monkeypatch.setattr(losses, "prior_weighted", broken)
    with pytest.raises(
        ConceptError, match="no number at step 2; .*--resume and a smaller --set learning_rate$"
    ):
        outcome(pico, shown, recipe, checkpoints=CheckpointManager(path, every=0.0))
    monkeypatch.setattr(losses, "prior_weighted", true)
    keeper = CheckpointManager(path, every=0.0)
    keeper.resume()
    assert (keeper.resumed.stage, keeper.resumed.step) == ("delta", 1)
    assert all(torch.isfinite(value).all() for value in keeper.resumed.tensors.values())
    assert (
        outcome(pico, shown, recipe, checkpoints=keeper).whole.to_bytes()
        == outcome(pico, shown, recipe).whole.to_bytes()
    )


def test_when_the_loss_of_the_word_is_no_number_its_own_rate_is_named(pico, shown, tmp_path, monkeypatch):
    true, calls = losses.prior_weighted, iter(range(99))
    monkeypatch.setattr(
        losses, "prior_weighted", lambda *args: true(*args) * (float("nan") if next(calls) == 2 else 1.0)
    )
    keeper = CheckpointManager(tmp_path / "kept.safetensors", every=0.0)
    with pytest.raises(
        ConceptError, match="no number at step 2; .*--resume and a smaller --set token_learning_rate$"
    ):
        outcome(pico, shown, replace(LONG, prior_loss_weight=0.0), checkpoints=keeper)


def test_a_checkpoint_costs_little_of_the_time(tmp_path, monkeypatch):
    """The next one is due after ten seconds, or twenty times what writing takes."""
    keeper, written = CheckpointManager(tmp_path / "x", {}), []
    monkeypatch.setattr(checkpoints, "write", lambda *a: written.append(a))
    clock = iter([0.0, 0.0, 3.0, 40.0, 62.9, 63.1, 63.1, 63.2])
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(clock))
    keeper._due = -1.0
    state = checkpoints.CheckpointState("token", 0, {})
    for _ in range(4):
        keeper.keep(state)
    assert len(written) == 2
