"""Merging on pico pipelines: exact where it must be, gentle elsewhere, and honest in its report."""

import dataclasses
import json

import pytest
import torch

from conceptkit.base import attention, pipeline, text_features
from conceptkit.base.text_features import END, positions
from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadRecipe, BaseMismatch, ConceptError, UnknownConcept
from conceptkit.features import caption_statistics, captions
from conceptkit.features.closed_form import factor
from conceptkit.features.concept_rows import constraint_rows, word_features
from conceptkit.features.prompt_templates import context_prompts
from conceptkit.merging.compose import compose
from conceptkit.merging.shrink import shrink_concept
from conceptkit.registry.store import Registry
from tests import tiny


@pytest.fixture(scope="module", params=[tiny.pico_sd, tiny.pico_sdxl], ids=["sd", "sdxl"])
def pico(request) -> pipeline.Base:
    return pipeline.of(request.param())


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    texts = captions.captions("any")[:60]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: texts)


def learned(
    pico: pipeline.Base, name: str, noun: str, seed: int, rank: int = 2, vectors: int = 1, free: bool = False
) -> Concept:
    """A concept D = B A that listens to its own words, as a learned one should; to anything, when `free`."""
    make = torch.Generator().manual_seed(seed)
    widths = [encoder.config.hidden_size for _, encoder in pico.encoders]
    bare = Concept(
        name=name,
        kind="subject",
        noun=noun,
        base=pico.fingerprint,
        base_name=pico.name,
        tokens={f"<{name}>": tuple(torch.randn(vectors, width, generator=make) for width in widths)},
        words={name: f"<{name}> {noun}"},
        delta={},
        recipe={"method": "test"},
        provenance={"seed": seed},
    )
    shape = factor(caption_statistics.statistics_of(pico).gram)
    rows = constraint_rows(bare, pico, shape)
    down = torch.randn(rank, pico.width, generator=make) if free else shape.solve(rows[:rank]).float()
    down = down / down.norm()
    delta = {map: (torch.randn(o, rank, generator=make), down) for map, o in pico.sizes.items()}
    return dataclasses.replace(bare, delta=delta, rows=rows)


@pytest.fixture(scope="module")
def pair(pico):
    with pytest.MonkeyPatch.context() as patch:
        texts = captions.captions("any")[:60]
        patch.setattr(caption_statistics, "captions", lambda name: texts)
        return learned(pico, "my_dog", "dog", 1), learned(pico, "moongate", "gate", 2, vectors=2)


def test_a_merge_is_a_low_rank_concept_with_one_down(pico, pair):
    merge = compose(*pair, base=pico)
    concept = merge.concept
    assert (concept.kind, concept.name, concept.noun) == ("merge", "my_dog-moongate", None)
    assert set(concept.tokens) == {"<my_dog>", "<moongate>"}
    assert concept.words == {"my_dog": "<my_dog> dog", "moongate": "<moongate> gate"}
    assert list(concept.delta) == sorted(pico.sizes)
    assert len(concept.delta.downs) == 1
    assert concept.delta.rank == sum(concept.recipe["rows"])
    assert 0 < merge.report.rows < pico.width
    exact = compose(*pair, base=pico, merge_method="closed-form")
    assert exact.concept.delta.rank == exact.report.rows == len(exact.concept.rows)
    assert concept.provenance["parents"] == ["my_dog", "moongate"]
    assert concept.base == pico.fingerprint
    assert Concept.from_bytes(concept.to_bytes()).to_bytes() == concept.to_bytes()
    assert compose(*pair, base=pico).concept.to_bytes() == concept.to_bytes()


def test_constraints_hold_and_side_effects_are_less_than_of_a_sum():
    pico = pipeline.of(tiny.pico_sd(d=96))
    pair = learned(pico, "my_dog", "dog", 1, free=True), learned(pico, "moongate", "gate", 2, free=True)
    closed, added = (compose(*pair, base=pico, merge_method=how) for how in ("closed-form", "sum"))
    for part in pair:
        rows = part.rows.double()
        wanted = part.delta.rows(pico.sizes, rows)
        found = closed.concept.delta.rows(pico.sizes, rows)
        assert (found - wanted).norm() < 0.01 * wanted.norm()
    assert closed.report.captions < added.report.captions
    for constrained, naive in zip(closed.report.kept, added.report.kept, strict=True):
        assert constrained.words > naive.words
    assert added.report.merge_method == "sum"


def test_the_sum_is_the_sum(pico, pair):
    added = compose(*pair, base=pico, merge_method="sum", weights=[1.0, 0.5]).concept
    rows = torch.randn(3, pico.width)
    for name, factors in added.delta.items():
        expected = pair[0].delta[name].apply(rows) + 0.5 * pair[1].delta[name].apply(rows)
        assert torch.allclose(
            factors.apply(rows), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())
        )


def test_one_alone_is_itself(pico, pair):
    merge = compose(pair[0], base=pico)
    assert merge.concept.to_bytes() == pair[0].to_bytes()
    (kept,) = merge.report.kept
    assert (kept.words, kept.prompt) == (1.0, 1.0)
    assert compose(pair[0], base=pico, name="other").concept.name == "other"
    half = compose(pair[0], base=pico, weights=[0.5]).concept.delta
    name = next(iter(half))
    assert torch.allclose(half[name].first, pair[0].delta[name].first / 2, rtol=2e-3)


def test_two_of_one_class_give_way_evenly(pico, pair):
    """The same token rows under two names: no merge can serve both, and none comes first."""
    twin = dataclasses.replace(
        pair[0],
        name="twin",
        tokens={"<twin>": pair[0].tokens["<my_dog>"]},
        words={"twin": "<twin> dog"},
        delta={name: (-up.flip(0), down) for name, (up, down) in pair[0].delta.items()},
    )
    orders = (pair[0], twin), (twin, pair[0])
    one, other = (compose(*order, base=pico, merge_method="closed-form") for order in orders)
    assert 0 < one.report.missed < 1
    assert "nearly coincide" in one.report.text()
    first = {kept.name: kept.words for kept in one.report.kept}
    second = {kept.name: kept.words for kept in other.report.kept}
    assert first == pytest.approx(second, abs=0.01)
    assert first["my_dog"] == pytest.approx(first["twin"], abs=0.15)
    one, other = (compose(*order, base=pico, merge_method="regmean").report for order in orders)
    first, second = ({kept.name: kept.words for kept in report.kept} for report in (one, other))
    assert first == pytest.approx(second, abs=0.01)
    assert first["my_dog"] == pytest.approx(first["twin"], abs=0.15)


def test_composing_leaves_the_pipeline_alone(pico, pair):
    length, table = len(pico.pipe.tokenizer), pico.pipe.text_encoder.get_input_embeddings().weight.clone()
    compose(*pair, base=pico)
    assert len(pico.pipe.tokenizer) == length
    assert torch.equal(pico.pipe.text_encoder.get_input_embeddings().weight, table)


def test_names_are_read_from_the_registry_and_the_metric_is_kept_there(pico, pair, monkeypatch):
    registry = Registry()
    for concept in pair:
        registry.add(concept.name, concept.to_bytes(), concept.summary())
    first = compose("my_dog", "moongate@1", base=pico, registry=registry)
    monkeypatch.setattr(caption_statistics, "measure", None)
    monkeypatch.setattr(caption_statistics, "_RECENT", {})
    second = compose("my_dog", "moongate", base=pico, registry=registry)
    assert second.concept.to_bytes() == first.concept.to_bytes()
    assert first.concept.provenance["parents"] == ["my_dog@1", "moongate@1"]
    assert first.concept.summary()["parents"] == ["my_dog@1", "moongate@1"]
    with pytest.raises(UnknownConcept, match="moongate"):
        compose("my_dog", "mongate", base=pico, registry=registry)


def test_a_merge_can_be_composed_again(pico, pair):
    merged = compose(*pair, base=pico)
    third = learned(pico, "my_cat", "cat", 3)
    again = compose(merged, third, base=pico)
    assert set(again.concept.words) == {"my_dog", "moongate", "my_cat"}
    assert [kept.name for kept in again.report.kept] == ["my_dog-moongate", "my_cat"]


def test_a_concept_of_tokens_alone_is_protected_from_the_other(pico, pair):
    bare = dataclasses.replace(pair[1], delta={})
    for how, most in (("closed-form", 0.05), ("regmean", 0.1)):
        merge = compose(pair[0], bare, base=pico, merge_method=how)
        assert merge.report.kept[1].words is None
        leak = merge.concept.delta.rows(pico.sizes, bare.rows)
        assert leak.norm() < most * pair[0].delta.rows(pico.sizes, pair[0].rows).norm()
    both = compose(dataclasses.replace(pair[0], delta={}), bare, base=pico)
    assert both.concept.delta == {}
    assert both.report.captions == 0


def test_maps_that_no_concept_changes_stay_out(pico, pair):
    values = [
        dataclasses.replace(part, delta={name: f for name, f in part.delta.items() if name.endswith("to_v")})
        for part in pair
    ]
    assert all(name.endswith("to_v") for name in compose(*values, base=pico).concept.delta)


def test_a_full_matrix_is_composed_like_its_factors(pico, pair):
    full = dataclasses.replace(
        pair[0], delta={name: (up @ down,) for name, (up, down) in pair[0].delta.items()}
    )
    one, other = (compose(part, pair[1], base=pico).concept for part in (full, pair[0]))
    rows = torch.randn(4, pico.width)
    for name in pico.sizes:
        assert torch.allclose(
            one.delta[name].apply(rows), other.delta[name].apply(rows), rtol=0.02, atol=0.02
        )
    assert compose(full, pair[1], base=pico, merge_method="sum").concept.delta.keys() == pair[0].delta.keys()


def test_the_report_speaks_and_is_json(pico, pair):
    report = compose(*pair, base=pico).report
    lines = report.text().splitlines()
    assert lines[0].startswith("my_dog keeps ")
    assert lines[2].startswith("captions without a concept change by ")
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["kept"][0]["name"] == "my_dog"


def test_what_cannot_be_composed_is_one_sentence(pico, pair):
    with pytest.raises(BadRecipe, match="'blend'"):
        compose(*pair, base=pico, merge_method="blend")
    with pytest.raises(BadRecipe, match="2 concepts need as many weights"):
        compose(*pair, base=pico, weights=[1])
    with pytest.raises(ConceptError, match="my_dog is named twice"):
        compose(pair[0], pair[0], base=pico)
    with pytest.raises(ConceptError, match="nothing to compose"):
        compose(base=pico)
    elsewhere = pipeline.of(tiny.pico_sd(d=48), "elsewhere")
    with pytest.raises(BaseMismatch, match="elsewhere"):
        compose(*pair, base=elsewhere)


def test_fit_and_held_out_prompts_share_none(pair):
    fit, held_out = (context_prompts(pair[0], split) for split in ("fit", "held-out"))
    assert len(fit) >= 24
    assert not set(fit) & set(held_out)
    assert all("<my_dog> dog" in prompt for prompt in fit + held_out)


def test_own_words_are_found_where_they_stand(pico, pair):
    features, own = word_features(pair[1], pico)
    assert own.sum(dim=1).min() >= 3, "two vectors and a noun"
    assert not own[:, 0].any()
    ids = torch.tensor([[9, 1, 2, 3, 1, 2], [1, 2, 9, 9, 2, 1]])
    assert positions(ids, (torch.tensor([1, 2]),)).int().tolist() == [[0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0]]
    assert features.hidden.shape[-1] == pico.width


def test_the_metric_weighs_what_attention_reads(pico):
    features = text_features.encode(pico.pipe, ["a dog", ""])
    weights = caption_statistics.position_weights(features)
    end = int((features.roles[0] == END).int().argmax())
    assert weights[0, 0] == caption_statistics.BOS_WEIGHT
    assert (weights[0, 1 : end + 1] == caption_statistics.WORD_WEIGHT).all()
    assert (weights[0, end + 1 :] == caption_statistics.PADDING_WEIGHT).all()
    assert weights[1, 1] == caption_statistics.WORD_WEIGHT


def test_held_out_features_measure_what_the_captions_would(pico, pair):
    texts = captions.captions("any")[:20]
    ordinary = caption_statistics.measure(pico, texts)
    hidden = text_features.encode(pico.pipe, [texts[9], texts[19]]).hidden.flatten(0, 1)
    delta = pair[0].delta
    maps = attention.kv_maps(pico.unet).values()
    read = torch.cat([hidden @ linear.weight.detach().T for linear in maps], dim=1)
    direct = delta.rows(pico.sizes, hidden).norm() / read.norm()
    short = delta.rows(pico.sizes, ordinary.held_out).norm() / ordinary.size
    assert float(short) == pytest.approx(float(direct), rel=1e-3)


def test_shrinking_keeps_what_the_features_excite(pico, pair):
    ordinary = caption_statistics.statistics_of(pico)
    whole = compose(*pair, base=pico).concept
    exact = shrink_concept(whole, ordinary.gram, energy=1.0)
    rows = torch.randn(5, pico.width).double()
    wanted = whole.delta.rows(pico.sizes, rows)
    assert (exact.delta.rows(pico.sizes, rows) - wanted).norm() < 1e-3 * wanted.norm()
    small = shrink_concept(whole, ordinary.gram, rank=2)
    assert small.delta.rank == 2
    assert len(small.to_bytes()) < len(whole.to_bytes())
    assert len(small.delta.downs) == 1
    assert small.provenance["parents"] == whole.provenance["parents"]
    with pytest.raises(BadRecipe, match="rank"):
        shrink_concept(whole, ordinary.gram)
    with pytest.raises(BadRecipe, match="0"):
        shrink_concept(whole, ordinary.gram, rank=0)
