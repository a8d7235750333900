"""The package that the documents show adds a row to each table, and every row works."""

import dataclasses
import json
import sys
import tomllib
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from conceptkit import extension_table
from conceptkit.base.architectures import ARCHITECTURES, architecture_of_denoiser
from conceptkit.base.families import FAMILIES
from conceptkit.base.pipeline import load, of
from conceptkit.cli.main import main
from conceptkit.concepts.concept import read
from conceptkit.evaluate.scorer_table import SCORERS, load_scorer
from conceptkit.features import caption_statistics, captions
from conceptkit.formats.dialects import DIALECTS
from conceptkit.learn.methods.table import METHODS
from conceptkit.merging.method_table import MERGE_METHODS
from conceptkit.registry.store import Registry
from tests import documents, learning, tiny

PAGE = documents.ROOT / "docs" / "how-to" / "write-an-extension.md"
TABLES = (METHODS, MERGE_METHODS, DIALECTS, SCORERS, FAMILIES, ARCHITECTURES)
FEW = {"max_train_steps": 2, "train_batch_size": 2, "num_augmented_views": 2, "prior_loss_weight": 0}


def files_of_the_package() -> list[documents.Block]:
    return [block for block in documents.blocks(PAGE, "python") if block.title]


def run(*words: object):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


def add(name: str, *more: object):
    settings = [f"--set={field}={value}" for field, value in FEW.items()]
    return run("add", name, "photos", "--class", "dog", "--method", "values-only", *settings, *more)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The page's files as an installed package, in a folder with photos; its base is a small one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in files_of_the_package():
        file = tmp_path / block.title
        file.parent.mkdir(exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
    tiny.save(tiny.pico_sd(), tmp_path / "my_package" / "weights")
    (tmp_path / "photos").mkdir()
    learning.draw_photos(tmp_path / "photos", learning.SEEDS)
    (project,) = (tomllib.loads(block.text)["project"] for block in documents.blocks(PAGE, "toml"))
    points = {
        group: [EntryPoint(name, value, group) for name, value in rows.items()]
        for group, rows in project["entry-points"].items()
    }
    assert set(points) == {table.group for table in TABLES}
    list(METHODS)  # those of conceptkit are registered once, when they are first imported
    monkeypatch.setattr(extension_table, "entry_points", lambda *, group: points[group])
    for table in TABLES:
        monkeypatch.setattr(table, "_rows", dict(table._rows))
        monkeypatch.setattr(table, "_waiting", None)
    few = captions.captions("any")[:30]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: few)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_the_rows_of_the_page_work_together(package, tmp_path):
    add("my_dog", "--base", "my-base", "--set", "blocks=2")
    add("my_pup", "--base", "my-base", "--seed", 1)
    order = ("--prompt", "my_dog by a my_pup", "--steps", 1, "--save", "both")
    run("compose", "my_dog", "my_pup", *order, "--merge-method", "scaled-sum")
    with Registry() as registry:
        dog, pup, both = (read(registry, name) for name in ("my_dog", "my_pup", "both"))
    assert dog.base_name == "my-base" and load("my-base").family.guidance_scale == 5.0
    assert dog.recipe["blocks"] == 2 and len(dog.delta) > len(pup.delta) > 0
    assert all("up_blocks" in name and name.endswith("attn2.to_v") for name in dog.delta)
    for name, factors in pup.delta.items():
        expected = (factors.dense() + dog.delta[name].dense()) * 2**-0.5
        missed = (both.delta[name].dense() - expected).norm() / expected.norm()
        assert missed < 1e-2  # stored in half precision

    left_out = run("export", "my_dog", "--for", "word-list", "--out", "files").stderr
    about = json.loads((tmp_path / "files" / "my_dog.json").read_text())
    assert about["words"] == {"my_dog": "<my_dog> dog"} and set(about["ranks"].values()) == {2}
    assert "word-list files leave out its word" in left_out

    pictures = [Image.new("RGB", (2, 2), shade) for shade in ("black", "white")]
    assert load_scorer("brightness").embed(pictures).flatten().tolist() == [0.0, 255.0]


def test_the_page_says_what_its_method_refuses(package):
    words = ("add", "my_dog", "photos", "--class", "dog", "--method", "values-only", "--set", "blocks=0")
    result = CliRunner().invoke(main, [*words, "--base", "my-base"])
    assert result.exit_code == 2 and "blocks = 0 trains nothing" in result.stderr


def test_the_architecture_of_the_page_knows_its_denoiser(package):
    class MyTransformer2DModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.caption_projection = nn.Linear(6, 4)
            self.blocks = nn.ModuleDict({"attn2": nn.ModuleDict({"to_v": nn.Linear(4, 8)})})

        def forward(self, noisy, t, hidden):
            return SimpleNamespace(sample=noisy + t + hidden.sum())

    model = MyTransformer2DModel()
    found = architecture_of_denoiser(model)
    assert list(found.text_site(model)) == ["blocks.attn2.to_v"]
    assert found.site_input(model, torch.ones(1, 2, 6)).shape == (1, 2, 4)
    pipe, one = SimpleNamespace(transformer=model), torch.ones(1)
    assert found.predict(pipe, one, 500 * one, SimpleNamespace(hidden=one)).item() == 2.5


def test_the_family_of_the_page_is_known_by_its_weights(package, tmp_path, monkeypatch):
    (block,) = (block for block in documents.blocks(PAGE, "python") if not block.title)
    documents.run(block, {})
    assert of(tiny.pico_sd()).family.name == "stable-diffusion"
    row = dataclasses.replace(FAMILIES["my-base"], fingerprint=tmp_path / "fingerprint.json")
    monkeypatch.setitem(FAMILIES._rows, "my-base", row)
    assert of(tiny.pico_sd(), "another name").family is row
