"""A stored concept becomes smaller, as its next version: cut to a rank, or rounded."""

import json
import re
from dataclasses import replace

import pytest
import torch

import conceptkit as ck
from conceptkit.base import pipeline
from conceptkit.compression import sensitivity
from conceptkit.compression import sizes as sizes_module
from conceptkit.compression.quantizer import Quantizer, low_rank
from conceptkit.compression.rounding import Metric, rounded
from conceptkit.compression.sizes import SizeRequest
from conceptkit.concepts.codec import compact, symbols
from conceptkit.concepts.concept import Concept, read
from conceptkit.concepts.gates import rank_gates
from conceptkit.errors import BadRecipe, ConceptError, NoEffect, UnknownConcept
from conceptkit.merging.compose import compose, rebuild
from conceptkit.registry import store
from conceptkit.registry.catalogue import lineage
from conceptkit.workflows import add
from conceptkit.workflows.shrink import shrink_to
from tests import tiny
from tests.blobs import PNG
from tests.commands import run

pytestmark = pytest.mark.usefixtures("few_captions")


@pytest.fixture(scope="module")
def pico():
    return pipeline.of(tiny.pico_sd(), "pico")


@pytest.fixture
def kept(pico, registry):
    for name, noun in (("my_dog", "dog"), ("moongate", "gate")):
        concept = tiny.pico_concept(pico.pipe, name, noun, rank=4)
        registry.add(name, concept.to_bytes(), concept.summary())
    return registry


def test_a_concept_is_shrunk_as_its_next_version(pico, kept):
    kept.set_preview("my_dog", 1, PNG)
    before = kept.get("my_dog")
    entry = ck.shrink("my_dog", rank=2, base=pico, registry=kept)
    assert kept.preview(entry) == kept.preview("my_dog@2") == PNG  # it is the same concept
    assert entry.ref == "my_dog@2" and entry.bytes < before.bytes
    small = read(kept, "my_dog")
    assert small.delta.rank == 2 and small.recipe["shrunk"]["rank"] == 2
    assert small.provenance["parents"] == ["my_dog@1"] and small.provenance["parent_sha256"] == [before.hash]
    assert lineage.holder(kept, before.hash) == before
    half = ck.shrink("moongate", energy=0.5, base=pico, registry=kept)
    assert 1 <= read(kept, half.ref).delta.rank < 4
    assert compose("my_dog", "moongate", base=pico, registry=kept).concept.delta
    with pytest.raises(ConceptError, match="was shrunk, not merged; shrink my_dog@1 again"):
        rebuild("my_dog", registry=kept, base=pico)


def test_a_value_is_stored_under_its_name(pico, registry):
    concept = tiny.pico_concept(pico.pipe, rank=3)
    assert ck.shrink(concept, rank=1, base=pico, registry=registry).ref == "my_dog@1"


def test_a_joint_concept_that_was_shrunk_stays_joint(pico, kept):
    joint = compose("my_dog", "moongate", base=pico, registry=kept, name="both").concept
    fields = {**vars(joint), "recipe": {"joint": True}, "provenance": {"seed": 1}}
    joint = Concept(**{name: fields[name] for name in Concept.__dataclass_fields__})
    kept.add("both", joint.to_bytes(), joint.summary())
    ck.shrink("both", rank=2, base=pico, registry=kept)
    found = compose("my_dog", "moongate", base=pico, registry=kept, merge_method="joint")
    assert found.concept.recipe["joint"] == "both@2" and found.concept.delta.rank == 2


@pytest.mark.parametrize(
    ("size", "error", "said"),
    [
        ({}, BadRecipe, "either the rank or the energy"),
        ({"rank": 0}, BadRecipe, "rank 0; give 1 or more"),
        ({"energy": 2.0}, BadRecipe, "energy 2.0; give one above 0"),
        ({"rank": 9}, NoEffect, "my_dog@1 would be no smaller: its rank is 4"),
    ],
)
def test_what_makes_no_sense_stores_nothing(pico, kept, size, error, said):
    with pytest.raises(error, match=said):
        ck.shrink("my_dog", base=pico, registry=kept, **size)
    with pytest.raises(UnknownConcept):
        ck.shrink("nobody", rank=1, base=pico, registry=kept)
    assert len(kept.versions("my_dog")) == 1


def test_a_registry_of_its_own_is_closed_again(pico, kept, monkeypatch):
    closed = []
    real = store.Registry.close
    monkeypatch.setattr(store.Registry, "close", lambda self: (closed.append(self), real(self)))
    compose(tiny.pico_concept(pico.pipe), base=pico)
    assert len(closed) == 1
    ck.shrink("my_dog", rank=1, base=pico)
    assert len(closed) == 2
    made = compose("my_dog@1", "moongate", base=pico, registry=kept)
    kept.add("both", made.concept.to_bytes(), made.concept.summary())
    assert len(closed) == 2, "a registry that was given stays open"
    rebuild("both", base=pico)
    assert len(closed) == 3
    with pytest.raises(UnknownConcept):
        compose("nobody", base=pico)
    assert len(closed) == 4


@pytest.fixture(scope="module")
def few_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "PICTURES", 8)
        patch.setattr(sensitivity, "DRAWING_STEPS", 2)
        yield


def wide(pico, name="my_dog", noun="dog", **options) -> Concept:
    """A concept with a LoRA on self-attention beside keys and values."""
    concept = tiny.pico_concept(pico.pipe, name, noun, rank=3, vectors=2, **options)
    make = torch.Generator().manual_seed(7)
    modules = dict(pico.unet.named_modules())
    names = [n for n in modules if n.endswith(("attn1.to_q", "attn1.to_v"))]
    more = {
        n: (0.3 * torch.randn(len(w), 2, generator=make), torch.randn(2, w.shape[1], generator=make) / 6)
        for n in names
        for w in [modules[n].weight]
    }
    recipe = {**concept.recipe, "gated_lora_rank": 2}
    return replace(concept, delta=concept.delta | more, recipe=recipe)


def test_sizes_go_from_a_good_file_to_a_small_one(pico, registry, few_pictures):
    concept = wide(pico)
    registry.add("my_dog", concept.to_bytes(), concept.summary())
    before = registry.get("my_dog")
    made = [
        shrink_to("my_dog@1", SizeRequest(keep=keep), base=pico, registry=registry) for keep in (0.999, 0.9)
    ]
    sizes = [before.bytes, *(one.entry.bytes for one in made)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0] / 5
    for one, keep in zip(made, (0.999, 0.9), strict=True):
        stored = read(registry, one.entry.ref)
        assert one.kept >= keep and stored.recipe["shrunk"]["kept"] == round(one.kept, 4)
        assert stored.provenance["parent_sha256"] == [before.hash] and stored.rows is None
        assert stored.to_bytes() == registry.read(one.entry.ref)
        assert one.entry.summary["bits"]["other maps"][0] > 0
        whole = read(registry, "my_dog@1")  # in half precision, as it is stored
        asked = sensitivity.probes(pico, whole, seed=sizes_module.HELD_OUT_SEED)
        assert sensitivity.kept(pico, stored, asked) == pytest.approx(one.kept, abs=1e-5)
    again = shrink_to("my_dog@1", SizeRequest(keep=0.9), base=pico, registry=registry)
    assert again.entry.hash == made[1].entry.hash, "the same concept, the same bytes"


def test_tiny_is_smaller_than_small_and_both_keep_their_share(pico, few_pictures):
    concept = wide(pico)
    small, least = (sizes_module.compress(concept, pico, SizeRequest(size)) for size in ("small", "tiny"))
    assert least.bytes < small.bytes < len(concept.to_bytes())
    assert small.kept >= sizes_module.PRESETS["small"] and least.kept >= sizes_module.PRESETS["tiny"]


def test_errors_in_the_metric_cost_less_than_plain_rounding_of_equal_size(pico, few_pictures):
    concept = low_rank(wide(pico))
    asked = sensitivity.probes(pico, concept)
    quantizer = Quantizer(concept, sensitivity.measure(pico, concept, asked))
    held_out = sensitivity.probes(pico, concept, seed=5)
    ours = sizes_module.with_numbers(concept, quantizer.at(0.05))
    layout = compact.Layout.of(concept.delta, concept.tokens)
    rows = [row for shape in layout.downs() for row in concept.delta[shape.name].down]
    rows += [column for shape in layout.maps for column in concept.delta[shape.name].first.T]
    rows += [row for parts in concept.tokens.values() for part in parts for row in part]
    for exponent in range(-40, 0):
        step = symbols.worth(exponent)
        plain = compact.coded(
            layout, [symbols.Vector((r / step).round().long().numpy(), exponent) for r in rows]
        )
        if len(plain.numbers) <= len(ours.coded.numbers):
            break
    plainly = sizes_module.with_numbers(concept, plain)
    lost, plainly_lost = (1 - sensitivity.kept(pico, one, held_out) for one in (ours, plainly))
    assert lost < plainly_lost


def test_a_wish_in_bytes_is_met_or_says_what_can_be(pico, kept, few_pictures):
    made = shrink_to("my_dog", SizeRequest(bytes="1.5 kB"), base=pico, registry=kept)
    assert made.entry.bytes <= 1500 and 0 < made.kept < 1
    with pytest.raises(
        BadRecipe, match=r"cannot be stored in 100 bytes: what it says of itself takes [\d,]+"
    ):
        shrink_to("moongate", SizeRequest(bytes=100), base=pico, registry=kept)
    with pytest.raises(BadRecipe, match=r"keeps at most 9\d\.\d\d% of its effect"):
        shrink_to("moongate", SizeRequest(keep=1 - 1e-12), base=pico, registry=kept)
    with pytest.raises(NoEffect, match="would be no smaller: it takes"):
        shrink_to("my_dog", SizeRequest(bytes="1 MB"), base=pico, registry=kept)
    assert len(kept.versions("moongate")) == 1 and len(kept.versions("my_dog")) == 2


@pytest.mark.slow
def test_what_was_made_smaller_before_is_made_from_what_was_learned(pico, kept, few_pictures):
    first = shrink_to("my_dog", SizeRequest(keep=0.99), base=pico, registry=kept)
    second = shrink_to("my_dog", SizeRequest(keep=0.8), base=pico, registry=kept)
    assert second.notice.startswith("my_dog@2 was made smaller before, so my_dog@1 was taken; it now keeps")
    assert second.concept.provenance["parents"] == ["my_dog@1"]
    kept.remove("my_dog@1")
    kept.remove("my_dog@3")
    third = shrink_to("my_dog", SizeRequest(keep=0.8), base=pico, registry=kept)
    assert "what was learned is not stored here" in third.notice
    assert third.concept.recipe["shrunk"]["kept"] == pytest.approx(first.kept * third.kept, abs=2e-4)


@pytest.mark.slow
def test_merges_shrink_and_keep_whose_ranks_are_whose(pico, kept, few_pictures):
    for name, noun in (("rex", "cat"), ("rug", "house")):
        concept = wide(pico, name, noun, seed=len(name) + len(noun))
        kept.add(name, concept.to_bytes(), concept.summary())
    made = compose("rex", "rug", base=pico, registry=kept, name="both").concept
    kept.add("both", made.to_bytes(), made.summary())
    assert rank_gates(made)
    small = shrink_to("both", SizeRequest(keep=0.95), base=pico, registry=kept)
    assert small.kept >= 0.95 and small.entry.bytes < len(made.to_bytes()) / 3
    stored = read(kept, "both")
    assert rank_gates(stored) == rank_gates(made) and stored.words == made.words
    routed = compose("rex", "rug", base=pico, registry=kept, name="ways", merge_method="routed").concept
    kept.add("ways", routed.to_bytes(), routed.summary())
    shrink_to("ways", SizeRequest(keep=0.95), base=pico, registry=kept)
    assert read(kept, "ways").routing == routed.routing


def test_small_concepts_compose_by_rows_that_are_found_again(pico, kept, few_pictures):
    shrink_to("my_dog", SizeRequest(keep=0.99), base=pico, registry=kept)
    merged = compose("my_dog", "moongate", base=pico, registry=kept)
    assert merged.concept.delta and merged.report


def test_full_matrices_are_rounded_as_their_principal_ranks(pico, registry, few_pictures):
    concept = tiny.pico_concept(pico.pipe, rank=0, size=0.1)
    small = shrink_to(concept, SizeRequest(keep=0.9), base=pico, registry=registry)
    assert small.kept >= 0.9 and all(f.down is not None for f in small.concept.delta.values())


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({}, "Give one of a size"),
        ({"size": "huge"}, "no size 'huge'; choose of tiny, small, full"),
        ({"size": "tiny", "keep": 0.5}, "Give one of a size"),
        ({"keep": 1.5}, "keep 1.5 of its effect"),
        ({"bytes": "8 parsecs"}, "'8 parsecs' is no number of bytes"),
        ({"bytes": "0"}, "'0' is no number of bytes"),
    ],
)
def test_sizes_that_make_no_sense(wish, said):
    with pytest.raises(BadRecipe, match=said):
        SizeRequest(**wish)


def test_full_keeps_every_number(pico):
    with pytest.raises(BadRecipe, match="keeps every number"):
        sizes_module.compress(tiny.pico_concept(pico.pipe), pico, SizeRequest("full"))


def test_measuring_leaves_the_base_as_it_was(pico, few_pictures):
    before = tiny.state_hash(pico.unet), [p.requires_grad for p in pico.unet.parameters()]
    concept = low_rank(wide(pico))
    sensitivity.measure(pico, concept, sensitivity.probes(pico, concept))
    assert (tiny.state_hash(pico.unet), [p.requires_grad for p in pico.unet.parameters()]) == before
    assert all(p.grad is None for p in pico.unet.parameters())


def test_the_command_says_what_it_came_to(pico, few_pictures, tmp_path, monkeypatch):
    folder = tiny.save(pico.pipe, tmp_path / "base")
    concept = wide(pico)
    monkeypatch.setenv("CONCEPTKIT_HOME", str(tmp_path / "home"))
    with store.Registry() as registry:
        registry.add("my_dog", concept.to_bytes(), concept.summary())
    said = run("shrink", "my_dog", "--keep", "0.9", "--base", str(folder))
    assert re.fullmatch(
        r"my_dog@2 takes \d\.\d kB instead of [\d.]+ kB, and keeps 9\d\.\d% of its effect on unseen "
        r"noise\.\n",
        said,
    )
    shown = run("show", "my_dog")
    assert re.search(r"bits a value +other maps \d[\d.]* \([\d,]+ values\), keys and values", shown)
    told = json.loads(run("shrink", "my_dog@1", "--bytes", "2kB", "--base", str(folder), "--json"))
    assert told["bytes"] <= 2000 and 0 < told["kept"] < 1
    assert json.loads(run("stats", "--json"))["bytes"]["concepts made smaller"] > 0


def test_what_is_learned_can_be_stored_small_at_once(pico, kept, few_pictures):
    concept, notices = wide(pico), []
    made = add._smaller(concept, pico, SizeRequest("tiny"), notices)
    assert made.coded is not None and len(made.to_bytes()) < len(concept.to_bytes()) / 3
    assert notices[0].startswith("my_dog is stored tiny: it keeps ")
    assert add._smaller(concept, pico, SizeRequest("full"), notices) is concept
    with pytest.raises(BadRecipe, match="no size 'huge'"):
        add.add("my_cat", "nowhere", base=pico, registry=kept, size="huge")


def test_it_is_said_when_ordinary_captions_move_more(pico, kept):
    concept = low_rank(read(kept, "my_dog"))
    asked, texts = sensitivity.probes(pico, concept, pictures=4), ["a photo of a car", "a red house"]
    moved = sensitivity.captions_moved(pico, concept, asked, texts)
    stronger = replace(concept, delta=concept.delta * 3.0)
    assert 0 < moved < sensitivity.captions_moved(pico, stronger, asked, texts)
    none = replace(concept, delta=concept.delta * 0.0)
    assert sensitivity.captions_moved(pico, none, asked, texts) == 0
    more = sizes_module.Smaller(concept, 0.99, 4000, (0.02**2, 0.05**2))
    assert (
        more.notice is not None
        and "now move by 5.0% of what the base predicts, and did by 2.0%" in more.notice
    )
    assert sizes_module.Smaller(concept, 0.99, 4000, (0.05**2, 0.05**2)).notice is None
    assert sizes_module.Smaller(concept, 0.99, 4000, (0.001**2, 0.004**2)).notice is None


def test_errors_are_not_fed_where_few_gradients_see_nothing():
    make = torch.Generator().manual_seed(0)
    gradients = torch.randn(64, 160, generator=make)  # of a metric that is the same in all directions
    vectors = [torch.randn(160, generator=make) for _ in range(20)]
    metric = Metric.of(gradients)
    found = rounded(vectors, [metric] * 20, [0.5] * 20)
    wrong = sum(
        float((0.5 * whole - vector).square().sum()) for whole, vector in zip(found, vectors, strict=True)
    )
    plain = sum(float((0.5 * (vector / 0.5).round() - vector).square().sum()) for vector in vectors)
    assert wrong < 1.6 * plain


def test_nothing_is_laid_out_where_a_concept_is_measured(pico, kept, monkeypatch):
    asked = []
    attach = sensitivity.attach
    monkeypatch.setattr(
        sensitivity, "attach", lambda *given, **options: asked.append(options) or attach(*given, **options)
    )
    sensitivity.probes(pico, read(kept, "my_dog"), pictures=2)
    assert asked and all(one["side_by_side"] is one["confine"] is False for one in asked)
