"""A merge that is stored as its recipe: the same bytes when it is built, and nothing that it needs goes."""

import json
import warnings
from dataclasses import replace

import pytest

import conceptkit as ck
from conceptkit.base import pipeline
from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadBlob, BadRecipe, ConceptError, NoEffect
from conceptkit.merging import recipes
from conceptkit.merging.compose import compose, read_stored
from conceptkit.registry import concept_header, concept_validation, maintenance
from conceptkit.registry.backup import rebuild as rebuild_index
from conceptkit.registry.catalogue import lineage
from conceptkit.registry.merge_recipe import AS_RECIPE
from conceptkit.registry.sharing import exchange, trash
from conceptkit.registry.store import Registry
from tests import tiny
from tests.blobs import PNG
from tests.commands import run

pytestmark = pytest.mark.usefixtures("few_captions")


@pytest.fixture(scope="module")
def pico():
    return pipeline.of(tiny.pico_sd(), "pico")


@pytest.fixture
def merged(pico, registry):
    for name, noun in (("my_dog", "dog"), ("moongate", "gate")):
        concept = tiny.pico_concept(pico.pipe, name, noun, rank=4)
        registry.add(name, concept.to_bytes(), concept.summary())
    whole = compose("my_dog:0.8", "moongate", base=pico, registry=registry, name="both").concept
    registry.add("both", whole.to_bytes(), whole.summary())
    registry.set_preview("both", 1, PNG)
    return registry


@pytest.fixture
def recipe(pico, merged):
    """The recipe alone, without the version before it."""
    entry = ck.shrink("both", size="recipe", base=pico, registry=merged)
    merged.remove("both@1")
    return entry


@pytest.mark.parametrize("method", ["regmean", "routed"])
def test_a_merge_is_built_from_its_recipe_bit_for_bit(pico, merged, method):
    whole = compose("my_dog", "moongate", base=pico, registry=merged, name="two", merge_method=method).concept
    merged.add("two", whole.to_bytes(), whole.summary())
    entry = ck.shrink("two", size="recipe", base=pico, registry=merged)
    assert entry.ref == "two@2" and entry.bytes < 1500 < merged.get("two@1").bytes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = read_stored(merged, "two", pico)
    assert again.to_bytes() == whole.to_bytes() and merged.get("two").summary[AS_RECIPE] is True
    assert lineage.parts(merged, entry) == ["my_dog@1", "moongate@1"]


def test_it_is_drawn_merged_and_stored_whole_again(pico, merged, recipe):
    bytes_before = read_stored(merged, "both", pico).to_bytes()
    assert merged.preview(recipe) == PNG
    third = tiny.pico_concept(pico.pipe, "my_cat", "cat", rank=2)
    merged.add("my_cat", third.to_bytes(), third.summary())
    three = compose("both", "my_cat", base=pico, registry=merged, name="three").concept
    assert set(three.words) == {"my_dog", "moongate", "my_cat"}
    merged.add("three", three.to_bytes(), three.summary())
    ck.shrink("three", size="recipe", base=pico, registry=merged)  # a recipe of a recipe
    assert read_stored(merged, "three", pico).to_bytes() == three.to_bytes()
    with ck.attach(pico.pipe, "both", registry=merged) as attachment:
        assert attachment
    again = ck.shrink("both", size="full", base=pico, registry=merged)
    assert again.ref == "both@3" and merged.read(again) == bytes_before and AS_RECIPE not in again.summary
    with pytest.raises(BadRecipe, match="full keeps every number"):
        ck.shrink("both", size="full", base=pico, registry=merged)


def test_a_part_that_a_recipe_needs_is_not_removed(merged, recipe):
    for remove in (merged.remove, lambda name: trash.discard(merged, name)):
        for name in ("my_dog", "my_dog@1"):
            with pytest.raises(ConceptError, match="my_dog@1 is a part of both@2, .* --size full"):
                remove(name)
    assert not list((merged.home / "trash").glob("*")) and merged.has("my_dog")
    merged.add("twin", merged.read("my_dog"), merged.get("my_dog").summary)
    merged.remove("my_dog")  # the same bytes are there under another name
    assert read_stored(merged, "both", pipeline.of(tiny.pico_sd(), "pico"))
    with pytest.raises(ConceptError, match="twin@1 is a part of both@2"):
        merged.remove("twin")
    merged.remove("both")
    merged.remove("twin")


def test_gc_verify_and_rebuild_know_recipes(pico, merged, recipe):
    maintenance.gc(merged, delete=True)
    assert maintenance.verify(merged).problems == []
    before = read_stored(merged, "both", pico).to_bytes()
    rows = merged.index.query("select hash from versions where name = 'my_dog'")
    with merged.index.writing() as conn:  # as a damaged index may have it
        conn.execute("delete from versions where name = 'my_dog'")
        conn.execute("delete from names where name = 'my_dog'")
    said = "both@2 is stored as its recipe, and its part my_dog@1 is missing."
    assert said in maintenance.verify(merged).problems
    with pytest.raises(ConceptError, match="its part my_dog@1 is not here: .*rm --undo my_dog@1"):
        read_stored(merged, "both", pico)
    merged.close()
    for file in merged.home.glob("index.db*"):
        file.unlink()
    rebuild_index(merged.home)
    with Registry(merged.home) as again:
        assert again.get("my_dog").hash == rows[0][0] and again.get("both").summary[AS_RECIPE] is True
        assert read_stored(again, "both", pico).to_bytes() == before
        assert maintenance.verify(again).problems == []


def test_what_is_no_merge_or_a_recipe_already_is_refused(pico, merged, recipe):
    with pytest.raises(BadRecipe, match="my_dog@1 was learned and not merged"):
        ck.shrink("my_dog", size="recipe", base=pico, registry=merged)
    with pytest.raises(BadRecipe, match="Only a merge in the registry"):
        ck.shrink(read_stored(merged, "both", pico), size="recipe", base=pico, registry=merged)
    with pytest.raises(NoEffect, match="both@2 is stored as its recipe already"):
        ck.shrink("both", size="recipe", base=pico, registry=merged)
    with pytest.raises(BadRecipe, match="Only a merge is stored as its recipe"):
        ck.add("new", "nowhere", class_noun="dog", size="recipe", base=pico, registry=merged)


def test_others_get_no_recipe(merged, recipe, tmp_path):
    data = merged.read("both")
    header = concept_header.read(data)
    assert header.name == "both" and header.summary["kind"] == "merge"
    with pytest.raises(BadBlob, match="recipe of a merge"):
        concept_validation.check(data)
    with pytest.raises(BadBlob, match="recipe of a merge"):
        Concept.from_bytes(data)
    with pytest.raises(BadBlob, match="both@2 is stored as its recipe, .*shrink both@2 --size full"):
        exchange.export(merged, [recipe], tmp_path / "both.bundle")


def test_another_result_is_said(pico, merged, recipe, monkeypatch):
    told = recipes.told
    monkeypatch.setattr(recipes, "told", lambda data: replace(told(data), built="0" * 64))
    with pytest.warns(UserWarning, match="both@2 was built from its parts with other numbers"):
        read_stored(merged, "both", pico)


def test_damaged_recipes_are_refused_in_a_sentence(merged, recipe):
    data = merged.read("both")
    with pytest.raises(BadBlob, match="recipe of a merge that is damaged"):
        recipes.told(data.replace(b'\\"padding_delta\\"', b'\\"padding_drift\\"'))
    assert merged.blob_store.size(recipe.hash) == len(data)


def test_show_says_so(merged, recipe):
    assert json.loads(run("show", "both", "--json"))["summary"][AS_RECIPE] is True
    assert "its recipe, built from its parts" in run("show", "both")
