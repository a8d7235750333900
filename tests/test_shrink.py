"""`ck.shrink`: a stored concept becomes smaller, as its next version."""

import pytest

import conceptkit as ck
from conceptkit.base import pipeline
from conceptkit.concepts.concept import Concept, read
from conceptkit.errors import BadRecipe, ConceptError, NoEffect, UnknownConcept
from conceptkit.features import caption_statistics, captions
from conceptkit.merging.compose import compose, rebuild
from conceptkit.registry import store
from conceptkit.registry.catalogue import lineage
from tests import tiny


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    texts = captions.captions("any")[:30]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: texts)


@pytest.fixture(scope="module")
def pico():
    return pipeline.of(tiny.pico_sd(), "pico")


@pytest.fixture
def kept(pico, registry):
    for name, noun in (("my_dog", "dog"), ("moongate", "gate")):
        concept = tiny.pico_concept(pico.pipe, name, noun, rank=4)
        registry.add(name, concept.to_bytes(), concept.summary())
    return registry


def test_a_concept_is_shrunk_as_its_next_version(pico, kept):
    before = kept.get("my_dog")
    entry = ck.shrink("my_dog", rank=2, base=pico, registry=kept)
    assert entry.ref == "my_dog@2" and entry.bytes < before.bytes
    small = read(kept, "my_dog")
    assert small.delta.rank == 2 and small.recipe["shrunk"]["rank"] == 2
    assert small.provenance["parents"] == ["my_dog@1"] and small.provenance["parent_sha256"] == [before.hash]
    assert lineage.holder(kept, before.hash) == before
    half = ck.shrink("moongate", energy=0.5, base=pico, registry=kept)
    assert 1 <= read(kept, half.ref).delta.rank < 4
    assert compose("my_dog", "moongate", base=pico, registry=kept).concept.delta
    with pytest.raises(ConceptError, match="was shrunk, not merged; shrink my_dog@1 again"):
        rebuild("my_dog", registry=kept, base=pico)


def test_a_value_is_stored_under_its_name(pico, registry):
    concept = tiny.pico_concept(pico.pipe, rank=3)
    assert ck.shrink(concept, rank=1, base=pico, registry=registry).ref == "my_dog@1"


def test_a_joint_concept_that_was_shrunk_stays_joint(pico, kept):
    joint = compose("my_dog", "moongate", base=pico, registry=kept, name="both").concept
    fields = {**vars(joint), "recipe": {"joint": True}, "provenance": {"seed": 1}}
    joint = Concept(**{name: fields[name] for name in Concept.__dataclass_fields__})
    kept.add("both", joint.to_bytes(), joint.summary())
    ck.shrink("both", rank=2, base=pico, registry=kept)
    found = compose("my_dog", "moongate", base=pico, registry=kept, merge_method="joint")
    assert found.concept.recipe["joint"] == "both@2" and found.concept.delta.rank == 2


@pytest.mark.parametrize(
    ("size", "error", "said"),
    [
        ({}, BadRecipe, "either the rank or the energy"),
        ({"rank": 0}, BadRecipe, "rank 0; give 1 or more"),
        ({"energy": 2.0}, BadRecipe, "energy 2.0; give one above 0"),
        ({"rank": 9}, NoEffect, "my_dog@1 would be no smaller: its rank is 4"),
    ],
)
def test_what_makes_no_sense_stores_nothing(pico, kept, size, error, said):
    with pytest.raises(error, match=said):
        ck.shrink("my_dog", base=pico, registry=kept, **size)
    with pytest.raises(UnknownConcept):
        ck.shrink("nobody", rank=1, base=pico, registry=kept)
    assert len(kept.versions("my_dog")) == 1


def test_a_registry_of_its_own_is_closed_again(pico, kept, monkeypatch):
    closed = []
    real = store.Registry.close
    monkeypatch.setattr(store.Registry, "close", lambda self: (closed.append(self), real(self)))
    compose(tiny.pico_concept(pico.pipe), base=pico)
    assert len(closed) == 1
    ck.shrink("my_dog", rank=1, base=pico)
    assert len(closed) == 2
    made = compose("my_dog@1", "moongate", base=pico, registry=kept)
    kept.add("both", made.concept.to_bytes(), made.concept.summary())
    assert len(closed) == 2, "a registry that was given stays open"
    rebuild("both", base=pico)
    assert len(closed) == 3
    with pytest.raises(UnknownConcept):
        compose("nobody", base=pico)
    assert len(closed) == 4
