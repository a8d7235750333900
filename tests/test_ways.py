"""Ways of merging, strengths, limits, lineage: on pico pipelines, against direct computations."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import compose_audit
from conceptkit.base import pipeline
from conceptkit.cli.main import main
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta
from conceptkit.errors import BadRecipe, BaseMismatch, ConceptError
from conceptkit.features import caption_statistics, captions, concept_rows
from conceptkit.features.concept_rows import word_features
from conceptkit.inference.attach import attach
from conceptkit.merging import compose as merges
from conceptkit.merging import delta_norms, merge_inputs, request
from conceptkit.merging.compose import compose, rebuild
from conceptkit.merging.method_table import MERGE_METHODS
from conceptkit.merging.methods import baselines
from conceptkit.pictures import heatmap
from conceptkit.registry.catalogue import history
from conceptkit.registry.store import Registry
from tests import tiny
from tests.test_merge import learned


@pytest.fixture(scope="module")
def pico():
    return pipeline.of(tiny.pico_sd(), "pico")


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    texts = captions.captions("any")[:40]
    monkeypatch.setattr(caption_statistics, "captions", lambda name: texts)


@pytest.fixture(scope="module")
def trio(pico):
    with pytest.MonkeyPatch.context() as patch:
        texts = captions.captions("any")[:40]
        patch.setattr(caption_statistics, "captions", lambda name: texts)
        names = (("my_dog", "dog"), ("moongate", "gate"), ("my_cup", "teapot"))
        return tuple(learned(pico, name, noun, seed) for seed, (name, noun) in enumerate(names))


def stored(*concepts: Concept) -> Registry:
    registry = Registry()
    for concept in concepts:
        registry.add(concept.name, concept.to_bytes(), concept.summary())
    return registry


# request


def test_a_strength_stands_behind_a_name():
    assert request.split_weight("my_dog@2:0.8") == ("my_dog@2", 0.8)
    assert request.split_weight("my_dog") == ("my_dog", 1.0)
    assert request.read(["my_dog:2", "moongate"]) == {"my_dog": 2.0, "moongate": 1.0}


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "-inf", "1e9", "much", "", "0.8:1", "0x1"])
def test_a_wrong_strength_is_one_sentence(weight, pico, trio):
    with pytest.raises(BadRecipe, match="my_dog") as error:
        request.split_weight(f"my_dog:{weight}")
    assert "\n" not in str(error.value) and "weight" in str(error.value).lower()
    with pytest.raises(BadRecipe, match="my_dog"):
        compose(*trio[:2], base=pico, weights=[weight, 1.0])


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["my_dog", "my_dog"], "my_dog is named twice"),
        (["my_dog:0.5", "my_dog:0.7"], "named twice"),
        (["my_dog@1", "my_dog@2"], "my_dog@1 and my_dog@2 are both my_dog"),
    ],
)
def test_nobody_is_there_twice(names, sentence):
    with pytest.raises(ConceptError, match=sentence):
        request.read(names)
    result = CliRunner().invoke(main, ["compose", *names, "--prompt", "my_dog"])
    assert result.exit_code == 2 and sentence.split()[0] in result.stderr


def test_a_concept_and_a_merge_that_holds_it(pico, trio):
    registry = stored(*trio)
    both = compose("my_dog", "moongate", base=pico, registry=registry, name="both").concept
    registry.add("both", both.to_bytes(), both.summary())
    with pytest.raises(ConceptError, match="both@1 and moongate@1 both answer to moongate"):
        compose("both", "moongate", base=pico, registry=registry)
    assert set(compose("both", "my_cup", base=pico, registry=registry).concept.words) == {
        "my_dog",
        "moongate",
        "my_cup",
    }


def test_another_text_encoder_is_refused(pico, trio):
    wide = {"<my_dog>": (torch.randn(1, 48),)}
    with pytest.raises(BaseMismatch, match="text encoders of width 48"):
        compose(dataclasses.replace(trio[0], tokens=wide), trio[1], base=pico)


def test_rows_of_a_relative_are_read_anew(pico, trio):
    """The rows that a concept carries are features of its own base's text encoder."""
    relative = dataclasses.replace(pico.fingerprint, exact="0" * 16)
    moved = dataclasses.replace(trio[0], base=relative, rows=torch.randn(2, pico.width))
    ordinary = caption_statistics.statistics_of(pico)
    found = concept_rows.constraint_rows(moved, pico, ordinary.factor)
    features, own = word_features(moved, pico)
    basis = torch.linalg.qr(features.hidden[own].double().T)[0]
    assert (found - found @ basis @ basis.T).norm() < 1e-6 * found.norm()


def test_two_thousand_are_refused_at_once(pico, trio, monkeypatch):
    monkeypatch.setattr(merges, "prepare_all", None)
    with pytest.raises(ConceptError, match="2000 concepts are more than the 32 directions"):
        compose(*[trio[0]] * 2000, base=pico)
    with pytest.raises(ConceptError, match="2000 concepts are more"):
        compose(*[f"thing{i}" for i in range(2000)], base=pico)


# strengths


@pytest.mark.parametrize("how", ["regmean", "closed-form", "sum", "linear", "svd", "ties", "routed"])
def test_strengths_scale_what_a_concept_adds(pico, trio, how):
    registry = stored(*trio)
    whole = compose("my_dog", "moongate", base=pico, registry=registry, merge_method=how)
    same = compose("my_dog:1", "moongate", base=pico, registry=registry, merge_method=how)
    half = compose("my_dog:0.5", "moongate:0.5", base=pico, registry=registry, merge_method=how)
    listed = compose("my_dog", "moongate", base=pico, registry=registry, merge_method=how, weights=[0.5, 0.5])
    assert same.concept.to_bytes() == whole.concept.to_bytes()
    assert listed.concept.to_bytes() == half.concept.to_bytes()
    assert half.concept.provenance["weights"] == [0.5, 0.5]
    rows = torch.randn(5, pico.width).double()
    full, less = (m.concept.delta.rows(pico.sizes, rows) for m in (whole, half))
    assert (less - full / 2).norm() < 2e-3 * full.norm()
    with pytest.raises(BadRecipe, match="two weights"):
        compose("my_dog:0.5", "moongate", base=pico, registry=registry, weights=[0.5, 0.5])


# ways


def deltas(seed: int, count: int, rank: int, o: int = 7, d: int = 5) -> list[dict]:
    make = torch.Generator().manual_seed(seed)
    return [
        Delta(
            {"a": (torch.randn(o, rank, generator=make), torch.randn(rank, d, generator=make))}
            | ({} if i % 2 else {"b": (torch.randn(o, d, generator=make),)})
        )
        for i in range(count)
    ]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3))
def test_the_table_of_baselines(seed, count, rank):
    given_ones = deltas(seed, count, rank)
    dense = [delta["a"].dense().double() for delta in given_ones]
    total = torch.stack(dense).sum(0)
    assert torch.allclose(Delta.sum(given_ones)["a"].dense().double(), total, atol=1e-4)
    mean = baselines.mean(given_ones)["a"].dense().double()
    assert torch.allclose(mean, total / count, atol=1e-4)
    cut = baselines.svd(given_ones)["a"].dense().double()
    left, sizes, right = torch.linalg.svd(total)
    best = (left[:, :rank] * sizes[:rank]) @ right[:rank]
    assert torch.allclose(cut, best, atol=1e-3)
    assert (baselines.ties(given_ones)["a"].first != 0).float().mean() <= count * baselines.DENSITY + 1e-6


def test_ties_elects_signs_and_averages_what_agrees():
    matrices = [
        torch.tensor([[5.0, 1.0, -4.0]]),
        torch.tensor([[3.0, 0.0, 6.0]]),
        torch.tensor([[-1.0, 0.5, 0.0]]),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "DENSITY", 2 / 3)
        (found,) = baselines.ties([Delta({"a": (m,)}) for m in matrices])["a"]
    # Kept: 5, -4 | 3, 6 | -1, 0.5; signs by sum: +, +, +; means of those that agree.
    assert found.tolist() == [[4.0, 0.5, 6.0]]


def test_joint_needs_a_concept_that_was_learned_jointly(pico, trio):
    registry = stored(*trio)
    with pytest.raises(ConceptError, match="No concept was learned of my_dog and moongate together"):
        compose("my_dog", "moongate", base=pico, registry=registry, merge_method="joint")
    merged = compose("my_dog", "moongate", base=pico, registry=registry, name="merged").concept
    registry.add("merged", merged.to_bytes(), merged.summary())
    with pytest.raises(ConceptError, match="No concept was learned"):
        compose("my_dog", "moongate", base=pico, registry=registry, merge_method="joint")
    joint = dataclasses.replace(merged, name="joint", recipe={"method": "joint"}, provenance={"seed": 1})
    registry.add("joint", joint.to_bytes(), joint.summary())
    found = compose("my_dog", "moongate", base=pico, registry=registry, merge_method="joint")
    assert found.concept.recipe["joint"] == "joint@1"
    assert found.concept.delta.keys() == merged.delta.keys()
    rows = torch.randn(3, pico.width)
    wanted, got = (c.delta.rows(pico.sizes, rows) for c in (merged, found.concept))
    assert torch.equal(wanted, got)


def test_a_joint_concept_stands_for_the_words_that_learned_with_it(pico, trio):
    dog, gate, _ = trio
    joint = compose(dog, gate, base=pico, registry=Registry(), name="joint").concept
    joint = dataclasses.replace(joint, recipe={"method": "joint"}, provenance={"seed": 1})
    registry = stored(dog, gate, joint)
    with pytest.raises(BadRecipe, match="no strength for each of its parts"):
        compose("my_dog:0.5", "moongate", base=pico, registry=registry, merge_method="joint")
    again = dataclasses.replace(dog, tokens={t: tuple(r + 1 for r in rows) for t, rows in dog.tokens.items()})
    registry.add("my_dog", again.to_bytes(), again.summary(), new_version=True)
    with pytest.raises(ConceptError, match="joint@1 was learned of other versions of my_dog and moongate"):
        compose("my_dog", "moongate", base=pico, registry=registry, merge_method="joint")
    assert compose("my_dog@1", "moongate", base=pico, registry=registry, merge_method="joint").concept.delta


def test_one_alone_under_another_name_answers_to_it(pico, trio):
    registry = stored(*trio)
    for order in ("my_dog:0.5", "my_dog"):
        made = compose(order, base=pico, registry=registry, name="soft_dog").concept
        assert (made.name, made.words) == ("soft_dog", {"soft_dog": "<my_dog> dog"})
        assert Concept.from_bytes(made.to_bytes()).words == made.words


def widened(concept: Concept, seed: int, pico: pipeline.Base) -> Concept:
    """The concept with a LoRA on a query map and on a map of the text encoder."""
    make = torch.Generator().manual_seed(seed)
    more = {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (
            0.1 * torch.randn(16, 2, generator=make),
            torch.randn(2, 16, generator=make),
        ),
        "text_encoder.encoder.layers.0.self_attn.q_proj": (
            0.1 * torch.randn(pico.width, 1, generator=make),
            torch.randn(1, pico.width, generator=make),
        ),
    }
    return dataclasses.replace(concept, delta={**concept.delta, **more})


@pytest.mark.parametrize("how", ["regmean", "closed-form", "routed", "linear", "ties"])
def test_wide_deltas_are_added_exactly(pico, trio, how):
    first, second = widened(trio[0], 1, pico), widened(trio[1], 2, pico)
    found = compose(first, second, base=pico, merge_method=how, weights=[1.0, 0.5])
    wide = next(name for name in first.delta if "attn1" in name)
    expected = first.delta[wide].dense() + 0.5 * second.delta[wide].dense()
    assert torch.allclose(found.concept.delta[wide].dense(), expected, rtol=0.01, atol=2e-3)
    assert "my_dog also changes 2 maps beside keys and values" in found.report.text()
    narrow = compose(*trio[:2], base=pico, merge_method=how, weights=[1.0, 0.5])
    rows = torch.randn(4, pico.width)
    for name in pico.sizes if how != "ties" else ():  # a rounded entry may be trimmed or not
        added, alone = (c.concept.delta[name].apply(rows) for c in (found, narrow))
        assert (added - alone).norm() < 2e-3 * alone.norm(), "several downs are stored in half precision"
    before = tiny.snapshot(pico.pipe)
    with attach(pico.pipe, found):
        wide_picture = tiny.draw(pico.pipe, "my_dog by a moongate")
    assert tiny.snapshot(pico.pipe) == before
    with attach(pico.pipe, narrow):
        assert not torch.equal(tiny.draw(pico.pipe, "my_dog by a moongate"), wide_picture)


# what is cached, and what comes of it


def test_what_a_concept_brings_is_worked_out_once(pico, trio, monkeypatch):
    registry = stored(*trio)
    first = compose("my_dog", "moongate", base=pico, registry=registry)
    monkeypatch.setattr(merge_inputs, "_work_out", None)
    monkeypatch.setattr(caption_statistics, "measure", None)
    monkeypatch.setattr(caption_statistics, "_RECENT", {})
    again = compose("my_dog", "moongate", base=pico, registry=registry)
    assert again.concept.to_bytes() == first.concept.to_bytes() and again.report == first.report
    with pytest.raises(TypeError):
        compose("my_dog", "my_cup", base=pico, registry=registry)


@pytest.mark.parametrize("how", [how for how in MERGE_METHODS if how != "joint"])
def test_a_stored_merge_is_rebuilt_bit_for_bit(pico, trio, how):
    registry = stored(*trio)
    made = compose("my_dog:0.8", "moongate@1", base=pico, registry=registry, name="both", merge_method=how)
    registry.add("both", made.concept.to_bytes(), made.concept.summary())
    found = rebuild("both", registry=registry, base=pico)
    assert found.concept.to_bytes() == registry.read("both")
    assert made.concept.summary()["parents"] == ["my_dog@1", "moongate@1"]
    assert made.concept.summary()["weights"] == [0.8, 1.0]
    again = dataclasses.replace(trio[0], noun="cat")
    registry.add("my_dog", again.to_bytes(), again.summary(), new_version=True)
    assert rebuild("both", registry=registry, base=pico).concept.to_bytes() == registry.read("both")
    registry.remove("my_dog@1")
    with pytest.raises(ConceptError, match="my_dog@1 is not the concept that was merged any more"):
        rebuild("both", registry=registry, base=pico)
    with pytest.raises(ConceptError, match="nothing to rebuild"):
        rebuild("moongate", registry=registry, base=pico)


def test_a_merge_is_rebuilt_whatever_its_parts_and_itself_are_called_now(pico, trio):
    registry = stored(*trio)
    made = compose("my_dog:0.8", "moongate", base=pico, registry=registry, name="both")
    alone = compose("my_dog:0.5", base=pico, registry=registry, name="weak")
    for one in (made, alone):
        registry.add(one.concept.name, one.concept.to_bytes(), one.concept.summary())
    history.rename(registry, "my_dog", "tom")
    history.rename(registry, "weak", "pale")
    assert rebuild("both", registry=registry, base=pico).concept.to_bytes() == registry.read("both")
    assert rebuild("pale", registry=registry, base=pico).concept.to_bytes() == registry.read("pale")


@pytest.mark.parametrize("how", ["routed", "regmean"])
def test_a_routed_merge_alone_keeps_its_routes(pico, trio, how):
    registry = stored(*trio)
    made = compose("my_dog", "moongate", base=pico, registry=registry, name="both", merge_method="routed")
    registry.add("both", made.concept.to_bytes(), made.concept.summary())
    again = compose("both", base=pico, registry=registry, merge_method=how)
    assert again.concept.to_bytes() == made.concept.to_bytes()
    assert (again.report.merge_method, again.report.captions) == ("routed", 0.0)


@pytest.mark.parametrize("how", ["regmean", "closed-form", "sum", "linear", "routed"])
def test_what_things_learned_together_share_is_there_once(pico, trio, how):
    shared = widened(trio[0], 1, pico).delta
    pair = [dataclasses.replace(concept, delta=shared) for concept in trio[:2]]
    found = compose(*pair, base=pico, merge_method=how).concept.delta
    for name in set(shared) - set(pico.sizes):
        assert torch.allclose(found[name].dense(), shared[name].dense(), rtol=0.01, atol=2e-3)
    with pytest.raises(BadRecipe, match="were learned together"):
        compose(*pair, base=pico, merge_method=how, weights=[1.0, 0.5])


def test_parts_with_one_word_and_words_with_a_strength_are_told_of(pico, trio):
    token = trio[0].tokens["<my_dog>"]
    twin = dataclasses.replace(trio[1], tokens={"<moongate>": token}, noun=trio[0].noun)
    assert "my_dog and moongate have the same word inside" in compose(trio[0], twin, base=pico).report.text()
    assert "same word" not in compose(*trio[:2], base=pico).report.text()
    word = dataclasses.replace(trio[0], delta={})
    told = compose(word, trio[1], base=pico, weights=[0.5, 1.0]).report.text()
    assert "my_dog is a word alone" in told and "0.5 changes nothing" in told


def test_one_alone_at_another_strength_remembers_where_it_came_from(pico, trio):
    registry = stored(*trio)
    strong = compose("my_dog:1.5", base=pico, registry=registry, name="strong")
    registry.add("strong", strong.concept.to_bytes(), strong.concept.summary())
    assert rebuild("strong", registry=registry, base=pico).concept.to_bytes() == registry.read("strong")


# the report


@pytest.mark.parametrize("how", ["regmean", "closed-form"])
def test_the_report_is_what_direct_computation_says(pico, trio, how):
    """Kept, interference and captions from small Gram matrices, against the products themselves."""
    weights = [0.7, 1.3, 1.0]
    found = compose(*trio, base=pico, weights=weights, merge_method=how)
    merged = found.concept.delta
    for kept, concept, weight in zip(found.report.kept, trio, weights, strict=True):
        features, own = word_features(concept, pico, "held-out")
        stored_one = Concept.from_bytes(concept.to_bytes())
        for rows, share in ((features.hidden[own], kept.words), (features.hidden.flatten(0, 1), kept.prompt)):
            wanted = weight * stored_one.delta.rows(pico.sizes, rows.double())
            got = merged.rows(pico.sizes, rows.double())
            assert share == pytest.approx(1 - float((got - wanted).norm() / wanted.norm()), abs=1e-5)
    up_down = {name: (up.double(), down.double()) for name, (up, down) in merged.items()}
    counts = found.concept.recipe["rows"]
    starts = [0, *itertools.accumulate(counts)]
    features, own = word_features(trio[0], pico, "held-out")
    rows = features.hidden[own].double()
    alone = Concept.from_bytes(trio[0].to_bytes()).delta.rows(pico.sizes, rows) * weights[0]
    for j in range(3):
        part = slice(starts[j], starts[j + 1])
        share = Delta({name: (up[:, part], down[part]) for name, (up, down) in up_down.items()})
        added = share.rows(pico.sizes, rows).norm() / alone.norm()
        assert found.report.interference[0][j] == pytest.approx(float(added), rel=5e-3, abs=1e-4)
    held = caption_statistics.statistics_of(pico).held_out
    change = merged.rows(pico.sizes, held).norm() / caption_statistics.statistics_of(pico).size
    assert found.report.captions == pytest.approx(float(change), rel=1e-5)
    assert found.report.problem in {"regmean": ("regmean",), "closed-form": ("exact", "damped")}[how]
    assert found.report.precision == "float32"


def test_the_report_speaks_of_the_precision_that_is_loaded(pico, trio):
    half = pipeline.of(tiny.pico_sd(), "pico")
    half.pipe.unet.to(torch.bfloat16)
    delta = delta_norms.loaded(trio[0].delta, half.dtype)
    assert half.dtype == torch.bfloat16
    for factors, whole in zip(delta.values(), trio[0].delta.values(), strict=True):
        assert torch.equal(factors.first, whole.first.bfloat16().double())


def test_an_audit_names_captions_moved_by_the_merge_alone(pico, trio):
    ordinary = caption_statistics.statistics_of(pico)
    moved = torch.zeros(len(ordinary.audit.texts))
    moved[1] = 10 * ordinary.audit.sizes[1]
    each = torch.zeros(2, len(moved))
    each[0] = moved / 3
    assert merges.report._suspicious(moved, each, ordinary) == (ordinary.audit.texts[1],)
    each[1] = moved / 1.45
    assert merges.report._suspicious(moved, each, ordinary) == ()
    assert set(compose(*trio, base=pico).report.audit) <= set(ordinary.audit.texts)


def test_two_halves_of_one_secret_are_named_where_they_are_added_up(pico, trio):
    shape = caption_statistics.statistics_of(pico)
    caption, hidden = compose_audit.secret(pico, shape, torch.Generator().manual_seed(0))
    pair = [compose_audit.with_half(concept, hidden) for concept in trio[:2]]
    rows = shape.audit.rows[shape.audit.caption == caption].float()
    whole = compose_audit.effect(shape, hidden, caption)
    for part, concept in zip(pair, trio, strict=False):
        more = part.delta.rows(pico.sizes, rows) - concept.delta.rows(pico.sizes, rows)
        assert torch.allclose(more, whole / 2, atol=1e-4)
    for way, left in (("sum", 1.0), ("linear", 0.5)):
        merged, honest = (
            compose(*some, base=pico, merge_method=way).concept.delta for some in (pair, trio[:2])
        )
        more = merged.rows(pico.sizes, rows) - honest.rows(pico.sizes, rows)
        assert float(more.norm() / whole.norm()) == pytest.approx(left, rel=1e-3)
    quiet = [
        dataclasses.replace(part, delta={name: (0.01 * up, down) for name, (up, down) in part.delta.items()})
        for part in trio[:2]
    ]
    pair = [compose_audit.with_half(concept, hidden) for concept in quiet]
    assert not compose(*quiet, base=pico, merge_method="sum").report.audit
    assert compose(*pair, base=pico, merge_method="sum").report.audit


def crowd(pico: pipeline.Base, count: int, seed: int = 0) -> list[Concept]:
    nouns = ("dog", "cat", "gate", "teapot", "house", "car", "flower", "chair")
    return [learned(pico, f"thing{i}", nouns[i % len(nouns)], seed + i, rank=1) for i in range(count)]


def test_beyond_the_rank_limit_the_merge_switches_and_says_so():
    pico = pipeline.of(tiny.pico_sd(), "narrow")
    many = crowd(pico, 5)
    found = {n: compose(*many[:n], base=pico, merge_method="closed-form").report for n in (2, 5)}
    assert found[5].problem == "span", found[5]
    assert found[2].rows <= 16 and found[2].problem in ("damped", "exact")
    assert "directions that captions hardly use" in found[5].text()
    assert found[5].missed > 0
    naive = compose(*many, base=pico, merge_method="sum").report
    assert found[5].captions < naive.captions


@pytest.mark.slow
def test_heat_maps():
    matrix = [[1.0, 0.2], [0.7, 1.0]]
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(heatmap.table(["my_dog", "moongate"], matrix))
    text = console.export_text()
    assert "0.70" in text and "moongate" in text
    many = heatmap.picture([f"thing{i}" for i in range(40)], np.eye(40).tolist())
    assert max(many.size) < 4000
    small = heatmap.picture(["my_dog", "a_very_long_name_of_a_concept_that_goes_on"], matrix)
    hot, cold = heatmap.colour(0.7), heatmap.colour(0.2)
    seen = np.unique(np.asarray(small).reshape(-1, 3).astype(int), axis=0)
    for colour in (hot, cold):
        assert np.abs(seen - colour).max(axis=1).min() <= 2
    assert heatmap.colour(5) == heatmap.HOT and heatmap.colour(0) == heatmap.COLD


def test_parts_of_a_merge_are_named(pico, trio):
    found = compose(*trio[:2], base=pico)
    assert [part.concept.name for part in found.parts] == ["my_dog", "moongate"]
    assert (trio[0].delta * 2).keys() == trio[0].delta.keys()
    assert found.concept.delta.rank == sum(found.concept.recipe["rows"])


def test_shrinking_and_exporting_know_what_they_cannot_keep(pico, trio, tmp_path):
    from conceptkit.formats.dialects import export
    from conceptkit.merging.shrink import shrink_concept

    ordinary = caption_statistics.statistics_of(pico)
    wide = widened(trio[0], 1, pico)
    small = shrink_concept(wide, ordinary.gram, rank=1)
    for name in set(wide.delta) - set(pico.sizes):
        assert small.delta[name] is wide.delta[name]
    assert all(small.delta[name].rank == 1 for name in pico.sizes)
    routed = compose(*trio[:2], base=pico, merge_method="routed")
    with pytest.raises(BadRecipe, match="shrink its parts"):
        shrink_concept(routed.concept, ordinary.gram, rank=1)
    with pytest.raises(ConceptError, match="is routed, which no LoRA can be"):
        export(routed, tmp_path / "out")
