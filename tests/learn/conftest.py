"""Fixtures of all tests of learning: a pico base, photos of noise, and few captions, so that all is quick."""

import pytest

from conceptkit.base import pipeline
from conceptkit.data import photos as pictures
from conceptkit.features import caption_statistics, captions
from conceptkit.learn import diffusion_classifier
from conceptkit.learn.config import DEFAULT, DEFAULT_CONFIGS
from conceptkit.registry.store import Registry
from tests import tiny
from tests.learning import SEEDS, TINY, draw_photos


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    texts = captions.captions("any")[:40]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: texts)


@pytest.fixture(autouse=True)
def tiny_recipe(monkeypatch):
    monkeypatch.setitem(DEFAULT_CONFIGS, DEFAULT, TINY)


@pytest.fixture(scope="session")
def pico() -> pipeline.Base:
    return pipeline.of(tiny.pico_sd(), "pico")


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
    monkeypatch.setattr(diffusion_classifier, "states", lambda pipe: words)
    return words


@pytest.fixture
def registry():
    with Registry() as registry:
        yield registry
