"""Parts of a batch, and several processes, learn what one process learns from the whole of it."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from conceptkit.concepts.concept import Concept
from conceptkit.learn.distributed import DistributedContext
from tests import tiny
from tests.learning import TINY, method, teach, values

FOUR = {"train_batch_size": 4, "prior_batch_size": 2}


@pytest.mark.parametrize("name", ["custom", pytest.param("custom-diffusion", marks=pytest.mark.slow)])
def test_a_batch_in_parts_gives_the_same_gradients(pico, shown, name):
    recipe = replace(
        TINY if name == "custom" else method(name), **FOUR, sude_weight=1.0, caption_preservation_weight=1.0
    )
    assert_parts_are_the_whole(pico, shown, recipe)


@pytest.mark.slow
def test_a_batch_in_parts_asks_for_the_same_states(pico, shown, able):
    assert_parts_are_the_whole(pico, shown, replace(TINY, **FOUR, sude_weight=50.0, sude_prompts="states"))


def assert_parts_are_the_whole(pico, shown, recipe):
    whole, parted = (
        values(teach(pico, shown, replace(recipe, gradient_accumulation_steps=k))) for k in (1, 2)
    )
    assert not torch.equal(whole, torch.zeros_like(whole))
    assert (whole - parted).norm() < 0.01 * whole.norm()


def test_computing_activations_twice_changes_nothing(pico, shown):
    before = tiny.snapshot(pico.pipe)
    plain, lean = (
        teach(pico, shown, method("dreambooth", gradient_checkpointing=on)) for on in (False, True)
    )
    assert torch.allclose(values(plain), values(lean), atol=1e-5)
    assert tiny.snapshot(pico.pipe) == before


def test_half_precision_learns_nearly_the_same(pico, shown):
    full, half = (
        values(teach(pico, shown, method("custom-diffusion", mixed_precision=p))) for p in ("fp32", "bf16")
    )
    assert not torch.equal(full, half) and torch.isfinite(half).all()
    assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.9


def test_shares_of_a_batch_are_all_of_it_once():
    for size in (1, 2, 3):
        for parts in (1, 2):
            taken = [
                DistributedContext(r, size).share(12, part, parts).tolist()
                for r in range(size)
                for part in range(parts)
            ]
            assert sorted(k for share in taken for k in share) == list(range(12))
            assert len({len(share) for share in taken}) == 1
            assert DistributedContext(size - 1, size).share(0, parts - 1, parts).numel() == 0


PROCESS = """
import sys
from dataclasses import replace
from conceptkit.base import pipeline as bases
from conceptkit.data import photos
from conceptkit.features import caption_statistics, captions
from conceptkit.learn.distributed import current
from conceptkit.learn.trainer import learn
from tests import tiny
from tests.learning import TINY
texts = captions.captions("any")[:40]
caption_statistics.captions = lambda name: texts
weights = dict(sude_weight=1.0, caption_preservation_weight=1.0)
recipe = replace(TINY, train_batch_size=4, prior_batch_size=2, **weights)
concept = learn(bases.of(tiny.pico_sd(), "pico"), photos.read(sys.argv[1]), "my_dog", "dog", recipe)
here = current()
open(f"{sys.argv[2]}/{here.rank}-of-{here.size}", "wb").write(concept.to_bytes())
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_twice_the_batch(folder, tmp_path, pico, shown):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": os.getcwd(),
    }
    shared |= {"LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    processes = []
    for rank in range(2):
        environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-c", PROCESS, str(folder), str(tmp_path)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    first, second = ((tmp_path / f"{rank}-of-2").read_bytes() for rank in range(2))
    assert first == second
    alone = teach(pico, shown, replace(TINY, **FOUR, sude_weight=1.0, caption_preservation_weight=1.0))
    together = Concept.from_bytes(first)
    for name, (up, _) in alone.delta.items():
        assert (together.delta[name].first - up).norm() < 0.01 * up.norm()
    assert torch.allclose(together.tokens["<my_dog>"][0], alone.tokens["<my_dog>"][0], atol=1e-3)
