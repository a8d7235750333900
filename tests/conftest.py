"""Every test has a home of its own, one thread, and no network."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conceptkit.registry.store import Registry

# Before anything imports torch or a hub client: both read these once.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("TQDM_DISABLE", "1")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary CONCEPTKIT_HOME, also for the subprocesses of a test."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CONCEPTKIT_HOME", str(folder))
    yield folder


@pytest.fixture
def few_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of a base are of thirty captions, which takes a moment."""
    from conceptkit.features import caption_statistics, captions

    texts = captions.captions("any")[:30]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: texts)


@pytest.fixture
def loose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every blob has a file of its own, however small."""
    monkeypatch.setattr("conceptkit.registry.blob_store.SMALL", -1)


@pytest.fixture
def registry():
    with Registry() as registry:
        yield registry


@pytest.fixture
def mine(tmp_path):
    with Registry(tmp_path / "mine") as registry:
        yield registry


@pytest.fixture
def yours(tmp_path):
    with Registry(tmp_path / "yours") as registry:
        yield registry
