"""Routes of stored merges are read once, as a value."""

import dataclasses

import pytest

from conceptkit.concepts.concept import Concept
from conceptkit.concepts.routing import Routing
from conceptkit.errors import BadBlob, BadRecipe, ConceptError
from conceptkit.inference.attach import attach
from conceptkit.merging import request
from tests.tiny import pico_concept, pico_sd, snapshot

STORED = {"method": "routed", "ranks": [2, 1], "routes": {"my_dog": 0, "moongate": 1}, "shared": "drop"}


def test_a_stored_recipe_is_read_and_written_as_it_was():
    routing = Routing.from_recipe(STORED)
    assert routing == Routing((2, 1), {"my_dog": 0, "moongate": 1}, "drop")
    assert {"method": "routed", **routing.to_recipe()} == STORED
    assert Routing.from_recipe({"method": "soft"}) is None
    concept = dataclasses.replace(pico_concept(pico_sd()), recipe=STORED)
    assert concept.routing is concept.routing, "it is read once"
    assert Concept.from_bytes(concept.to_bytes()).routing == routing


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": None},
        {"ranks": ["x"]},
        {"ranks": [2, -1]},
        {"ranks": [2]},
        {"routes": ["my_dog"]},
        {"routes": {"my_dog": -1}},
        {"shared": "half"},
        {"shared": None},
    ],
)
def test_damaged_routes_are_one_sentence(change):
    pipe = pico_sd()
    concept = dataclasses.replace(pico_concept(pipe), recipe={**STORED, **change})
    before = snapshot(pipe)
    with pytest.raises(BadBlob, match="routes of my_dog .* import or compose it again"):
        attach(pipe, concept)
    assert snapshot(pipe) == before


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"concepts": ()}, ConceptError, "nothing to compose"),
        ({"concepts": ("a", "a@2")}, ConceptError, "both a"),
        ({"concepts": ("a:0",)}, BadRecipe, "leave it out"),
        ({"concepts": ("a:0.5",), "weights": (2.0,)}, BadRecipe, "two weights, 0.5 and 2"),
        ({"concepts": ("a", "b"), "weights": (1.0,)}, BadRecipe, "2 concepts need as many weights, not 1"),
        ({"concepts": ("a",), "weights": ("much",)}, BadRecipe, "no weight for a"),
        ({"concepts": ("a",), "merge_method": "average"}, BadRecipe, "called 'linear' now"),
        ({"concepts": ("a",), "padding_delta": "half"}, BadRecipe, "use one of sum, average, drop"),
    ],
)
def test_a_request_is_checked_where_it_enters(fields, error, said):
    with pytest.raises(error, match=said):
        request.ComposeRequest(**fields)


def test_names_of_before_are_those_of_stored_merges():
    for old, name in request.OLD_NAMES.items():
        assert request.method_of(old) == name and request.stored_name(name) == old
    assert request.method_of("routed") == request.stored_name("routed") == "routed"
