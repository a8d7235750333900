"""Where the commands compute."""

import pytest

from conceptkit.base import devices
from conceptkit.errors import BadDevice


@pytest.fixture
def machine(monkeypatch):
    def has(cuda=0, mps=0):
        monkeypatch.setattr(devices, "_present", lambda: {"cuda": cuda, "mps": mps, "cpu": 1})

    return has


def test_the_best_there_is(machine):
    for parts, found in (({"cuda": 2, "mps": 1}, "cuda"), ({"mps": 1}, "mps"), ({}, "cpu")):
        machine(**parts)
        assert devices.choose() == devices.choose("auto") == found


def test_a_device_by_its_name(machine):
    machine(cuda=2)
    assert [devices.choose(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda", "cuda:1", "cpu"]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("gpu", "no kind of device 'gpu'; choose one of auto, cuda, mps, cpu"),
        ("cuda:first", "no kind of device 'cuda:first'"),
        ("mps", "no device 'mps' that torch can use; give auto or cpu"),
        ("cuda:2", "has 2 of 'cuda', counted from 0, and no 'cuda:2'"),
    ],
)
def test_a_device_that_is_not_there_is_one_sentence(machine, name, named):
    machine(cuda=2)
    with pytest.raises(BadDevice, match=named) as error:
        devices.choose(name)
    assert "\n" not in str(error.value)


def test_this_machine_has_a_processor():
    assert devices.choose("cpu") == "cpu"
    assert devices.choose() in devices.KINDS
