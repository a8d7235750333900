"""Fixtures of all tests of learning: a pico base, photos of noise, and few captions, so that all is quick."""

import pytest

from conceptkit import base as bases
from conceptkit import metric
from conceptkit import photos as pictures
from conceptkit.learn import describing
from conceptkit.recipes import DEFAULT, RECIPES
from conceptkit.registry.store import Registry
from tests import tiny
from tests.learning import SEEDS, TINY, draw_photos


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    texts = bases.captions("any")[:40]
    monkeypatch.setattr(metric, "captions", lambda name: texts)


@pytest.fixture(autouse=True)
def tiny_recipe(monkeypatch):
    monkeypatch.setitem(RECIPES, DEFAULT, TINY)


@pytest.fixture(scope="session")
def pico() -> bases.Base:
    return bases.of(tiny.pico_sd(), "pico")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("dog"), SEEDS)


@pytest.fixture(scope="session")
def shown(folder) -> pictures.PhotoSet:
    return pictures.read(folder)


@pytest.fixture
def able(monkeypatch) -> list[str]:
    """States for which a pico base has words, which the vocabulary of states has not."""
    words = ["runs", "sits", "jumps"]
    monkeypatch.setattr(describing, "states", lambda pipe: words)
    return words


@pytest.fixture
def registry():
    with Registry() as registry:
        yield registry
