"""What stands in a prompt: things, class nouns in their place, and who is where to whom."""

import pytest

from conceptkit.inference.prompt_scene import read_scene, with_concept

WORDS = {"my_dog": "<my_dog> dog", "moongate": "<moongate> gate", "inky": "<inky>"}


@pytest.mark.parametrize(
    ("prompt", "plain", "things"),
    [
        ("my_dog by a moongate", "dog by a gate", [("my_dog", "dog"), ("moongate", "gate")]),
        ("two my_dogs in snow", "two dogs in snow", [("my_dog", "dogs")]),
        ("<my_dog> dog, my_dog dog", "dog, dog", [("my_dog", "dog"), ("my_dog", "dog")]),
        ("my_dog and a car, cars", "dog and a car, cars", [("my_dog", "dog"), (None, "car"), (None, "cars")]),
        ("my_dog in the style of inky", "dog in the style of inky", [("my_dog", "dog")]),
        ("a dog on grass", "a dog on grass", [(None, "dog")]),
        ("cargo on grass", "cargo on grass", []),
    ],
)
def test_things_and_the_prompt_of_class_nouns(prompt, plain, things):
    scene = read_scene(prompt, WORDS, ("car", "dog"))
    assert scene.plain == plain
    assert [(thing.name, thing.noun) for thing in scene.things] == things
    for thing in scene.things:
        assert scene.plain[thing.start : thing.end] == thing.noun
    assert scene.styles == (("inky",) if "inky" in prompt else ())
    assert scene.things[0].plural == ("dogs" in plain) if things else not scene.names


@pytest.mark.parametrize(
    ("prompt", "left_of", "over"),
    [
        ("my_dog to the left of a moongate", ((0, 1),), ()),
        ("my_dog right of a moongate", ((1, 0),), ()),
        ("my_dog in front of the moongate", (), ((0, 1),)),
        ("my_dog behind a moongate", (), ((1, 0),)),
        ("my_dog sits on a moongate", (), ((0, 1),)),
        ("my_dog on the left of a moongate", ((0, 1),), ()),
        ("my_dog next to a moongate on the beach", (), ()),
    ],
)
def test_who_is_where_to_whom(prompt, left_of, over):
    scene = read_scene(prompt, WORDS)
    assert (scene.left_of, scene.over) == (left_of, over)


def test_a_prompt_with_one_concept_has_class_nouns_for_the_others_and_styles_stay():
    prompt = "two my_dogs by a moongate in the style of inky"
    assert with_concept(prompt, WORDS, ["my_dog"]) == "two <my_dog> dogs by a gate in the style of <inky>"
    assert with_concept(prompt, WORDS, ()) == "two dogs by a gate in the style of <inky>"
    both = with_concept(prompt, WORDS, ["my_dog", "moongate"])
    assert both == "two <my_dog> dogs by a <moongate> gate in the style of <inky>"
    assert with_concept(both, WORDS, WORDS) == both, "a second time changes nothing"


@pytest.mark.parametrize(
    ("prompt", "order"),
    [
        ("my_dog in front of a moongate", (1, 0)),
        ("my_dog behind a moongate", (0, 1)),
        ("my_dog behind a moongate in front of a tree", (0, 2, 1)),
        ("my_dog next to a moongate", (0, 1)),
    ],
)
def test_what_is_behind_comes_first(prompt, order):
    assert read_scene(prompt, WORDS, ["tree"]).back_to_front() == order
