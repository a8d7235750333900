"""Formats 3 and 5: whole numbers come back as they were, nearly at their entropy; damage is one sentence."""

import json
import random
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptkit.concepts import codec
from conceptkit.concepts.codec import compact, symbols, tables
from conceptkit.concepts.codec.symbols import Vector
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.delta import Delta
from conceptkit.errors import BadBlob
from conceptkit.registry import compact_header, concept_header, concept_validation
from conceptkit.registry.store import Registry
from conceptkit.safetensors_header import read_metadata
from tests.blobs import sentence
from tests.mutate import spoil_blob, spoil_bytes
from tests.test_concept import SIZES, concept


def small(seed: int = 0, spread: float = 2.0, **changes) -> Concept:
    """A concept whose numbers are rounded, without looking at what they do."""
    whole = concept(seed, rows=None, **changes)
    layout = compact.Layout.of(whole.delta, whole.tokens)
    dice = np.random.default_rng(seed)
    vectors = [
        Vector(np.round(dice.laplace(size=length) * spread).astype(np.int64), int(dice.integers(-30, 3)))
        for length in layout.lengths()
    ]
    numbers = compact.coded(layout, vectors)
    fields = {**vars(whole), "delta": numbers.delta, "tokens": dict(numbers.tokens), "coded": numbers}
    return Concept(**{name: fields[name] for name in Concept.__dataclass_fields__})


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.one_of(st.integers(-3, 3), st.integers(-(10**9), 10**9)), min_size=1, max_size=40),
            st.integers(-200, 200),
        ),
        max_size=12,
    )
)
def test_any_whole_numbers_come_back(given_vectors):
    vectors = [Vector(np.array(values), step) for values, step in given_vectors]
    found = symbols.decode(symbols.encode(vectors), [len(vector.values) for vector in vectors])
    for before, after in zip(vectors, found, strict=True):
        assert np.array_equal(before.values, after.values)
        assert before.step == after.step or not before.values.any()


@pytest.mark.parametrize("spread", [0.2, 0.7, 3.0])
def test_the_stream_is_within_five_percent_of_its_entropy(spread):
    dice = np.random.default_rng(0)
    vectors = [Vector(np.round(dice.laplace(size=160) * spread).astype(np.int64), -20) for _ in range(200)]
    assert len(symbols.encode(vectors)) * 8 <= 1.05 * sum(symbols.bits(vectors))


def test_what_is_said_of_each_vector_is_within_five_percent_too():
    dice = np.random.default_rng(0)
    vectors = [
        Vector(np.round(dice.laplace(size=96) * 2.0 ** dice.integers(-4, 2)).astype(np.int64), int(step))
        for step in -40 + np.cumsum(dice.integers(-6, 7, size=300))
    ]
    vectors.append(Vector(np.round(dice.normal(size=192) * 20).astype(np.int64), -9))
    entropy = sum(symbols.bits(vectors)) + symbols.side_bits(vectors)
    assert len(symbols.encode(vectors)) * 8 <= 1.05 * entropy


def test_a_long_table_of_few_numbers_is_written_by_how_it_falls():
    dice = np.random.default_rng(0)
    for values in (dice.normal(size=500) * 25, dice.laplace(size=500) * 18):
        counts = np.bincount(np.minimum(np.abs(np.round(values)), 120).astype(int)).astype(float)
        written = tables.table(counts)
        explicit = bytes([len(counts), *[0] * len(counts)])
        assert written[0] == tables.FALLING and len(written) == tables.length_of(written, 0) < len(explicit)
        share = tables.frequencies(tables.levels_of(written))
        assert len(share) == len(counts) and abs(share.sum() - 1) < 1e-9
    with pytest.raises(ValueError, match="damaged"):
        tables.levels_of(bytes([tables.FALLING, 3, 1, 0, 9]))


def test_steps_are_powers_that_no_machine_rounds_otherwise():
    assert [symbols.worth(4 * k) for k in (-3, 0, 5)] == [0.125, 1.0, 32.0]
    assert all(abs(symbols.worth(k) / 2 ** (k / 4) - 1) < 1e-15 for k in range(-200, 200))


def test_a_small_concept_survives_the_way_to_bytes():
    before = small()
    data = before.to_bytes()
    after = Concept.from_bytes(data)
    assert after.to_bytes() == data == small().to_bytes()
    for field in ("name", "kind", "noun", "base_name", "words", "recipe", "provenance"):
        assert getattr(after, field) == getattr(before, field)
    assert after.delta.same(before.delta) and len(after.delta.downs) == 1
    assert all(map(torch.equal, after.tokens["<my_dog>"], before.tokens["<my_dog>"]))
    assert after.base.distance(before.base) == 0 and after.base.exact == before.base.exact
    assert after.called("rex").coded is after.coded and after.called("rex").to_bytes() != data
    changed = Concept(
        **{**{n: getattr(after, n) for n in Concept.__dataclass_fields__}, "delta": 2.0 * after.delta}
    )
    assert Concept.from_bytes(changed.to_bytes()).coded is None, (
        "other numbers are not those that were stored"
    )


def test_a_layout_says_each_kind_of_block_once():
    names = [f"up_blocks.{k}.attentions.0.transformer_blocks.0.attn2.to_{m}" for k in range(9) for m in "kv"]
    down = torch.randn(2, 8)
    delta = Delta({name: (torch.randn(6, 2), down) for name in names})
    layout = compact.Layout.of(delta, {})
    told = layout.to_json()
    assert len(told["kinds"]) == 1 and len(told["blocks"]) == 9
    assert compact.Layout.from_json(json.loads(json.dumps(told)), []) == layout
    own = compact.Layout.of(Delta({n: (torch.randn(6, 2), torch.randn(2, 8)) for n in names}), {})
    again = compact.Layout.from_json(own.to_json(), [])
    assert [m.name for m in again.maps] == names and len(again.downs()) == len(names)


def test_the_registry_knows_a_small_concept_without_torch(tmp_path):
    made = small(provenance={"parents": ["my_dog@1"], "parent_sha256": ["a" * 64], "how": "shrink"})
    header = concept_validation.check(made.to_bytes())
    told, known = made.summary(), header.summary
    assert {key: told[key] for key in known} == known
    assert header.parents == (("my_dog@1", "a" * 64),)
    assert set(told) - set(known) == {compact.PARTS}
    with Registry(tmp_path) as registry:
        registry.add("my_dog", made.to_bytes(), made.summary())
        assert Concept.from_bytes(registry.read("my_dog")).to_bytes() == made.to_bytes()
    assert concept_header.read(made.to_bytes()).name == "my_dog"


def test_parts_say_how_many_bits_their_values_take():
    parts = small().summary()[compact.PARTS]
    assert parts.keys() == {"keys and values", "words"}
    assert parts["keys and values"][0] == 3 * (8 + sum(SIZES.values()))
    assert all(0 < bits < 8 for _, bits in parts.values())


WHOLE = small().to_bytes()


def test_every_flipped_bit_is_refused():
    for place in range(len(WHOLE)):
        data = bytearray(WHOLE)
        data[place] ^= 1 << place % 8
        for read in (Concept.from_bytes, concept_validation.check):
            try:
                read(bytes(data))
            except BadBlob as error:
                assert "\n" not in str(error)
                continue
            # Blanks that fill the header up, and blanks between its words, are nobody's bytes.
            assert json.loads(data[8 : 8 + struct.unpack_from("<Q", data)[0]]) == json.loads(
                WHOLE[8 : 8 + struct.unpack_from("<Q", WHOLE)[0]]
            )


def test_damaged_small_concepts_are_refused_in_a_sentence_or_read_right():
    dice = random.Random(0)
    for spoil in [spoil_bytes] * 400 + [spoil_blob] * 400:
        data = spoil(dice, WHOLE)
        try:
            concept_validation.check(data)
        except BadBlob as error:
            sentence(error)
            continue
        try:
            read = Concept.from_bytes(data)
        except BadBlob as error:
            assert "\n" not in str(error)
            continue
        assert read.to_bytes() == WHOLE


def resealed(change) -> bytes:
    """WHOLE with its numbers changed, and a checksum that suits them: what a forger writes."""
    length = struct.unpack_from("<Q", WHOLE)[0]
    outer = json.loads(WHOLE[8 : 8 + length])
    about, body = json.loads(outer["__metadata__"]["conceptkit"]), bytearray(WHOLE[8 + length :])
    body = bytes(change(about, body) or body)
    about["crc32"] = compact_header.checksum(about, body)
    outer["__metadata__"]["conceptkit"] = json.dumps(about)
    outer["coded"] = {"dtype": "U8", "shape": [1, len(body)], "data_offsets": [0, len(body)]}
    header = json.dumps(outer).encode()
    return struct.pack("<Q", len(header)) + header + body


def test_forged_numbers_never_do_more_than_be_refused():
    dice = random.Random(1)

    def spoil(about, body):
        for _ in range(dice.choice((1, 2, 8))):
            body[dice.randrange(len(body))] = dice.randrange(256)

    for _ in range(300):
        with suppress(BadBlob):
            Concept.from_bytes(resealed(spoil))


def test_a_newer_format_says_who_reads_it():
    newer = resealed(lambda about, body: about.update(format=6, needs="0.7"))
    with pytest.raises(
        BadBlob, match=r"format is 6, which conceptkit 0.7 or newer reads, and this one reads 1 to 5"
    ):
        concept_validation.check(newer)
    with pytest.raises(BadBlob, match=r"conceptkit 0.7 or newer reads"):
        Concept.from_bytes(newer)
    odd = resealed(lambda about, body: about.update(format=6, needs="\x1b[2J"))
    with pytest.raises(BadBlob, match="which a newer conceptkit reads"):
        concept_validation.check(odd)


def test_small_concepts_of_the_format_before_are_read_and_written_as_today():
    """The file is what `small(3, 60.0)` was when numbers were coded in format 3."""
    data = (Path(__file__).parent / "data" / "v3" / "small.safetensors").read_bytes()
    concept_validation.check(data)
    assert read_metadata(data)["format"] == compact_header.BEFORE
    read, wanted = Concept.from_bytes(data), small(3, 60.0)
    for name, factors in wanted.delta.items():
        assert all(torch.equal(a, b) for a, b in zip(read.delta[name], factors, strict=True))
    for token, rows in wanted.tokens.items():
        assert all(torch.equal(a, b) for a, b in zip(read.tokens[token], rows, strict=True))
    again = Concept.from_bytes(read.to_bytes())
    assert again.to_bytes() == read.to_bytes() != data
    for at in range(0, len(data), 7):
        with pytest.raises(BadBlob):
            Concept.from_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])


def test_sizes_add_up():
    assert sum(compact.sizes(WHOLE).values()) == len(WHOLE)
    assert codec.to_bytes(small()) == WHOLE
