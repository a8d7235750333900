"""Random numbers of the caller's go on as if nobody had drawn in between."""

from contextlib import nullcontext

import pytest
import torch

from conceptkit.base import pipeline
from conceptkit.data import photos
from conceptkit.rng import hash_of, seeded
from tests.learning import SEEDS, draw_photos, teach
from tests.tiny import pico_sd


def test_the_hash_is_stable():
    assert hash_of("token", 1) == hash_of("token", 1) != hash_of("token", 2)


def test_the_cpu_begins_at_the_seed_and_goes_on_as_before():
    torch.manual_seed(5)
    first, wanted = torch.rand(2), torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), first)
    with pytest.raises(KeyboardInterrupt), seeded(7, torch.device("cpu")):
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(7)))
        raise KeyboardInterrupt
    assert torch.equal(torch.rand(2), wanted)


class Accelerator:
    """The functions of `torch.cuda` that are about its generators, of which there are two."""

    def __init__(self):
        self.states, self.current = {0: 11, 1: 22}, 0

    def device(self, device):
        self.current = device.index
        return nullcontext()

    def get_rng_state(self, device=None):
        return self.states[device.index if device else 0]

    def set_rng_state(self, state, device=None):
        self.states[device.index if device else 0] = state

    def manual_seed(self, seed):
        self.states[self.current] = seed


@pytest.mark.parametrize("name", ["cuda:1", "mps:0"])
def test_an_accelerator_is_seeded_alone_and_put_back(monkeypatch, name):
    made = Accelerator()
    monkeypatch.setattr(torch, "get_device_module", lambda device: made)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)  # no other generator is touched
    device = torch.device(name)
    with seeded(3, device):
        assert made.states == {0: 11, 1: 22} | {device.index: 3}
    assert made.states == {0: 11, 1: 22}


def test_learning_touches_no_generator_of_a_device_that_it_does_not_use(monkeypatch, tmp_path):
    base, shown = pipeline.of(pico_sd(), "pico"), photos.read(draw_photos(tmp_path, SEEDS))
    seeds, before = [], torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    teach(base, shown)
    assert not seeds and torch.equal(torch.get_rng_state(), before)
