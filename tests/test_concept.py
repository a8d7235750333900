"""A concept survives the way to bytes and back, deterministically, and odd bytes are one kind of error."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptkit.base.fingerprint import SKETCH_SIZE, Fingerprint
from conceptkit.concepts.concept import Concept, read
from conceptkit.concepts.delta import Delta
from conceptkit.errors import BadBlob
from conceptkit.registry.store import Registry

SIZES = {"a.attn2.to_k": 6, "a.attn2.to_v": 6, "b.attn2.to_k": 10, "b.attn2.to_v": 10}


def concept(seed: int = 0, **changes) -> Concept:
    make = torch.Generator().manual_seed(seed)
    down = torch.randn(3, 8, generator=make)
    values = {
        "name": "my_dog",
        "kind": "subject",
        "noun": "dog",
        "base": Fingerprint("0123456789abcdef", "fedcba9876543210", (0.125,) * SKETCH_SIZE),
        "base_name": "storybook",
        "tokens": {"<my_dog>": (torch.randn(2, 8, generator=make), torch.randn(2, 5, generator=make))},
        "words": {"my_dog": "<my_dog> dog"},
        "delta": {name: (torch.randn(o, 3, generator=make), down) for name, o in SIZES.items()},
        "recipe": {"method": "custom", "steps": 250},
        "provenance": {"seed": seed, "parents": []},
        "rows": torch.randn(4, 8, generator=make),
    }
    return Concept(**(values | changes))


SCRIPT = "from tests.test_concept import *; import sys; sys.stdout.buffer.write(concept().to_bytes())"


def test_round_trip():
    before = concept()
    after = Concept.from_bytes(before.to_bytes())
    for field in ("name", "kind", "noun", "base", "base_name", "words", "recipe", "provenance"):
        assert getattr(after, field) == getattr(before, field)
    assert all(
        torch.equal(a, b) for a, b in zip(after.tokens["<my_dog>"], before.tokens["<my_dog>"], strict=True)
    )
    for name, factors in before.delta.items():
        assert torch.equal(after.delta[name].down, factors.down)
        assert torch.allclose(after.delta[name].first, factors.first, rtol=1e-3)
    assert torch.allclose(after.rows, before.rows, rtol=1e-3)
    assert len(after.delta.downs) == 1
    assert after.to_bytes() == before.to_bytes()


def test_bytes_are_the_same_in_every_process_and_order():
    shuffled = concept()
    shuffled = concept(delta=dict(reversed(list(shuffled.delta.items()))))
    assert shuffled.to_bytes() == concept().to_bytes()
    seed = {"PYTHONHASHSEED": "7" if os.environ.get("PYTHONHASHSEED") != "7" else "8"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, check=True, env=os.environ | seed
    )
    assert done.stdout == concept().to_bytes()


def test_a_shared_down_is_stored_once():
    down = torch.randn(3, 800)
    ups = {name: torch.randn(o, 3) for name, o in SIZES.items()}
    shared = concept(delta={name: (up, down) for name, up in ups.items()}, rows=None)
    own = concept(delta={name: (up, down + i) for i, (name, up) in enumerate(ups.items())}, rows=None)
    assert len(shared.to_bytes()) < len(own.to_bytes()) / 1.5


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_what_half_precision_cannot_hold_stays_exact_enough(scale):
    before = concept(delta={"a.attn2.to_k": (scale * torch.randn(6, 8),)})
    (after,) = Concept.from_bytes(before.to_bytes()).delta["a.attn2.to_k"]
    (weight,) = before.delta["a.attn2.to_k"]
    assert (after - weight).norm() <= 1e-3 * weight.norm()


def test_delta_rows_against_the_dense_matrix():
    subject = concept()
    rows = torch.randn(5, 8, dtype=torch.float64)
    delta = subject.delta.only(list(SIZES)[1:])
    dense = torch.cat([torch.zeros(6, 8), *(factors.dense() for factors in delta.values())]).double()
    assert torch.allclose(delta.rows(SIZES, rows), rows @ dense.T, atol=1e-5)
    assert delta.rank == 3
    assert Delta().rank == 0
    assert Delta({"x": (torch.ones(4, 7),)}).rank == 4


def test_summary_is_what_a_list_shows():
    summary = concept(provenance={"parents": ["x"]}).summary()
    assert summary["base"] == {"architecture": "0123456789abcdef", "exact": "fedcba9876543210"}
    assert (summary["method"], summary["rank"], summary["tokens"], summary["parents"]) == (
        "custom",
        3,
        ["<my_dog>"],
        ["x"],
    )
    assert summary["bytes"] == len(concept(provenance={"parents": ["x"]}).to_bytes())


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "animal"},
        {"delta": {f"a.attn2.to_{m}": (torch.ones(4, 2), torch.ones(2, w)) for m, w in (("k", 8), ("v", 9))}},
        {"delta": {"a": (torch.full((4, 8), torch.nan),)}},
        {"tokens": {"<a>": (torch.ones(1, 8),), "<b>": (torch.ones(1, 8), torch.ones(1, 8))}},
        {"tokens": {"<a>": (torch.ones(1, 8), torch.ones(2, 8))}},
        {"rows": torch.ones(8)},
        {"words": {"my_dog": 3}},
        {"noun": 3},
        {"base": Fingerprint("a", "b", (1.0,))},
    ],
)
def test_what_does_not_fit_together_is_refused(changes):
    with pytest.raises(BadBlob, match="not a concept"):
        Concept.from_bytes(concept(**changes).to_bytes())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_at_all(data):
    with pytest.raises(BadBlob):
        Concept.from_bytes(data)


WHOLE = concept().to_bytes()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_bytes(damage):
    data = bytearray(WHOLE)
    for place, value in damage:
        data[place] = value
    try:
        Concept.from_bytes(bytes(data)).to_bytes()
    except BadBlob as error:
        assert "\n" not in str(error)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_cut_bytes(length):
    with pytest.raises(BadBlob):
        Concept.from_bytes(WHOLE[:length])


def test_a_renamed_concept_answers_to_its_new_name(tmp_path):
    from conceptkit.registry.catalogue import history

    made = concept(name="my_dog", words={"my_dog": "<my_dog> dog"}, tokens={"<my_dog>": (torch.ones(1, 8),)})
    with Registry(tmp_path) as registry:
        registry.add("my_dog", made.to_bytes(), made.summary())
        history.rename(registry, "my_dog", "rex")
        found = read(registry, "rex")
    assert (found.name, dict(found.words)) == ("rex", {"rex": "<my_dog> dog"})
    assert found.tokens.keys() == made.tokens.keys()


def test_a_merge_under_another_name_keeps_the_words_of_its_parts():
    merged = concept(kind="merge", words={"my_dog": "<my_dog> dog", "gate": "<gate> gate"})
    assert merged.called("together") is merged
