"""Names are words in prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptkit.concepts.prompt_rewriting import mentioned, nearest, replace

WORDS = {"my_dog": "<my_dog> dog", "my": "<my> cat", "moongate": "<moongate> gate", "inky": "<inky>"}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("my_dog", "<my_dog> dog"),
        ("my_dog in front of a moongate", "<my_dog> dog in front of a <moongate> gate"),
        ("my_dog dog, at night", "<my_dog> dog, at night"),
        ("my_dog  dog's hat", "<my_dog> dog's hat"),
        ("two my_dog dogs", "two <my_dog> dogs"),
        ("two my_dogs", "two <my_dog> dogs"),
        ("my_dog's hat: my_dog.", "<my_dog> dog's hat: <my_dog> dog."),
        ("<my_dog> at night", "<my_dog> at night"),
        ("<my_dog> dog and my_dog", "<my_dog> dog and <my_dog> dog"),
        (
            "my_dogsled, a my_dog-like cat, My_dog, pre-moongate",
            "my_dogsled, a my_dog-like cat, My_dog, pre-moongate",
        ),
        ("moongate - a photo", "<moongate> gate - a photo"),
        ("(moongate:1.2), inky", "(<moongate> gate:1.2), <inky>"),
        ("my house", "<my> cat house"),
        ("", ""),
    ],
)
def test_replace(prompt, expected):
    assert replace(prompt, WORDS) == expected
    assert replace(expected, WORDS) == expected


def test_a_noun_may_be_a_name_and_have_several_words():
    words = {"rex": "<rex> dog", "dog": "<dog> fire engine"}
    assert replace("rex and dog", words) == "<rex> dog and <dog> fire engine"
    assert replace("dog fire engine", words) == "<dog> fire engine"
    assert replace(replace("rex and dog", words), words) == "<rex> dog and <dog> fire engine"


def test_lists_none_and_no_words():
    assert replace(["my_dog", "a cat"], WORDS) == ["<my_dog> dog", "a cat"]
    assert replace(None, WORDS) is None
    assert replace("my_dog", {}) == "my_dog"
    assert mentioned(None, WORDS) == mentioned("my_dog", {}) == set()


def test_mentioned():
    assert mentioned("my_dog and <moongate> at night", WORDS) == {"my_dog", "moongate"}
    assert mentioned(["a cat", "inky", "my_dogsled"], WORDS) == {"inky"}
    assert mentioned("two my_dogs", WORDS) == {"my_dog"}
    assert mentioned(replace("my_dog", WORDS), WORDS) == {"my_dog"}


def test_nearest():
    assert nearest("mydog", WORDS) == "my_dog"
    assert nearest("MOONGATE", WORDS) == "moongate"
    assert nearest("teapot", WORDS) is None


names = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_-]{0,8}", fullmatch=True)
nouns = st.sampled_from(["", "dog", "cat", "fire engine"])
tables = st.dictionaries(names, nouns, min_size=1, max_size=4).map(
    lambda table: {name: f"<{name}> {noun}".strip() for name, noun in table.items()}
)


@given(tables, st.data())
def test_replacing_twice_is_replacing_once(words, data):
    pieces = st.sampled_from([*words, *words.values(), "dog", "a", ",", "-", "<", ">", "dogs", "engine"])
    prompt = data.draw(st.lists(st.tuples(pieces, st.sampled_from([" ", "", "  "])), max_size=8))
    text = "".join(piece + gap for piece, gap in prompt)
    once = replace(text, words)
    assert replace(once, words) == once
    assert mentioned(once, words) >= mentioned(text, words)


@given(tables, st.data())
def test_every_name_between_spaces_is_replaced(words, data):
    used = data.draw(st.lists(st.sampled_from(list(words)), min_size=1, max_size=5))
    text = replace(" , ".join(used), words)
    assert text == " , ".join(words[name] for name in used)
    assert mentioned(text, words) == set(used)
