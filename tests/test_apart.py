"""Words read apart: features are put together from prompts with class nouns, and no trace stays behind."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conceptkit.base import pipeline
from conceptkit.inference import attach as attaching
from conceptkit.inference.per_concept_encoding import Piece, plan, positions, texts
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, snapshot

attach = functools.partial(attaching.attach, confine=False)

BOTH = "my_dog in front of a moongate at night"
WORDS = {"my_dog": "<my_dog> dog", "moongate": "<moongate> gate"}
BUILDS = pytest.mark.parametrize("build", [pico_sd, pytest.param(pico_sdxl, marks=pytest.mark.slow)])


def two(pipe):
    return pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1, rank=3)


def read(pipe, prompt, images=1):
    told = pipe.encode_prompt(
        prompt, device="cpu", num_images_per_prompt=images, do_classifier_free_guidance=True
    )
    return told[0], told[1:]


def test_a_prompt_is_told_with_one_concept_at_a_time():
    pieces = plan(BOTH, WORDS)
    assert pieces[1] == Piece("<my_dog> dog", "dog", "my_dog")
    assert texts(pieces) == [
        "dog in front of a gate at night",
        "<my_dog> dog in front of a gate at night",
        "dog in front of a <moongate> gate at night",
    ]
    again = plan("a <moongate> gate, my_dog and my_dog dog near moongate", WORDS)
    assert texts(again)[0] == "a gate, dog and dog near gate"
    assert plan("my_dog next to my_dog", WORDS) == plan("a dog", WORDS) == []


@BUILDS
def test_each_words_features_are_those_of_the_prompt_without_the_other(build):
    pipe = build()
    before = snapshot(pipe)
    pair = two(pipe)
    with attach(pipe, *pair, isolate_concepts=False):
        plain, dog, gate = (
            read(pipe, text)[0][0]
            for text in (
                "dog in front of a gate at night",
                "my_dog in front of a gate at night",
                "dog in front of a moongate at night",
            )
        )
        together, others = read(pipe, BOTH)
    with attach(pipe, *pair, isolate_concepts=True) as attachment:
        assert attachment.isolate_concepts
        found, same = read(pipe, BOTH)
    # the beginning; <my_dog> dog; in front of a; <moongate> gate; at night; the end and padding
    rows = [plain[0], *dog[1:3], *plain[2:6], *gate[6:8], *plain[7:9], *gate[10:76]]
    assert len(rows) == len(found[0]) == 77
    assert torch.allclose(found[0], torch.stack(rows), atol=1e-6)
    assert not torch.allclose(found, together, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(same, others, strict=True) if a is not None)
    assert snapshot(pipe) == before


@BUILDS
def test_prompts_of_a_list_are_read_one_by_one_and_single_concepts_as_ever(build):
    pipe = build()
    pair = two(pipe)
    told = [BOTH, "my_dog at night", "a moongate next to my_dog"]
    with attach(pipe, *pair, isolate_concepts=False):
        alone = read(pipe, told[1])[0]
    with attach(pipe, *pair, isolate_concepts=True):
        found = read(pipe, told, images=2)[0]
        for i, text in enumerate(told):
            one = read(pipe, text)[0][0]
            assert torch.allclose(found[2 * i], one, atol=1e-6)
            assert torch.equal(found[2 * i], found[2 * i + 1])
        assert torch.equal(read(pipe, told[1])[0], alone)


def test_what_cannot_be_taken_apart_is_read_as_it_is():
    long = BOTH + " and a red car" * 30
    for pipe, said in (
        (pico_sd(), {"prompt": long}),
        (pico_sdxl(), {"prompt": BOTH, "prompt_2": "a moongate next to my_dog"}),
    ):
        pair, features = two(pipe), []
        for apart in (False, True):
            with attach(pipe, *pair, isolate_concepts=apart):
                features.append(
                    pipe.encode_prompt(
                        **said, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
                    )[0]
                )
        assert torch.equal(*features)


@pytest.mark.parametrize("how", ["regmean", "routed"])
def test_a_picture_of_two_changes_and_regions_still_know_whose_words_are_where(how):
    pipe = pico_sd()
    pair = two(pipe)
    pictures = []
    for apart in (False, True):
        with attach(
            pipe, *pair, merge_method=how, isolate_concepts=apart, regions=["my_dog=left", "moongate=right"]
        ):
            pictures.append(draw(pipe, BOTH))
    assert not torch.equal(*pictures)


def test_who_is_read_apart_unasked():
    pipe = pico_sd()
    pair = two(pipe)
    inky = pico_concept(pipe, "inky", None, seed=2)
    assert pipeline.of(pipe, pipeline.STORYBOOK).family.isolate_concepts
    assert not pipeline.of(pipe, "pico").family.isolate_concepts
    for attached in ([*pair], [pair[0]], [pair[0], inky]):
        with attach(pipe, *attached) as attachment:
            assert not attachment.isolate_concepts
    for attached in ([pair[0]], [pair[0], inky]):
        with attach(pipe, *attached, isolate_concepts=True) as attachment:
            assert not attachment.isolate_concepts, "a style has no noun to read in its place"
    with attach(pipe, *pair, side_by_side=True, isolate_concepts=True) as attachment:
        assert attachment.side_by_side and not attachment.isolate_concepts, "a window has one concept anyway"


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=6), st.integers(30, 40))
def test_tokens_stand_where_their_piece_does(sizes, length):
    own, other = [a for a, _ in sizes], [b for _, b in sizes]
    assert torch.equal(positions(own, own, length), torch.arange(length))
    where = positions(own, other, length)
    assert len(where) == length and where[0] == 0 and where.max() <= length - 1
    at, there = 1, 1
    for a, b in sizes:
        assert where[at + a - 1] == there + b - 1, "the noun stands for the noun"
        assert there <= where[at] and (where[at : at + a].diff() >= 0).all()
        at, there = at + a, there + b
    assert where[at] == there, "so does the end of the text"
