"""A base's first use: large text encoders read a sample of the padding, and nothing is worked out twice."""

import pytest
import torch

from benchmarks import first_use
from conceptkit.base import added_tokens, fingerprint, pipeline, text_features
from conceptkit.base.text_features import END, PADDING, UNREAD, WORD, encode
from conceptkit.features import caption_statistics, captions, prompt_sample
from conceptkit.features.prompt_sample import read_prompts, samples_padding
from conceptkit.merging import merge_inputs
from conceptkit.merging.compose import compose
from conceptkit.registry.store import Registry
from tests.tiny import pico_concept, pico_sd, pico_sdxl

PROMPTS = [
    "a dog",
    "photo of a dog on the beach",
    "a",
    *(f"a {noun} in the snow" for noun in ("cat", "gate")),
]


@pytest.fixture
def large(monkeypatch):
    """All text encoders count as large."""
    monkeypatch.setattr(prompt_sample, "LARGE", 0)


@pytest.fixture
def few(monkeypatch):
    texts = captions.captions("any")[:40]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: texts)


def positions_read(pipe, action) -> int:
    """How many positions the first text encoder computes meanwhile."""
    counted = []
    encoder = pipe.text_encoder

    def count(module, args, kwargs):
        counted.append((kwargs.get("input_ids") if not args else args[0]).numel())

    hook = encoder.register_forward_pre_hook(count, with_kwargs=True)
    try:
        action()
    finally:
        hook.remove()
    return sum(counted)


def test_small_encoders_read_everything():
    pipe = pico_sd()
    read, plain = read_prompts(pipe, PROMPTS, 2), encode(pipe, PROMPTS)
    assert not samples_padding(pipe)
    assert torch.equal(read.hidden, plain.hidden) and torch.equal(read.roles, plain.roles)
    assert torch.equal(read.counts, torch.ones_like(read.counts))


@pytest.mark.parametrize("make", [pico_sd, pico_sdxl])
@pytest.mark.parametrize("whole", [0, 2])
def test_words_are_all_read_and_padding_is_stood_for(large, make, whole):
    pipe = make()
    plain, before = encode(pipe, PROMPTS), pipe.tokenizer.model_max_length
    read = read_prompts(pipe, PROMPTS, whole)
    assert pipe.tokenizer.model_max_length == before
    there = read.counts > 0
    assert there[(plain.roles == WORD) | (plain.roles == END)].all()
    assert torch.allclose(read.hidden[there], plain.hidden[there], atol=1e-5)
    assert torch.equal(read.roles[there], plain.roles[there])
    assert not read.hidden[~there].any() and (read.roles[~there] == UNREAD).all()
    # Those that were read stand for all, padding for padding.
    padding = plain.roles == PADDING
    assert torch.isclose(read.counts[padding].sum(), padding.sum().float())
    assert (read.counts[~padding] == 1).all()
    assert int(there.all(dim=1).sum()) == (len(PROMPTS[1::2]) if whole else 0)
    assert positions_read(pipe, lambda: read_prompts(pipe, PROMPTS)) < 0.7 * plain.roles.numel()


def test_encoders_that_look_ahead_read_all(large):
    pipe = pico_sd()
    pipe.text_encoder.config.model_type = "t5"
    assert not samples_padding(pipe)


def test_statistics_of_a_sample_are_near_those_of_all_and_kept_apart(few, monkeypatch, tmp_path):
    base = pipeline.of(pico_sd(), "pico")
    with Registry(tmp_path) as registry:
        whole = caption_statistics.statistics_of(base, registry)
        monkeypatch.setattr(prompt_sample, "LARGE", 0)
        sampled = caption_statistics.statistics_of(base, registry)
    assert whole.key != sampled.key
    assert (whole.gram - sampled.gram).norm() < 0.25 * whole.gram.norm()
    assert sampled.size == pytest.approx(whole.size, rel=0.03)
    assert torch.allclose(whole.audit.rows, sampled.audit.rows, atol=1e-5)


@pytest.mark.parametrize("method", ["regmean", pytest.param("closed-form", marks=pytest.mark.slow)])
def test_merges_from_a_sample_are_near_those_from_all(method):
    """On the storybook base, by what a report over all positions says of both."""
    figures = first_use.fidelity(first_use.PAIRS[:1], (method,))[0]
    whole, sampled = figures["whole"], figures["sampled"]
    assert sampled["words"] == pytest.approx(whole["words"], abs=0.05)
    assert 0.95 < sampled["captions"] / whole["captions"] < 1.1
    assert sampled != whole


def test_new_concepts_share_one_copy_of_the_tokenizer(few, monkeypatch, tmp_path):
    pipe = pico_sd()
    base = pipeline.of(pipe, "pico")
    three = [pico_concept(pipe, f"thing{i}", seed=i) for i in range(3)]
    copies = []
    plain = added_tokens.twin_of
    monkeypatch.setattr(added_tokens, "twin_of", lambda one: copies.append(one) or plain(one))
    with Registry(tmp_path / "one") as registry:
        together = compose(*three, base=base, registry=registry).concept
    assert len(copies) == 1
    with Registry(tmp_path / "two") as registry:
        for one in three:
            compose(one, base=base, registry=registry)
        again = compose(*three, base=base, registry=registry).concept
    assert len(copies) == 4
    assert together.to_bytes() == again.to_bytes()


def test_no_more_tokens_are_on_the_pipeline_than_are_read_together(few, monkeypatch, tmp_path):
    """What a prompt costs to spell grows with the tokens that are there."""
    pipe = pico_sd()
    base = pipeline.of(pipe, "pico")
    five = [pico_concept(pipe, f"thing{i}", seed=i) for i in range(5)]
    there, plain = [], merge_inputs.word_features_of_all
    before = len(pipe.tokenizer)

    def read(concepts, base):
        there.append((len(concepts), len(base.pipe.tokenizer) - before))
        return plain(concepts, base)

    monkeypatch.setattr(merge_inputs, "word_features_of_all", read)
    with Registry(tmp_path / "one") as registry:
        together = compose(*five, base=base, registry=registry).concept
    monkeypatch.setattr(merge_inputs, "READ_TOGETHER", 2)
    with Registry(tmp_path / "two") as registry:
        by_twos = compose(*five, base=base, registry=registry).concept
    each = there[0][1] // 5
    assert there == [(5, 5 * each), (2, 2 * each), (2, 2 * each), (1, each)] and each
    assert len(pipe.tokenizer) == before
    assert together.to_bytes() == by_twos.to_bytes()


def test_batches_of_many_prompts_are_of_one_length():
    lengths = torch.tensor([5, 9, 6, 5, 6, 5, 77, 6] * 30)
    batches = prompt_sample._batches(lengths.argsort(stable=True), lengths)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= prompt_sample.BATCH
    read = sum(len(picks) * int(lengths[picks].max()) for picks in batches)
    assert read <= 1.02 * int(lengths.sum())
    few = torch.tensor([6, 7, 8, 9, 10])
    (one, other) = prompt_sample._batches(few.argsort(stable=True), few)
    assert (len(one), len(other)) == (4, 1), "a few go together up to half as long again"


def test_features_are_spelt_once_for_each_pass(monkeypatch):
    """Where only features are asked for, no ids are worked out beside them."""
    pipe, spelt = pico_sd(), []
    plain = type(pipe).maybe_convert_prompt
    monkeypatch.setattr(
        type(pipe), "maybe_convert_prompt", lambda *given: spelt.append(given) or plain(*given)
    )
    found = text_features.site_features(pipe, PROMPTS)
    assert len(spelt) == 1
    assert torch.equal(found, encode(pipe, PROMPTS).hidden)


@pytest.mark.parametrize("count", [7, 12])
def test_principal_rows_hold_the_whole_moment(count):
    """From either side of the moment, whichever is the smaller."""
    rows = torch.randn(count, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    rows[-1] = rows[0] + rows[1]
    found = merge_inputs._principal(rows)
    assert len(found) == min(count - 1, 10)
    assert torch.allclose(found.T @ found, rows.T @ rows)
    inner = found @ found.T
    assert torch.allclose(inner, torch.diag(inner.diagonal()), atol=1e-9)


def test_each_prompt_of_a_concept_is_read_once(few, large, tmp_path):
    pipe = pico_sd()
    base = pipeline.of(pipe, "pico")
    concept = pico_concept(pipe)
    assert concept.rows is None
    with Registry(tmp_path) as registry:
        caption_statistics.statistics_of(base, registry)
        read = positions_read(pipe, lambda: compose(concept, base=base, registry=registry))
        assert 0 < read < 38 * text_features.token_ids(pipe, [""]).numel()
        assert positions_read(pipe, lambda: compose(concept, base=base, registry=registry)) == 0


def test_a_fingerprint_is_taken_again_when_a_weight_has_changed(monkeypatch):
    pipe, taken = pico_sd(), []
    plain = fingerprint._fingerprint
    monkeypatch.setattr(fingerprint, "_fingerprint", lambda *args: taken.append(args) or plain(*args))
    first = fingerprint.fingerprint_of(pipe)
    token = {"<x>": (torch.zeros(1, base_width(pipe)),)}
    with added_tokens.add_tokens(pipe, token):
        assert fingerprint.fingerprint_of(pipe) == first
    count = len(taken)
    assert fingerprint.fingerprint_of(pipe) is first and len(taken) == count
    for module in (pipe.text_encoder, pipe.unet):
        weight = next(
            p
            for name, p in module.named_parameters()
            if name.endswith(("q_proj.weight", "attn2.to_k.weight"))
        )
        kept = weight.data.clone()
        weight.data[0, 0] += 1  # past all counters of changes
        assert fingerprint.fingerprint_of(pipe) != first
        weight.data[:2] = kept[:2].flip(0)
        assert fingerprint.fingerprint_of(pipe) != first
        weight.data = kept
        assert fingerprint.fingerprint_of(pipe) == first


def base_width(pipe) -> int:
    return pipe.text_encoder.get_input_embeddings().weight.shape[1]
