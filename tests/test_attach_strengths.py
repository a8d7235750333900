"""Strengths of attached concepts: set while they are on the pipeline, they are those of a fresh attach."""

import dataclasses

import pytest
import torch

from conceptkit.base import pipeline
from conceptkit.errors import BadRecipe, UnknownConcept
from conceptkit.inference.attach import attach
from conceptkit.merging.compose import compose
from conceptkit.merging.method_table import MERGE_METHODS, MergeMethod
from conceptkit.registry.store import Registry
from tests.tiny import draw, pico_concept, pico_sd, snapshot

BOTH = "my_dog in front of a moongate"


@pytest.fixture
def pipe():
    return pico_sd()


@pytest.fixture
def pair(pipe):
    wide = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (torch.ones(32, 2), torch.ones(2, 32))}
    dog = pico_concept(pipe)
    dog = dataclasses.replace(dog, delta=dog.delta | wide, recipe={**dog.recipe, "gated_lora_rank": 2})
    return dog, pico_concept(pipe, "moongate", "gate", seed=3, text_rank=2)


def fresh(pipe, *concepts, prompt=BOTH, **options):
    with attach(pipe, *concepts, **options):
        return draw(pipe, prompt)


@pytest.mark.parametrize("method", ["regmean", "closed-form", "routed", "sum", "linear"])
def test_strengths_of_a_merge_are_those_of_a_fresh_attach(pipe, pair, method):
    before = snapshot(pipe)
    expected = fresh(pipe, *pair, weights=[0.4, 1.5], merge_method=method)
    at_first = fresh(pipe, *pair, weights=[0.8, 1.0], merge_method=method)
    with attach(pipe, *pair, weights=[0.8, 1.0], merge_method=method) as attachment:
        assert attachment.strengths == {"my_dog": 0.8, "moongate": 1.0}
        attachment.strengths = {"my_dog": 0.4, "moongate": 1.5}
        assert torch.allclose(draw(pipe, BOTH), expected, atol=1e-5)
        assert not torch.allclose(at_first, expected, atol=1e-3)
        attachment.strengths = {"my_dog": 0.8, "moongate": 1.0}
        assert torch.allclose(draw(pipe, BOTH), at_first, atol=1e-5)
    assert snapshot(pipe) == before


@pytest.mark.parametrize("method", ["svd", "ties"])
def test_what_is_not_linear_in_each_strength_says_so_and_takes_one_factor(pipe, pair, method):
    expected = fresh(pipe, *pair, weights=[0.5, 0.5], merge_method=method)
    with attach(pipe, *pair, merge_method=method) as attachment:
        at_first = draw(pipe, BOTH)
        with pytest.raises(BadRecipe, match=f"by {method} is not linear in the strength of each part"):
            attachment.strengths = {"my_dog": 0.5}
        assert attachment.strengths == {"my_dog": 1.0, "moongate": 1.0}
        assert torch.equal(draw(pipe, BOTH), at_first)
        attachment.strengths = {"my_dog": 0.5, "moongate": 0.5}
        assert torch.allclose(draw(pipe, BOTH), expected, atol=1e-5)


def test_one_concept_alone_at_any_strength(pipe, pair):
    registry = Registry()
    registry.add("my_dog", pair[0].to_bytes(), pair[0].summary())
    prompt = "a photo of my_dog"
    expected = fresh(pipe, "my_dog:0.3", prompt=prompt, registry=registry)
    with attach(pipe, "my_dog", registry=registry) as attachment:
        attachment.strengths = {"my_dog": 0.3}
        assert torch.equal(draw(pipe, prompt), expected)
        attachment.strengths = {"my_dog": 0}
        token_alone = dataclasses.replace(pair[0], delta={})
        silent = draw(pipe, prompt)
    assert torch.equal(silent, fresh(pipe, token_alone, prompt=prompt))


def test_a_merge_and_a_merge_at_a_strength(pipe, pair):
    merge = compose(*pair, base=pipeline.of(pipe, "pico"))
    expected = fresh(pipe, *pair, weights=[0.5, 1.0])
    with attach(pipe, merge) as attachment:
        attachment.strengths = {"my_dog": 0.5}
        assert torch.allclose(draw(pipe, BOTH), expected, atol=1e-5)
    cat = pico_concept(pipe, "my_cat", "cat", seed=5)
    with attach(pipe, merge, weights=[0.5]) as attachment:
        (whole,) = attachment.strengths
        attachment.strengths = {whole: 0.25}
        attachment.swap("my_dog", cat)
        assert attachment.strengths == {"my_cat": 0.25, "moongate": 0.25}


def interrupted(*_):
    raise KeyboardInterrupt


def test_strengths_for_one_call(pipe, pair):
    expected = fresh(pipe, *pair, weights=[0.2, 1.0])
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}

    def drawn(attachment, **more):
        generator = torch.Generator().manual_seed(0)
        return attachment.draw(BOTH, generator=generator, **options, **more).images[0].tobytes()

    with attach(pipe, *pair) as attachment:
        usual = drawn(attachment)
        weak = drawn(attachment, strengths={"my_dog": 0.2})
        assert weak != usual
        assert attachment.strengths == {"my_dog": 1.0, "moongate": 1.0}
        assert drawn(attachment) == usual
        with pytest.raises(KeyboardInterrupt):
            drawn(attachment, strengths={"my_dog": 0.2}, callback_on_step_end=interrupted)
        assert drawn(attachment) == usual
        attachment.strengths = {"my_dog": 0.2}
        assert torch.allclose(draw(pipe, BOTH), expected, atol=1e-5)


def test_strengths_stay_with_the_others_through_a_swap(pipe, pair):
    cat = pico_concept(pipe, "my_cat", "cat", seed=5)
    with attach(pipe, *pair) as attachment:
        attachment.strengths = {"moongate": 0.5}
        attachment.swap("my_dog", cat)
        assert attachment.strengths == {"my_cat": 1.0, "moongate": 0.5}
        swapped = draw(pipe, "my_cat in front of a moongate")
    expected = fresh(pipe, cat, pair[1], weights=[1.0, 0.5], prompt="my_cat in front of a moongate")
    assert torch.allclose(swapped, expected, atol=1e-5)


def test_strengths_that_make_no_sense_change_nothing(pipe, pair):
    with attach(pipe, *pair) as attachment:
        before = draw(pipe, BOTH)
        with pytest.raises(UnknownConcept, match="no my_cat to give a strength; attached are my_dog"):
            attachment.strengths = {"my_cat": 0.5}
        with pytest.raises(BadRecipe, match="weight of my_dog is -1"):
            attachment.strengths = {"my_dog": -1}
        assert torch.equal(draw(pipe, BOTH), before)
    with pytest.raises(Exception, match="no longer on the pipeline"):
        attachment.strengths = {"my_dog": 0.5}


def test_every_method_of_the_table_says_what_it_is_linear_in():
    linear = {name for name, method in MERGE_METHODS.items() if method.strengths == "each"}
    assert linear >= {"regmean", "closed-form", "routed", "sum", "linear"}
    with pytest.raises(Exception, match="is linear in 'none'; choose of each, all"):
        MergeMethod("halves", "half of each", "nowhere:merge", strengths="none")
