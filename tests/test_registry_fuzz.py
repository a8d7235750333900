"""Damaged concepts, bundles, records and index files are refused in one sentence, or read correctly.

`python -m benchmarks.registry_fuzz` does the same to 100,000 of them.
"""

import json
import random
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadBlob, ConceptError
from conceptkit.registry import concept_validation, sources
from conceptkit.registry.sharing import exchange, incoming, records, sync
from conceptkit.registry.store import Registry
from tests.blobs import PNG, about, blob, pack, sentence, tensors
from tests.mutate import spoil_blob, spoil_bundle, spoil_bytes, spoil_json, spoil_pages

SEEDS = st.integers(0, 2**32).map(random.Random)
QUICK = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
SLOWER = settings(QUICK, max_examples=60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(a home with two concepts in it, a bundle of them, a record of one)."""
    folder = tmp_path_factory.mktemp("whole")
    with Registry(folder / "home") as registry:
        for name in ("my_dog", "moongate"):
            registry.add(name, blob(name), concept_validation.check(blob(name)).summary)
        registry.set_preview("my_dog", 1, PNG)
        exchange.export(registry, exchange.chosen(registry, ["my_dog", "moongate"]), folder / "bundle")
        record = sync._record(registry, registry.get("my_dog")).to_bytes()
        registry.index.conn.execute("pragma wal_checkpoint(truncate)")
    return folder / "home", (folder / "bundle").read_bytes(), record


@QUICK
@given(SEEDS)
def test_spoiled_concepts(dice):
    data = spoil_blob(dice, blob())
    try:
        header = concept_validation.check(data)
    except BadBlob as error:
        sentence(error)
        return
    try:
        concept = Concept.from_bytes(data)
    except BadBlob:
        return  # maps that do not fit together are found out on loading
    assert (concept.name, concept.kind) == (header.name, header.summary["kind"])


@QUICK
@given(SEEDS)
def test_spoiled_bundles(whole, dice):
    _, data, _ = whole
    assert len(exchange.from_bytes(data, whole[0])) == 2
    spoiled = spoil_bundle(dice, data)
    try:
        found = exchange.from_bytes(spoiled, whole[0])
        checked = [incoming._check(parcel) for parcel in found]
    except ConceptError as error:
        sentence(error)
        return
    for parcel, (digest, summary) in zip(found, checked, strict=True):
        assert sources.is_digest(digest) and summary == concept_validation.check(parcel.data).summary


@QUICK
@given(SEEDS, st.booleans())
def test_spoiled_records(whole, dice, in_bytes):
    record = whole[2]
    assert records.parse_record(record, "my_dog").to_bytes() == record
    spoiled = (
        spoil_bytes(dice, record) if in_bytes else json.dumps(spoil_json(dice, json.loads(record))).encode()
    )
    try:
        found = records.parse_record(spoiled, "my_dog")
    except ConceptError:
        return
    assert found.name.lower() == "my_dog" and sources.is_digest(found.hash) and found.bytes >= 0


@SLOWER
@given(dice=SEEDS)
def test_spoiled_index_files(whole, dice, tmp_path_factory):
    source = whole[0]
    home = tmp_path_factory.mktemp("spoiled")
    shutil.copytree(source / "blobs", home / "blobs")
    (home / "index.db").write_bytes(spoil_pages(dice, (source / "index.db").read_bytes()))
    try:
        with Registry(home) as registry:
            for entry in registry.list():
                assert registry.read(entry) in (blob("my_dog"), blob("moongate"))
                registry.versions(entry.name)
                registry.preview(entry)
            registry.add("new", blob("new"), {}, new_version=True)
    except ConceptError as error:
        sentence(error)
    finally:
        shutil.rmtree(home)


@given(st.binary(max_size=2000))
def test_any_bytes(data):
    for call in (concept_validation.check, lambda data: exchange.from_bytes(data, None)):
        with pytest.raises(ConceptError) as caught:
            call(data)
        sentence(caught.value)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "largest"])
def test_numbers_that_are_none_are_found_without_torch(dtype, value):
    width = concept_validation.SIZES[dtype]
    exponent = {"F16": 5, "BF16": 8, "F32": 8, "F64": 11}[dtype]
    mantissa = width * 8 - 1 - exponent
    bits = {
        "inf": ((1 << exponent) - 1) << mantissa,
        "-inf": ((1 << (exponent + 1)) - 1) << mantissa,
        "nan": (((1 << exponent) - 1) << mantissa) | 1,
        "largest": (((1 << exponent) - 1) << mantissa) - 1,
    }[value]
    good = b"\0" * width
    body = good * 3 + bits.to_bytes(width, "little") + good * 4
    data = pack(about(), tensors() | {"rows": (dtype, (2, 4), body)})
    if value == "largest":
        assert concept_validation.check(data).name == "my_dog"
    else:
        with pytest.raises(BadBlob, match="not finite"):
            concept_validation.check(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "\x1b[2J"},
        {"noun": "dog\u202e"},
        {"tokens": ["<my_dog>", "<my_dog>"]},
        {"words": {"my_dog": "x" * 5000}},
        {"words": {str(i): "x" for i in range(3000)}},
        {"kind": "virus"},
        {"format": 2},
        {"format": True},
        {"format": 2, "reference": None},
        {"format": 2, "reference": {"maps": {}, "size": [1, 1]}},
        {"reference": {"maps": {"a.to_q": 0}, "size": [2, 2]}},
        {"delta": {"a.to_k": None}},
        {"delta": {"a.to_k": None, "a.to_v": 0, "a.to_q": 1}},
        {"provenance": {"parents": ["\x1b[2J"]}},
        {"provenance": []},
        {"recipe": {"method": ["x"]}},
        {"base": {"architecture": "0", "exact": "0", "sketch": [1.0] * 63}},
    ],
    ids=str,
)
def test_what_a_concept_may_not_say_of_itself(changes):
    with pytest.raises(BadBlob) as caught:
        concept_validation.check(blob(**changes))
    sentence(caught.value)


PHOTO = {
    "reference.latent": ("F16", (4, 6), b"\0" * 48),
    "reference.up.a.to_q": ("F16", (3, 2), b"\0" * 12),
    "reference.down.0": ("F16", (2, 3), b"\0" * 12),
}


def with_photo(maps=("a.to_q",), size=(2, 3), form=2):
    told = {"maps": dict.fromkeys(maps, 0), "size": list(size)}
    return pack(about(format=form, reference=told), tensors() | PHOTO)


def test_a_reference_photo_is_told_in_the_summary():
    summary = concept_validation.check(with_photo()).summary
    assert summary["reference"] is True and summary["rank"] == 3
    assert "reference" not in concept_validation.check(blob()).summary


@pytest.mark.parametrize(
    "changes",
    [{"form": 1}, {"form": 3}, {"size": (3, 3)}, {"size": (0, 6)}, {"size": (6,)}, {"maps": ()}],
    ids=str,
)
def test_a_reference_photo_that_does_not_fit_is_refused(changes):
    with pytest.raises(BadBlob) as caught:
        concept_validation.check(with_photo(**changes))
    sentence(caught.value)


def test_headers_of_absurd_size_are_refused_before_they_are_read():
    for length in (0, 1, 2**20, 2**40, 2**63, 2**64 - 1):
        with pytest.raises(BadBlob):
            concept_validation.check(length.to_bytes(8, "little") + b"{" * 1000)
    deep = b'{"a":' * 100_000
    with pytest.raises(BadBlob):
        concept_validation.check(len(deep).to_bytes(8, "little") + deep)
    for shape, offsets in (([2**40, 2**40], [0, 8]), ([2, 4], [0, 2**62]), ([2, 4], [-16, 0])):
        rows = {"rows": {"dtype": "F16", "shape": shape, "data_offsets": offsets}}
        with pytest.raises(BadBlob):
            concept_validation.check(pack(about(), tensors(), **rows))


def test_gaps_overlaps_and_tails_are_refused():
    whole = blob()
    assert concept_validation.check(whole).name == "my_dog"
    for data in (whole + b"\0", whole[:-1], whole[:8] + whole[8:].replace(b'"rows"', b'"sows"')):
        with pytest.raises(BadBlob):
            concept_validation.check(data)
    twice = pack(about(), tensors()).replace(b'"rows": {', b'"rows": {"dtype": "F16", "dtype": "F16", ')
    with pytest.raises(BadBlob):
        concept_validation.check(twice)
