"""Swaps are cheap because layers stay and results are kept; what changes meanwhile is noticed."""

import copy
import random
from unittest import mock

import pytest
import torch

from conceptkit.base import fingerprint, pipeline
from conceptkit.base.module_walk import named_modules, submodule
from conceptkit.base.tokenizer_copy import knows, twin_of
from conceptkit.concepts import concept as concepts
from conceptkit.errors import BaseMismatch, ConceptError
from conceptkit.inference import attach_request, installed_delta
from conceptkit.inference.attach import attach
from conceptkit.merging import compose as composing
from conceptkit.registry.store import Registry
from tests import tiny
from tests.tiny import draw, pico_concept, pico_sd, pico_sdxl, snapshot, state_hash

PROMPT = "a photo of my_cat"


@pytest.fixture
def pipe():
    return pico_sd()


def layer(pipe):
    return submodule(pipe.unet, next(iter(pipeline.of(pipe).sizes)))


def test_modules_are_walked_as_pytorch_walks_them(pipe):
    pipe.unet.register_module("again", pipe.unet.mid_block)
    pipe.unet.register_module("nothing", None)
    assert named_modules(pipe.unet) == list(pipe.unet.named_modules())
    assert submodule(pipe.unet, "mid_block.nowhere") is None
    assert submodule(pipe.unet, "nothing.below") is None


@pytest.mark.parametrize("name", ["clip", "words"])
def test_a_twin_spells_as_its_tokenizer_does_and_learns_alone(name, pipe):
    tokenizer = pipe.tokenizer
    if name == "words":
        dice = random.Random(0)
        words = ("".join(dice.choices("abcdefgh", k=6)) for _ in range(300))
        tokenizer = tiny.tokenizer(" ".join(words))
    tokenizer.add_tokens(["<theirs>", "and more"])
    texts = ["a dog and more <theirs> on a beach", "", "ünïcödé <x> dog " * 20]
    options = {"padding": "max_length", "truncation": True, "max_length": 12}
    expected = [tokenizer(text, **options).input_ids for text in texts]
    decoded = [tokenizer.decode(ids) for ids in expected]
    size, state = len(tokenizer), tokenizer.backend_tokenizer.to_str()
    twin = twin_of(tokenizer)
    assert [twin(text, **options).input_ids for text in texts] == expected
    assert [twin.decode(ids) for ids in expected] == decoded
    twin.add_tokens(["<x>"])
    assert knows(twin, "<x>") and not knows(tokenizer, "<x>")
    assert twin.convert_tokens_to_ids("<x>") == size
    tokenizer.add_tokens(["<later>"])
    assert not knows(twin, "<later>")
    assert len(twin) == len(tokenizer) == size + 1
    assert state != tokenizer.backend_tokenizer.to_str()  # its own token, which the twin lacks


def test_a_twin_shares_the_vocabulary(pipe):
    """Copying one takes most of a second; nothing else in a swap is so slow."""
    with mock.patch("tokenizers.Tokenizer.__deepcopy__", create=True, side_effect=AssertionError):
        twin_of(pipe.tokenizer)
    special = pipe.tokenizer.backend_tokenizer
    assert twin_of(pipe.tokenizer).backend_tokenizer is not special


def test_layers_stay_while_the_maps_are_the_same(pipe):
    before = snapshot(pipe)
    dog, cat = (pico_concept(pipe, name, seed=i) for i, name in enumerate(("my_dog", "my_cat")))
    with attach(pipe, cat):
        expected = draw(pipe, PROMPT)
    with attach(pipe, dog) as attachment:
        first = layer(pipe)
        with mock.patch.object(installed_delta, "install_on", side_effect=AssertionError):
            attachment.swap("my_dog", cat)
        assert layer(pipe) is first
        assert torch.equal(draw(pipe, PROMPT), expected)
    assert snapshot(pipe) == before


@pytest.mark.parametrize("other", [{"rank": 4}, {"rank": 0}, {"text_rank": 2}, {"vectors": 3}])
def test_a_swap_to_another_kind_of_concept_is_a_fresh_attach(pipe, other):
    before = snapshot(pipe)
    dog, cat = pico_concept(pipe), pico_concept(pipe, "my_cat", "cat", seed=5, **other)
    with attach(pipe, cat):
        expected = draw(pipe, PROMPT)
    with attach(pipe, dog) as attachment:
        at_first = draw(pipe, "a photo of my_dog")
        attachment.swap("my_dog", cat)
        assert torch.equal(draw(pipe, PROMPT), expected)
        attachment.swap("my_cat", dog)
        assert torch.equal(draw(pipe, "a photo of my_dog"), at_first)
    assert snapshot(pipe) == before


def test_what_was_done_to_the_layers_is_gone_after_a_swap(pipe):
    dog, cat = (pico_concept(pipe, name, seed=i) for i, name in enumerate(("my_dog", "my_cat")))
    with attach(pipe, cat):
        expected = draw(pipe, PROMPT)
    before = snapshot(pipe)
    del before["attributes"]  # diffusers counts on the pipeline what was fused
    for harm in (
        lambda: pipe.set_adapters("conceptkit", 0.3),
        lambda: pipe.disable_lora(),
        lambda: pipe.fuse_lora(adapter_names=["conceptkit"]),
        lambda: pipe.unload_lora_weights(),
    ):
        with attach(pipe, dog) as attachment:
            harm()
            attachment.swap("my_dog", cat)
            assert torch.equal(draw(pipe, PROMPT), expected)
        assert before.items() <= snapshot(pipe).items()


def test_many_cycles_leave_no_trace(pipe):
    before, known = state_hash(pipe.unet), fingerprint.fingerprint_of(pipe)
    pair = [pico_concept(pipe, name, seed=i) for i, name in enumerate(("my_dog", "my_cat"))]
    with attach(pipe, pair[0]) as attachment:
        first = layer(pipe)
        hooks = len(first._forward_hooks), len(pipe.unet._forward_pre_hooks)
        for i in range(20):
            attachment.swap(pair[i % 2].name, pair[1 - i % 2])
        assert (len(first._forward_hooks), len(pipe.unet._forward_pre_hooks)) == hooks
        assert {len(part) for part in (first.gates, first.silenced)} == {0}
        assert len(first.ups) == 1
    assert state_hash(pipe.unet) == before
    assert fingerprint.fingerprint_of(pipe) == known


# what is kept


def changes(pipe):
    """Ways in which a base changes in place, and back."""
    weight = layer(pipe).weight
    text = pipe.text_encoder.get_input_embeddings().weight

    def over(values):
        with torch.no_grad():
            values.mul_(2)
        return lambda: values.data.div_(2)

    def past_the_counter():
        weight.data.mul_(2)
        return lambda: weight.data.div_(2)

    def another():
        kept = weight.data
        weight.data = kept * 2
        return lambda: setattr(weight, "data", kept)

    return {
        "maps": lambda: over(weight),
        "tokens": lambda: over(text),
        "data": past_the_counter,
        "new": another,
    }


@pytest.mark.parametrize("make", [pico_sd, pico_sdxl])
@pytest.mark.parametrize("change", ["maps", "tokens", "data", "new"])
def test_a_fingerprint_that_is_kept_is_that_of_the_weights_as_they_are(make, change):
    pipe = make()
    known, digest = fingerprint.fingerprint_of(pipe), fingerprint.features_digest(pipe)
    with mock.patch.object(fingerprint, "_fingerprint", side_effect=AssertionError):
        assert fingerprint.fingerprint_of(pipe) == known
    back = changes(pipe)[change]()
    assert fingerprint.fingerprint_of(pipe) == fingerprint._fingerprint(pipe, False) != known
    assert fingerprint.features_digest(pipe) != digest
    back()
    assert fingerprint.fingerprint_of(pipe) == known


def test_a_fused_lora_and_one_beside_are_noticed(pipe, tmp_path):
    from conceptkit.formats.dialects import export

    known = fingerprint.fingerprint_of(pipe)
    export(pico_concept(pipe), tmp_path)
    pipe.load_lora_weights(tmp_path)
    beside = fingerprint.fingerprint_of(pipe)
    assert beside != known
    pipe.set_adapters(pipe.get_active_adapters(), 0.5)
    assert fingerprint.fingerprint_of(pipe) not in (known, beside)
    pipe.set_adapters(pipe.get_active_adapters(), 1.0)
    pipe.fuse_lora()
    assert fingerprint.fingerprint_of(pipe) == fingerprint._fingerprint(pipe, False) != known


def test_a_tokenizer_that_spells_otherwise_is_noticed(pipe):
    from tokenizers.normalizers import Sequence, Strip

    digest = fingerprint.features_digest(pipe)
    backend = pipe.tokenizer.backend_tokenizer
    backend.normalizer = Sequence([backend.normalizer, Strip()])
    assert fingerprint.features_digest(pipe) != digest


def test_a_swap_notices_that_the_base_has_become_another(pipe):
    dog, cat = (pico_concept(pipe, name, seed=i) for i, name in enumerate(("my_dog", "my_cat")))
    with attach(pipe, dog) as attachment:
        state = {name: torch.randn_like(value) for name, value in pipe.unet.state_dict().items()}
        pipe.unet.load_state_dict(state | {k: v for k, v in pipe.unet.state_dict().items() if "kv_" in k})
        with pytest.raises(BaseMismatch, match="my_cat was learned on"):
            attachment.swap("my_dog", cat)
        assert attachment.concepts == ("my_dog",)


def test_a_merge_is_made_once_for_a_base_and_again_for_another(pipe):
    registry = Registry()
    pair = [pico_concept(pipe, name, seed=i) for i, name in enumerate(("my_dog", "my_cat"))]
    for one in pair:
        registry.add(one.name, one.to_bytes(), one.summary())
    with mock.patch.object(composing, "merge", wraps=composing.merge) as merge:
        for _ in range(3):
            attach(pipe, *pair, registry=registry).detach()
        assert merge.call_count == 1
        for _ in range(3):
            attach(pipe, "my_dog", "my_cat", registry=registry).detach()
        assert merge.call_count == 2
        attach(pipe, *pair, registry=registry, weights=[1.0, 0.5]).detach()
        attach(pipe, *pair, registry=registry, merge_method="sum").detach()
        assert merge.call_count == 4
        layer(pipe).weight.data.mul_(1.0001)
        attach(pipe, *pair, registry=registry).detach()
        assert merge.call_count == 5
        newer = pico_concept(pipe, "my_cat", seed=9)
        registry.add("my_cat", newer.to_bytes(), newer.summary(), new_version=True)
        with attach(pipe, "my_dog", "my_cat", registry=registry) as attachment:
            assert merge.call_count == 6
            assert attachment.concept.provenance["parents"] == ["my_dog@1", "my_cat@2"]


def test_a_concept_is_decoded_once_while_the_registry_holds_it(pipe):
    registry = Registry()
    dog = pico_concept(pipe)
    registry.add("my_dog", dog.to_bytes(), dog.summary())
    with mock.patch.object(concepts.Concept, "from_bytes", wraps=concepts.Concept.from_bytes) as decoded:
        for _ in range(3):
            attach(pipe, "my_dog", registry=registry).detach()
        assert decoded.call_count == 1
        newer = pico_concept(pipe, seed=9)
        registry.add("my_dog", newer.to_bytes(), newer.summary(), new_version=True)
        with attach(pipe, "my_dog", registry=registry) as attachment:
            assert attachment.concept.delta.same(concepts.Concept.from_bytes(newer.to_bytes()).delta)
    registry.remove("my_dog")
    with pytest.raises(ConceptError, match="my_dog"):
        attach(pipe, "my_dog", registry=registry)


def test_decoded_concepts_do_not_pile_up(pipe, monkeypatch):
    monkeypatch.setattr(attach_request, "RECENT_BYTES", 1)
    registry = Registry()
    for i in range(3):
        one = pico_concept(pipe, f"dog_{i}", seed=i)
        registry.add(one.name, one.to_bytes(), one.summary())
        attach_request.read_recent(registry, one.name)
    assert len(attach_request._recent) == 1


def test_a_pipeline_that_is_gone_takes_what_was_kept_with_it():
    import gc
    import weakref

    pipe = pico_sd()
    attach(pipe, *(pico_concept(pipe, name, seed=i) for i, name in enumerate(("my_dog", "my_cat")))).detach()
    gone = weakref.ref(pipe.unet)
    del pipe
    gc.collect()
    assert gone() is None


def test_a_copy_of_a_pipeline_is_a_base_of_its_own(pipe):
    known = fingerprint.fingerprint_of(pipe)
    other = copy.deepcopy(pipe)
    layer(other).weight.data.mul_(2)
    assert fingerprint.fingerprint_of(other) != known == fingerprint.fingerprint_of(pipe)
