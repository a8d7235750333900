"""Prompts of several concepts, taken apart into what they say of each."""

import pytest

from conceptkit.inference.split_prompt import clause_of_each, overlap_in

WORDS = {"my_dog": "<my_dog> dog", "moongate": "<moongate> gate", "my_cat": "<my_cat> cat", "inky": "<inky>"}


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("my_dog in front of a moongate", ["my_dog", "a moongate"]),
        ("my_dog next to a moongate in the snow", ["my_dog in the snow", "a moongate in the snow"]),
        (
            "photo of a my_dog wearing a hat next to a moongate closed in the snow",
            ["photo of a my_dog wearing a hat in the snow", "photo of a moongate closed in the snow"],
        ),
        (
            "photo of a happy my_dog and a big old moongate",
            ["photo of a happy my_dog", "photo of a big old moongate"],
        ),
        ("my_dog on the beach next to a moongate", ["my_dog on the beach", "a moongate on the beach"]),
        ("my_dog running past the moongate", ["my_dog running", "the moongate"]),
        (
            "my_dog with a red collar jumping through the moongate",
            ["my_dog with a red collar jumping", "the moongate"],
        ),
        ("my_dog, my_cat, and the moongate", ["my_dog", "my_cat", "the moongate"]),
        (
            "an oil painting of my_dog, my_cat and moongate in a city, by night",
            [f"an oil painting of {name} in a city, by night" for name in ("my_dog", "my_cat", "moongate")],
        ),
        ("<my_dog> dog next to a <moongate> at night", ["<my_dog> dog at night", "a <moongate> at night"]),
        ("a moongate and a my_dog; my_dog is smiling", ["a moongate", "a my_dog; my_dog is smiling"]),
        ("ein my_dog vor dem moongate", ["ein my_dog vor dem", "moongate"]),
        (
            "my_dog next to a moongate in the style of inky",
            ["my_dog in the style of inky", "a moongate in the style of inky"],
        ),
        ("my_dog in the style of inky", []),
        ("in front of a moongate, my_dog running", ["a moongate", "my_dog running"]),
        ("In the snow, my_dog next to a moongate", ["In the snow, my_dog", "In the snow, a moongate"]),
        (
            "an oil painting, my_dog and a moongate",
            ["an oil painting, my_dog", "an oil painting, a moongate"],
        ),
        (
            "my_dog on a chair in the snow beside a moongate",
            ["my_dog on a chair in the snow", "a moongate in the snow"],
        ),
        (
            "my_dog next to a car in the city and a moongate in the forest",
            ["my_dog next to a car in the city", "a moongate in the forest"],
        ),
        ("my_dog to the right of a moongate", ["a moongate", "my_dog"]),
        (
            "my_dog on the right of a moongate in the snow",
            ["a moongate in the snow", "my_dog in the snow"],
        ),
        (
            "my_dog on the left of a moongate in the snow",
            ["my_dog in the snow", "a moongate in the snow"],
        ),
        ("my_dog on the right and moongate on the left", ["moongate", "my_dog"]),
        (
            "a my_dog standing on the right, a moongate in the snow",
            ["a moongate in the snow", "a my_dog standing in the snow"],
        ),
        ("on the right a my_dog, on the left a moongate", ["a moongate", "a my_dog"]),
        (
            "my_dog in the snow next to a moongate in the style of inky",
            ["my_dog in the snow in the style of inky", "a moongate in the style of inky"],
        ),
        (
            "my_dog looking at the camera next to a moongate on the beach",
            ["my_dog looking at the camera on the beach", "a moongate on the beach"],
        ),
        (
            "my_dog in red sunglasses next to a moongate in the snow",
            ["my_dog in red sunglasses in the snow", "a moongate in the snow"],
        ),
        (
            "a my_dog at night and a moongate, pixel art",
            ["a my_dog at night, pixel art", "a moongate, pixel art"],
        ),
        ("my_dog", []),
        ("a dog next to a gate", []),
        ("", []),
    ],
)
def test_each_concept_is_told_its_own_clause(prompt, told):
    assert list(clause_of_each(prompt, WORDS).values()) == told


@pytest.mark.parametrize("first", ["my_dog", "moongate"])
def test_the_order_is_that_of_the_prompt_and_nobody_hears_another_name(first):
    second = "moongate" if first == "my_dog" else "my_dog"
    told = clause_of_each(f"a {first} sleeping beside an old {second} by the sea", WORDS)
    assert list(told) == [first, second]
    assert all(other not in text for name, text in told.items() for other in (first, second) if other != name)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("my_dog in front of a moongate", "in front of"),
        ("my_dog riding my_cat", "riding"),
        ("my_dog next to a moongate in the snow", None),
        ("my_dog, thunderstruck, beside a moongate", None),
    ],
)
def test_words_that_put_one_thing_before_another(prompt, found):
    assert overlap_in(prompt) == found
