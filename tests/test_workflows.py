"""What `ck.draw` and `ck.export` do without a command: for notebooks, pages and scripts."""

import dataclasses
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import conceptkit as ck
from conceptkit.base import pipeline
from conceptkit.errors import BadPrompt, BadRecipe, BadRegion, NameTaken, UnknownConcept
from conceptkit.features import caption_statistics, captions
from conceptkit.registry.store import Registry
from tests import tiny


@pytest.fixture(scope="module")
def pipe():
    return tiny.pico_sd()


@pytest.fixture(scope="module")
def base(pipe, tmp_path_factory):
    folder = tiny.save(pipe, tmp_path_factory.mktemp("base") / "pico").resolve()
    return pipeline.load(str(folder))


@pytest.fixture
def registry(pipe, base, tmp_path, monkeypatch):
    few = captions.captions("any")[:30]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: few)
    with Registry(tmp_path / "home") as opened:
        for seed, (name, noun) in enumerate({"my_dog": "dog", "moongate": "gate"}.items()):
            concept = dataclasses.replace(tiny.pico_concept(pipe, name, noun, seed=seed), base_name=base.name)
            opened.add(name, concept.to_bytes(), concept.summary())
        yield opened


def draw(base, registry, *names, **options):
    given = {"prompt": "my_dog by a moongate", "num_inference_steps": 2, **options}
    return ck.draw(*names, base=base, registry=registry, **given)


def test_drawn_pictures_know_their_seeds_and_are_drawn_alike_alone(base, registry):
    before = tiny.snapshot(base.pipe)
    both = draw(base, registry, "my_dog", "moongate", count=2, seed=3)
    assert [drawn.seed for drawn in both.pictures] == [3, 4]
    assert both.merge.report.names == ("my_dog", "moongate") and both.entry is None
    alone = draw(base, registry, "my_dog", "moongate", seed=4)
    assert np.array_equal(np.asarray(both.images[1]), np.asarray(alone.images[0]))
    metadata = both.pictures[1].metadata
    assert metadata["seed"] == 4 and metadata["merge_method"] == both.request.merge_method
    assert metadata["guidance_scale"] == base.family.guidance_scale and metadata["num_inference_steps"] == 2
    assert both.sheet_metadata["seeds"] == [3, 4] and "seed" not in both.sheet_metadata
    assert tiny.snapshot(base.pipe) == before


def test_a_notebook_shows_what_was_drawn(base, registry):
    one = draw(base, registry, "my_dog", prompt="my_dog")
    shown = Image.open(BytesIO(one._repr_png_()))
    assert np.array_equal(np.asarray(shown), np.asarray(one.images[0]))
    several = draw(base, registry, "my_dog", prompt="my_dog", count=2)
    assert Image.open(BytesIO(several._repr_png_())).size == several.sheet().size
    assert "my_dog" in several.merge._repr_html_() and "<table" in several.merge.concept._repr_html_()


def test_what_is_said_comes_back_too(base, registry):
    drawing = draw(base, registry, "my_dog", "moongate", prompt="my_dog in the snow")
    assert drawing.notices == (
        "The prompt does not mention 'moongate': write the name where the thing should be.",
    )


def test_a_merge_is_kept_once_it_is_drawn(base, registry):
    drawing = draw(base, registry, "my_dog", "moongate", save="both")
    assert drawing.entry.ref == "both@1"
    assert registry.read("both") == drawing.merge.concept.to_bytes()
    with pytest.raises(NameTaken):
        draw(base, registry, "my_dog", "moongate", save="both")
    again = draw(base, registry, "both")
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(drawing.images[0]))


@pytest.mark.parametrize(
    ("names", "options", "error"),
    [
        (("my_dog",), {"prompt": " "}, BadPrompt),
        (("my_dog",), {"count": 0}, BadRecipe),
        (("my_dog:0",), {}, BadRecipe),
        (("my_dgo",), {}, UnknownConcept),
        (("my_dog", "moongate"), {"regions": ("my_dog=left",), "auto_regions": True}, BadRegion),
    ],
)
def test_mistakes_are_found_before_a_base_is_loaded(registry, names, options, error):
    with pytest.raises(error):
        draw("no/such base", registry, *names, **options)


def test_export_of_one_and_of_several(base, registry, tmp_path):
    one = ck.export("my_dog", tmp_path / "one", registry=registry)
    assert one.concept.name == "my_dog" and all(path.is_file() for path in one.files)
    both = ck.export(["my_dog:0.5", "moongate"], tmp_path / "both", base=base, registry=registry)
    assert set(both.concept.words) == {"my_dog", "moongate"}
    assert {path.name for path in both.files} >= {"pytorch_lora_weights.safetensors"}
