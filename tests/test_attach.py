"""Concepts on a pipeline: their names are words, and `detach` leaves it bit for bit as it was."""

import dataclasses
import sys
import warnings

import pytest
import torch

from conceptkit.base import pipeline
from conceptkit.base.attention import kv_maps
from conceptkit.errors import BaseMismatch, ConceptError, NoEffect, UnknownConcept
from conceptkit.inference import installed_delta
from conceptkit.inference.attach import attach
from conceptkit.merging.compose import compose
from conceptkit.registry.store import Registry
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, snapshot

BUILDS = pytest.mark.parametrize("build", [pico_sd, pico_sdxl])
PROMPT = "my_dog in the snow"


@pytest.fixture
def pipe():
    return pico_sd()


@pytest.fixture
def stored(pipe):
    """A registry that holds my_dog and moongate."""
    registry = Registry()
    for concept in (pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1)):
        registry.add(concept.name, concept.to_bytes(), concept.summary())
    return registry


@BUILDS
@pytest.mark.parametrize("options", [{"rank": 2}, {"rank": 0}, {"vectors": 3}])
def test_detach_leaves_the_pipeline_bit_identical(build, options):
    pipe = build()
    before = snapshot(pipe)
    with attach(pipe, pico_concept(pipe, **options)) as attachment:
        assert attachment.concepts == ("my_dog",) and attachment.report is None and attachment.notice is None
        assert draw(pipe, PROMPT).numpy().tobytes() != before["picture"]
        assert len(pipe.tokenizer) > before["tokenizers"]["tokenizer"][1]
    assert snapshot(pipe) == before
    attachment.detach()
    assert snapshot(pipe) == before


@BUILDS
def test_a_name_behind_the_last_position_that_is_read_is_told(build):
    pipe = build()
    room = pipe.tokenizer.model_max_length
    before = "in the snow " * room
    with attach(pipe, pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1), confine=False):
        with pytest.warns(UserWarning, match=f"reads {room} tokens of a prompt.*my_dog comes after") as heard:
            draw(pipe, f"a moongate {before} with my_dog")
        assert len(heard) == 1 and "name my_dog earlier" in str(heard[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw(pipe, f"my_dog by a moongate {before}")
            draw(pipe, f"<my_dog> by a moongate {before} with my_dog")


def test_a_window_reads_a_clause_of_its_own():
    pipe = pico_sd()
    pair = pico_concept(pipe), pico_concept(pipe, "moongate", "gate", seed=1)
    prompt = f"my_dog in {'the red snow ' * pipe.tokenizer.model_max_length} next to a moongate"
    with attach(pipe, *pair, side_by_side=False) as frame:
        cut = frame.cut_off(prompt)
    with attach(pipe, *pair, side_by_side=True) as windows:
        assert len(cut) == 1 and "moongate comes after" in cut[0] and not windows.cut_off(prompt)


@BUILDS
def test_a_name_is_a_word(build):
    pipe = build()
    with attach(pipe, pico_concept(pipe)):
        named = draw(pipe, PROMPT, negative_prompt="my_dog")
        token = draw(pipe, "<my_dog> dog in the snow", negative_prompt="<my_dog> dog")
        assert torch.equal(named, token)
        assert not torch.equal(named, draw(pipe, PROMPT))
        both = pipe(["my_dog", "my_dog in the snow"], num_inference_steps=1, output_type="np").images
        assert both.shape[0] == 2
        with pytest.warns(
            UserWarning, match="'a photo of a dog' mentions none of the attached concepts: my_dog"
        ):
            draw(pipe, "a photo of a dog")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw(pipe, "<my_dog> in the snow")


def test_several_are_composed_in_one_call(pipe, stored):
    before = snapshot(pipe)
    with attach(pipe, "my_dog", "moongate", registry=stored) as attachment:
        assert set(attachment.concepts) == {"my_dog", "moongate"}
        assert {kept.name for kept in attachment.report.kept} == {"my_dog", "moongate"}
        both = draw(pipe, "my_dog in front of a moongate")
    assert snapshot(pipe) == before
    with attach(pipe, compose("my_dog", "moongate", registry=stored, base=pipeline.of(pipe))) as attachment:
        assert attachment.report is not None
        assert torch.equal(draw(pipe, "my_dog in front of a moongate"), both)
    with attach(pipe, "my_dog", pico_concept(pipe, "teapot", "teapot"), registry=stored, merge_method="sum"):
        assert not torch.equal(draw(pipe, "my_dog in front of a moongate"), both)
    assert snapshot(pipe) == before


def test_a_name_reads_from_the_registry(pipe, stored):
    with attach(pipe, pico_concept(pipe)):
        expected = draw(pipe, PROMPT)
    with attach(pipe, "my_dog@1", registry=stored):
        assert torch.allclose(draw(pipe, PROMPT), expected, atol=1e-2)  # stored as float16
    with pytest.raises(UnknownConcept, match="my_dog"):
        attach(pipe, "my_dgo", registry=stored)


def test_only_one_attachment_at_a_time(pipe):
    first = attach(pipe, pico_concept(pipe))
    during = snapshot(pipe, PROMPT)
    with pytest.raises(ConceptError, match="already carries my_dog; detach first, or attach all in one call"):
        attach(pipe, pico_concept(pipe, "moongate", "gate"))
    assert snapshot(pipe, PROMPT) == during
    first.detach()
    attach(pipe, pico_concept(pipe, "moongate", "gate")).detach()


def test_a_second_pipeline_on_the_same_unet_is_refused_and_unharmed(pipe):
    other = pico_sd()
    other.unet = pipe.unet
    before = snapshot(other)
    first = attach(pipe, pico_concept(pipe))
    with pytest.raises(ConceptError, match="already carries 'conceptkit'"):
        attach(other, pico_concept(pipe, "moongate", "gate"))
    first.detach()
    assert snapshot(other) == before


def test_failures_leave_the_pipeline_as_it_was(pipe, monkeypatch):
    before = snapshot(pipe)
    concept = pico_concept(pipe)
    with pytest.raises(ConceptError, match="nothing to attach"):
        attach(pipe)
    with pytest.raises(NoEffect, match="my_dog would change nothing"):
        zero = {name: (torch.zeros_like(up), down) for name, (up, down) in concept.delta.items()}
        attach(pipe, dataclasses.replace(concept, delta=zero, tokens={}))
    with pytest.raises(BaseMismatch, match="my_dog was learned on"):
        attach(pipe, pico_concept(pico_sdxl()))
    steps = {"install_on": installed_delta, "hook_encode_prompt": sys.modules[attach.__module__]}
    for step, module in steps.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                attach(pipe, concept)
        assert snapshot(pipe) == before
    pipe.load_textual_inversion(torch.randn(32), token="<my_dog>")
    with pytest.raises(ConceptError, match="already has a token <my_dog>"):
        attach(pipe, concept)


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_delta_or_a_token_alone_is_enough(pipe):
    before = snapshot(pipe)
    concept = pico_concept(pipe)
    with attach(pipe, dataclasses.replace(concept, delta={})):
        assert draw(pipe, PROMPT).numpy().tobytes() != before["picture"]
    with attach(pipe, dataclasses.replace(concept, tokens={}, words={})):
        assert draw(pipe, "a photo of a dog").numpy().tobytes() != before["picture"]
    assert snapshot(pipe) == before


def test_a_near_relative_of_the_base_is_accepted_with_a_notice(pipe):
    concept = pico_concept(pipe)
    for linear in kv_maps(pipe.unet).values():
        linear.weight.data += 0.05 * linear.weight.std() * torch.randn(linear.weight.shape)
    with pytest.warns(UserWarning, match="my_dog was learned on"):
        attachment = attach(pipe, concept)
    assert "my_dog" in attachment.notice
    attachment.detach()


def test_an_own_encode_prompt_is_put_back(pipe):
    calls = []
    original = pipe.encode_prompt

    def own(*args, **kwargs):
        calls.append(args[0] if args else kwargs["prompt"])
        return original(*args, **kwargs)

    pipe.encode_prompt = own
    with attach(pipe, pico_concept(pipe)):
        draw(pipe, PROMPT)
    assert pipe.encode_prompt is own
    assert calls == ["<my_dog> dog in the snow"]


def test_tokens_torn_off_by_others_are_an_error_not_silence(pipe):
    with attach(pipe, pico_concept(pipe)):
        pipe.unload_textual_inversion()
        with pytest.raises(ConceptError, match="Another token table was loaded"):
            draw(pipe, PROMPT)
