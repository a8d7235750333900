"""Half precision, optimisers of 8 bits and compiled code: done where a device can, else refused."""

import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from conceptkit.base import pipeline as bases
from conceptkit.errors import BadRecipe, ConceptError
from conceptkit.learn import mixed_precision, torch_compile
from conceptkit.learn.checkpoints import CheckpointManager
from conceptkit.learn.config import config_for
from conceptkit.workflows.add import add
from tests import tiny
from tests.learning import TINY, method, outcome, teach, values

KV = {"prior_loss_weight": 0.0, "train_token_jointly": False}


@pytest.fixture
def everywhere(monkeypatch):
    """The CPU is slow at fp16 and gains nothing from it, but computes it; so the loop can be tried on it."""
    monkeypatch.setitem(mixed_precision.LEARNS_ON, "fp16", ("cpu",))
    monkeypatch.setitem(mixed_precision.LEARNS_ON, "torch_compile", ("cpu",))


def test_fp16_learns_nearly_the_same(pico, shown, everywhere):
    full, half = (
        values(teach(pico, shown, method("custom-diffusion", mixed_precision=p, **KV)))
        for p in ("fp32", "fp16")
    )
    assert not torch.equal(full, half) and torch.isfinite(half).all()
    assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.9


def test_the_scaled_loss_has_the_same_gradients_once_they_are_scaled_back(pico, shown, monkeypatch):
    """Powers of two lose nothing in float32, so that scaling alone changes no bit of what is learned."""
    plain = teach(pico, shown, method("custom-diffusion", **KV))
    kind = torch.amp.GradScaler
    monkeypatch.setattr(
        mixed_precision, "scaler", lambda device, precision: kind(device.type, init_scale=2.0**10)
    )
    assert torch.equal(values(teach(pico, shown, method("custom-diffusion", **KV))), values(plain))


def overflowing(monkeypatch, at):
    """Gradients of these steps are infinite, as they are in fp16 when the scale is too large."""
    steps, scale = iter(range(99)), torch.amp.GradScaler.scale

    def scaled(self, loss):
        return scale(self, loss * (float("inf") if next(steps) in at else 1.0))

    monkeypatch.setattr(torch.amp.GradScaler, "scale", scaled)


def test_a_step_that_overflows_is_left_out_and_the_scale_falls(pico, shown, everywhere, monkeypatch):
    seen = []
    update = torch.amp.GradScaler.update

    def watched(self, *args):
        update(self, *args)
        seen.append(self.get_scale())

    monkeypatch.setattr(torch.amp.GradScaler, "update", watched)
    overflowing(monkeypatch, {0})
    concept = teach(pico, shown, method("custom-diffusion", mixed_precision="fp16", **KV))
    assert seen == [2.0**15] * 3
    assert torch.isfinite(values(concept)).all() and values(concept).any()


def test_gradients_that_overflow_at_every_scale_are_told(pico, shown, everywhere, monkeypatch):
    overflowing(monkeypatch, set(range(99)))
    with pytest.raises(ConceptError, match="too large for fp16; give --mixed-precision bf16 or fp32"):
        teach(
            pico, shown, replace(method("custom-diffusion", mixed_precision="fp16", **KV), max_train_steps=40)
        )


class Stopped(BaseException):
    """As Ctrl-C."""


def stopped_and_resumed(pico, shown, recipe, path, at):
    def tick(done, total, text):
        if done == at:
            raise Stopped

    with pytest.raises(Stopped):
        outcome(pico, shown, recipe, checkpoints=CheckpointManager(path, every=0.0), progress=tick)
    keeper = CheckpointManager(path, every=0.0)
    keeper.resume()
    return outcome(pico, shown, recipe, checkpoints=keeper).whole.to_bytes()


def test_the_scale_is_resumed_too(pico, shown, everywhere, monkeypatch, tmp_path):
    recipe = replace(method("custom-diffusion", mixed_precision="fp16", **KV), max_train_steps=5)
    overflowing(monkeypatch, {1})
    never = outcome(pico, shown, recipe).whole.to_bytes()
    overflowing(monkeypatch, {1})
    assert stopped_and_resumed(pico, shown, recipe, tmp_path / "kept", 3) == never
    last = CheckpointManager(tmp_path / "kept")
    last.resume()
    assert float(last.resumed.tensors["scaler.scale"]) == 2.0**15


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mixed_precision": "fp16"}, "fp16 works on cuda alone, and the base is on cpu; give fp32"),
        ({"mixed_precision": "half"}, "mixed_precision = 'half' is unknown; choose one of fp32, bf16, fp16"),
        ({"optimizer": "sgd"}, "optimizer = 'sgd' is unknown"),
    ],
)
def test_what_a_device_cannot_do_is_one_sentence(pico, shown, values, named):
    with pytest.raises(BadRecipe, match=named) as error:
        teach(pico, shown, replace(TINY, **values))
    assert "\n" not in str(error.value)


def test_every_kind_of_device_is_asked():
    mps, cuda = torch.device("mps"), torch.device("cuda")
    for changes in ({"mixed_precision": "bf16"}, {"mixed_precision": "fp16"}, {"optimizer": "adamw8bit"}):
        with pytest.raises(BadRecipe, match="the base is on mps"):
            mixed_precision.check(mps, replace(TINY, **changes))
    mixed_precision.check(mps, TINY)
    mixed_precision.check(cuda, replace(TINY, mixed_precision="fp16"))


def test_a_gpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    with pytest.raises(BadRecipe, match="cannot compute in bf16; give --mixed-precision fp16 or fp32"):
        mixed_precision.check(torch.device("cuda"), replace(TINY, mixed_precision="bf16"))


def test_without_bitsandbytes_it_says_how_to_get_it(pico, shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BadRecipe, match=r"needs bitsandbytes; run pip install 'conceptkit\[8bit\]'"):
        teach(pico, shown, replace(TINY, optimizer="adamw8bit"))


class Eight(torch.optim.AdamW):
    """As bitsandbytes has it: plain numbers in the state, and tensors one level down in `state_dict`."""

    made = 0

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        assert options["weight_decay"] == 0.0
        Eight.made += 1

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state.setdefault("step", 0)
                    state.setdefault("state1", torch.zeros_like(p))
                    state["step"] += 1
                    state["state1"].mul_(0.9).add_(p.grad)
                    p.data -= group["lr"] / state["step"] * state["state1"]

    def state_dict(self):
        found = super().state_dict()
        nested = {
            k: {"step": v["step"], "inside": {"state1": v["state1"]}} for k, v in found["state"].items()
        }
        return {**found, "state": nested}

    def load_state_dict(self, given):
        found = [p for group in self.param_groups for p in group["params"]]
        for k, value in given["state"].items():
            assert isinstance(value["step"], int)
            self.state[found[k]] = {"step": value["step"], "state1": value["state1"].clone()}


def test_the_8_bit_optimiser_learns_and_resumes(pico, shown, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=Eight)))
    before, recipe = (
        Eight.made,
        replace(method("custom-diffusion", optimizer="adamw8bit", **KV), max_train_steps=4),
    )
    never = outcome(pico, shown, recipe).whole
    assert Eight.made == before + 1 and values(never).any()
    assert never.recipe["optimizer"] == "adamw8bit"
    assert stopped_and_resumed(pico, shown, recipe, tmp_path / "kept", 2) == never.to_bytes()


def test_bitsandbytes_itself_learns_and_resumes(shown, tmp_path):
    pytest.importorskip("bitsandbytes")
    wide = bases.of(tiny.pico_sd(d=256), "pico")  # 32 x 256 numbers are enough for moments of 8 bits
    recipe = replace(method("custom-diffusion", optimizer="adamw8bit", **KV), max_train_steps=4)
    never = outcome(wide, shown, recipe).whole
    full = outcome(wide, shown, replace(recipe, optimizer="adamw")).whole
    assert torch.nn.functional.cosine_similarity(values(never), values(full), dim=0) > 0.9
    assert stopped_and_resumed(wide, shown, recipe, tmp_path / "kept", 2) == never.to_bytes()
    kept = CheckpointManager(tmp_path / "kept", every=0.0)
    kept.resume()
    assert any(t.dtype == torch.uint8 for t in kept.resumed.tensors.values())


def test_the_unet_is_compiled_while_it_learns_and_left_as_it_was(pico, shown, everywhere, monkeypatch):
    compiled, calls = [], []

    def fake(function, **options):
        compiled.append(function)
        return lambda *args, **more: calls.append(1) or function(*args, **more)

    before, plain = tiny.snapshot(pico.pipe), teach(pico, shown)
    monkeypatch.setattr(torch, "compile", fake)
    concept = teach(pico, shown, replace(TINY, torch_compile=True))
    assert tiny.snapshot(pico.pipe) == before
    assert len(compiled) == 2, "once for the word, once for the look"
    assert len(calls) == TINY.token_train_steps + TINY.max_train_steps, (
        "what the base draws by itself is not compiled for"
    )
    assert torch.equal(values(concept), values(plain))


def compile_into(monkeypatch, call):
    """What torch.compile makes of a function is `call` of it and its arguments."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: partial(call, function))


def test_a_compiler_that_loses_gradients_is_told_of_at_the_first_step(pico, shown, everywhere, monkeypatch):
    def losing(function, *args, **more):
        drawn = function(*args, **more)
        (drawn[0] if isinstance(drawn, tuple) else drawn.sample).register_hook(torch.zeros_like)
        return drawn

    before = tiny.snapshot(pico.pipe)
    compile_into(monkeypatch, losing)
    with pytest.raises(ConceptError, match="changes the gradients of 1 of 1 .*leave torch_compile=yes out"):
        teach(pico, shown, replace(TINY, torch_compile=True))
    assert tiny.snapshot(pico.pipe) == before


def test_one_lost_gradient_among_many_is_seen():
    torch.manual_seed(0)
    plain = [torch.randn(4, 8) * 10.0**-k for k in range(6)] + [torch.zeros(3), None]
    rounded = [g if g is None else g.bfloat16().float() for g in plain]
    torch_compile.check_compiled(rounded, plain)
    for k in range(6):
        lost = list(rounded)
        lost[k] = None if k % 2 else torch.zeros(4, 8)
        with pytest.raises(ConceptError, match="1 of 7 parameters"):
            torch_compile.check_compiled(lost, plain)


def test_a_failing_compiler_leaves_the_unet_as_it_was(pico, shown, everywhere, monkeypatch):
    def broken(function, *args, **more):
        raise RuntimeError("no compiler")

    before = tiny.snapshot(pico.pipe)
    compile_into(monkeypatch, broken)
    with pytest.raises(RuntimeError, match="no compiler"):
        teach(pico, shown, replace(TINY, torch_compile=True))
    assert tiny.snapshot(pico.pipe) == before


def test_on_a_cpu_compiling_is_left_out_and_said_so(pico, folder, registry, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *a, **k: pytest.fail("compiled on a CPU"))
    learned = add(
        "my_dog", folder, class_noun="dog", base=pico, registry=registry, changes={"torch_compile": "yes"}
    )
    assert "torch_compile = yes is for cuda; on cpu learning goes on without." in learned.notices


@pytest.mark.parametrize(("capability", "warned"), [("AVX512", False), ("AVX2", True)])
def test_bf16_that_is_only_emulated_is_said(monkeypatch, capability, warned):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    told = mixed_precision.notices(torch.device("cpu"), config_for(changes={"mixed_precision": "bf16"}))
    assert any("only emulates bf16" in notice for notice in told) == warned
    assert not mixed_precision.notices(torch.device("cpu"), config_for())
