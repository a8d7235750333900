"""What others send costs memory and time in proportion to its size, and no more; counted, not measured."""

import hashlib
import json
import sys
import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.registry_scale import TAG, fill
from conceptkit.errors import BadBlob, ConceptError
from conceptkit.registry import concept_validation, entries, sources, spelling
from conceptkit.registry.catalogue import history, labels, lineage, search
from conceptkit.registry.entries import New
from conceptkit.registry.sharing import bundle, exchange, incoming, records, remote, sync
from conceptkit.registry.sharing.incoming import IncomingConcept
from conceptkit.registry.sharing.locations import parse
from conceptkit.registry.sharing.remote import Remote
from conceptkit.registry.sources import Source, Spool
from conceptkit.registry.store import Registry
from tests.blobs import PNG, about, blob, pack, tensors

LONG = 3 << 20
"""Bytes of a concept that is long beside what may be kept in memory."""


def long_blob(name: str, seed: int = 0, size: int = LONG) -> bytes:
    rows = size // 16
    return pack(about(name, seed), tensors(seed) | {"weight.a.to_k": ("F32", (rows, 4), bytes(16 * rows))})


def put(registry: Registry, name: str, data: bytes, **options):
    return registry.add(name, data, concept_validation.check(data).summary, new_version=True, **options)


def contents(registry: Registry, name: str = "my_dog") -> list[bytes]:
    """The bytes of all versions of a name."""
    return [registry.read(entry) for entry in registry.versions(name)]


@contextmanager
def remembers(most: int):
    """Fail when the block holds more than so many bytes at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@contextmanager
def statements(registry: Registry):
    """The SQL that this thread runs in the block."""
    told: list[str] = []
    registry.index.conn.set_trace_callback(told.append)
    try:
        yield told
    finally:
        registry.index.conn.set_trace_callback(None)


@pytest.fixture
def team(tmp_path) -> Path:
    with Remote("team", parse(str(tmp_path / "team"))) as made:
        made.prepare()
    return tmp_path / "team"


def at(folder: Path) -> Remote:
    return Remote("team", parse(str(folder)))


# memory


def test_a_bundle_is_written_and_read_piece_by_piece(mine, yours, tmp_path):
    for seed in range(4):
        put(mine, "my_dog", long_blob("my_dog", seed))
    with remembers(LONG):
        exchange.export(mine, exchange.chosen(mine, ["my_dog"], every=True), tmp_path / "b")
    with remembers(LONG):
        done = exchange.import_file(yours, tmp_path / "b")
    assert [arrival.new for arrival in done.arrivals] == [True] * 4
    assert [yours.read(e) for e in yours.versions("my_dog")] == [
        mine.read(e) for e in mine.versions("my_dog")
    ]


def test_a_concept_is_imported_piece_by_piece(yours, tmp_path):
    (tmp_path / "c").write_bytes(long_blob("my_dog"))
    with remembers(LONG):
        exchange.import_file(yours, tmp_path / "c")
    assert yours.read("my_dog") == (tmp_path / "c").read_bytes()


def test_a_long_file_that_is_no_concept_is_hardly_read(yours, tmp_path):
    for number, start in enumerate((b"", (1000).to_bytes(8, "little") + b"{")):
        with (tmp_path / f"f{number}").open("wb") as file:
            file.write(start)
            file.truncate(1 << 40)
        with remembers(LONG), pytest.raises(BadBlob, match="are not a concept"):
            exchange.import_file(yours, tmp_path / f"f{number}")


def test_a_bundle_that_announces_too_much_is_refused_at_once(yours, tmp_path):
    manifest = {"conceptkit": "bundle", "format": 1, "concepts": [], "blobs": []}
    manifest["blobs"] = [[f"{i:064x}", concept_validation.LARGEST] for i in range(5)]
    with (tmp_path / "b").open("wb") as file:
        bundle._put(file, bundle.MANIFEST, bundle.dumps(manifest))
        file.truncate(20 << 30)
    with remembers(LONG), pytest.raises(BadBlob, match="announces 10,.* bytes"):
        exchange.import_file(yours, tmp_path / "b")


@pytest.mark.parametrize("memory", [1 << 16, sources.IN_MEMORY])
def test_a_remote_is_sent_and_fetched_piece_by_piece(mine, yours, team, monkeypatch, memory):
    monkeypatch.setattr(sources, "IN_MEMORY", memory)
    monkeypatch.setattr(sync, "CHUNK", 1 << 20)
    for seed in range(4):
        put(mine, "my_dog", long_blob("my_dog", seed))
    mine.set_preview("my_dog", 4, PNG)
    with remembers(LONG), at(team) as far:
        sync.push(mine, far)
    with at(team) as far:
        if memory < LONG:
            with remembers(LONG):
                pulled = sync.pull(yours, far)
        else:
            pulled = sync.pull(yours, far)
    assert not pulled.refused and len(pulled.arrivals) == 4
    assert [yours.read(e) for e in yours.versions("my_dog")] == [
        mine.read(e) for e in mine.versions("my_dog")
    ]
    assert yours.preview("my_dog") == PNG
    assert not list((yours.home / "incoming").iterdir())


def record(team: Path, name: str = "my_dog", **changes) -> None:
    """A record of that name at the remote, right but for the changes."""
    told = {"format": 1, "name": name, "hash": "0" * 64, "bytes": 1, "created": "2026-01-01T00:00:00+00:00"}
    text = bundle.dumps(told | {"preview": None, "tags": [], "notes": []} | changes)
    file = team / "concepts" / name / f"{hashlib.sha256(text).hexdigest()}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text)


def test_records_are_read_some_at_a_time(yours, team, monkeypatch):
    for number in range(200):
        record(team, created=f"{number}", notes=["x" * labels.LONGEST_NOTE] * 5)
    monkeypatch.setattr(remote, "AT_ONCE", 1 << 17)
    with at(team) as far:
        found = far.records("my_dog")
        assert sum(file.size for file in found) > 10_000_000
        with remembers(2 << 20):
            known = records.Known.by_name(one for one, _ in sync._records(far, "my_dog", found))["my_dog"]
    assert list(known.oldest) == ["0" * 64] and len(known.notes) == 1


def test_too_many_or_too_long_records_refuse_only_that_name(mine, yours, team, monkeypatch):
    put(mine, "my_cat", blob("my_cat"))
    with at(team) as far:
        sync.push(mine, far)
    for number in range(5):
        record(team, notes=[f"{number}" + "x" * 9000])
    for limit, value in (("MOST_RECORDS_OF_A_NAME", 4), ("LONGEST_RECORDS", 40_000)):
        with monkeypatch.context() as patch, at(team) as far:
            patch.setattr(remote, limit, value)
            pulled = sync.pull(yours, far)
            assert "holds 5 records of it" in pulled.refused[0] and len(pulled.refused) == 1
    assert [entry.name for entry in yours.list()] == ["my_cat"]


def test_labels_of_many_records_are_bounded(yours, team):
    for number in range(11):
        record(team, notes=[f"{number}/{i}" for i in range(100)])
    with at(team) as far:
        assert "over 1,000 tags and notes" in sync.pull(yours, far).refused[0]
    assert not yours.list()


def test_what_a_disk_has_no_room_for_is_not_fetched(yours, team, monkeypatch):
    record(team, bytes=concept_validation.LARGEST)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: SimpleNamespace(free=2 * concept_validation.LARGEST - 1)
    )
    with at(team) as far:
        assert "free some room" in sync.pull(yours, far).refused[0]


def test_a_record_that_others_would_pass_over_is_not_pushed(mine, team, monkeypatch):
    put(mine, "my_dog", blob())
    labels.note(mine, "my_dog", "x" * 9000)
    monkeypatch.setattr(sync, "LONGEST_RECORD", 5000)
    with at(team) as far:
        assert "notes of that length" in sync.push(mine, far).refused[0]


def test_what_concepts_say_of_themselves_is_bounded_together(yours, monkeypatch):
    monkeypatch.setattr(incoming, "LONGEST_SUMMARIES", 1000)
    many = [IncomingConcept(f"c{i}", blob(f"c{i}", i)) for i in range(10)]
    with pytest.raises(BadBlob, match="too much of its concepts"):
        incoming.receive(yours, many, "import")
    assert not yours.list()


def test_a_name_has_no_more_labels_than_others_take(registry):
    put(registry, "my_dog", blob())
    labels.tag(registry, "my_dog", [f"t{i}" for i in range(labels.MOST)])
    coming = IncomingConcept("my_dog", blob(), notes=("one more",))
    for more in (
        lambda: labels.tag(registry, "my_dog", ["one_more"]),
        lambda: labels.note(registry, "my_dog", "one more"),
        lambda: incoming.receive(registry, [coming], "import", take=True),
    ):
        with pytest.raises(ConceptError, match="1,001 tags and notes, and 1,000 is the most"):
            more()
    assert len(labels.tag(registry, "my_dog")) == labels.MOST and not labels.notes(registry, "my_dog")
    assert len(labels.tag(registry, "my_dog", remove=["t0"])) == labels.MOST - 1


# sources


def test_sources_of_all_kinds(tmp_path):
    data = bytes(range(256)) * 10_000
    file = tmp_path / "f"
    file.write_bytes(b"before" + data + b"after")
    (tmp_path / "g").write_bytes(data)
    with Spool(tmp_path) as spool, file.open("rb") as handle:
        spool.add([b"something else"])
        kinds = [
            Source.of(data),
            Source.in_file(tmp_path / "g"),
            Source.part_of(handle, 6, len(data)),
            spool.add([data[:1000], data[1000:]]),
        ]
        spool.add([b"after it"])
        for source in kinds:
            assert source.size == len(data) and source.read() == data
            assert source.digest() == hashlib.sha256(data).hexdigest()
            with source.open() as one, source.open() as other:  # at once, also in one file
                assert one.read(5) == other.read(5) == data[:5]
                assert one.read(1 << 30) == data[5:] and one.left == 0 and one.read(1) == b""
        with pytest.raises(BadBlob, match="end before they should"):
            Source.part_of(handle, 6, 2 * len(data)).read()


@pytest.mark.parametrize("packed", [True, False])
def test_bytes_that_change_while_they_come_in_are_not_stored(registry, tmp_path, packed, request):
    if not packed:
        request.getfixturevalue("loose")
    file = tmp_path / "c"
    file.write_bytes(blob())
    source = Source.in_file(file, hashlib.sha256(blob()).hexdigest())
    file.write_bytes(blob(seed=1)[: len(blob())].ljust(len(blob()), b"x"))
    with pytest.raises(BadBlob, match="have changed"):
        registry.add("my_dog", source, {})
    assert not registry.list() and not registry.blob_store.sizes()
    assert not list((registry.blobs / "incoming").glob("*"))


# work that grows with its input


def chain(registry: Registry, length: int) -> None:
    """c0, and merges of the one before it, twice each."""
    data = blob("c0")
    put(registry, "c0", data)
    for i in range(1, length + 1):
        digest = hashlib.sha256(data).hexdigest()
        told = {"parents": [f"c{i - 1}@1"] * 2, "parent_sha256": [digest] * 2, "weights": [1.0, 1.0]}
        data = blob(f"c{i}", kind="merge", provenance=told)
        put(registry, f"c{i}", data)


def test_lineage_grows_with_its_parents_and_not_with_the_ways_to_them(registry):
    chain(registry, 60)
    with statements(registry) as told:
        tree = lineage.tree(registry, "c30")
    assert len(told) < 200
    text = list(lineage.lines(tree))
    assert len(text) == 61 and len(json.dumps(tree.to_json())) < 20_000
    assert sum("c29@1" in line for line in text) == 2
    assert "└── c29@1 (its parents are shown above)" in text
    with statements(registry) as told:
        found = lineage.ancestors(registry, [registry.get("c60")])
    assert [entry.name for entry in found] == [f"c{i}" for i in reversed(range(60))], (
        "all of them, the nearest first"
    )
    assert len(told) < 500
    deep = list(lineage.lines(lineage.tree(registry, "c60")))
    assert any("c10@1 (its parents: `conceptkit lineage c10@1`)" in line for line in deep), (
        "what is left out is said"
    )
    chosen = exchange.chosen(registry, ["c60"], parents=True)
    assert len(chosen) == 61


def test_a_concept_without_parents_is_just_named_again(registry):
    chain(registry, 1)
    assert list(lineage.lines(lineage.tree(registry, "c1"))) == ["c1@1", "├── c0@1", "└── c0@1"]


@pytest.mark.parametrize("what", ["notes", "versions"])
def test_an_import_indexes_a_name_a_few_times(yours, monkeypatch, what):
    refreshed = []
    refresh = entries.refresh
    for module in (entries, labels, history):
        monkeypatch.setattr(module, "refresh", lambda *given: (refreshed.append(1), refresh(*given)))
    notes = tuple(f"note {i}" for i in range(200 if what == "notes" else 1))
    many = [
        IncomingConcept("my_dog", blob("my_dog", i), notes=notes) for i in range(1 if what == "notes" else 30)
    ]
    with statements(yours) as told:
        incoming.receive(yours, many, "import")
    assert len(refreshed) <= 3
    assert len(told) < 40 * max(len(notes), len(many))
    assert len(labels.notes(yours, "my_dog")) == len(notes)


def test_notes_are_searched_as_far_as_they_are_indexed(registry, monkeypatch):
    put(registry, "my_dog", blob())
    monkeypatch.setattr(entries, "SEARCHED", 1000)
    labels.note(registry, "my_dog", "first " * 100)
    labels.note(registry, "my_dog", "second " * 150)
    assert search.search(registry, "second") and not search.search(registry, "first")


def test_new_names_are_not_compared_with_those_there_are(mine, yours, team, tmp_path, monkeypatch):
    names = [f"subject{i}" for i in range(20)]
    mine.add_many([New(name, blob(name), concept_validation.check(blob(name)).summary) for name in names])

    def compared(*_: object) -> list[str]:
        raise AssertionError("names were compared")

    monkeypatch.setattr(spelling, "likely", compared)
    with at(team) as far:
        sync.push(mine, far)
        assert len(sync.pull(yours, far).arrivals) == 20
    exchange.export(mine, exchange.chosen(mine, names), tmp_path / "b")
    with Registry(tmp_path / "third") as third:
        assert all(one.new for one in exchange.import_file(third, tmp_path / "b").arrivals)
        third.add("another", blob("another"), {})


def test_versions_of_one_origin_are_looked_up_once(yours, monkeypatch):
    asked = []
    belongs = entries.belongs
    monkeypatch.setattr(entries, "belongs", lambda *given: (asked.append(1), belongs(*given))[1])
    incoming.receive(yours, [IncomingConcept("my_dog", blob("my_dog", i)) for i in range(20)], "import")
    assert len(asked) == 1


NOUNS, TAGS = ("dog", "old dog", "café-cat", "_", None), ("a.b", "b", "cat", "-", "é")


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """A registry in which classes and tags meet in many ways."""
    with Registry(tmp_path_factory.mktemp("varied")) as registry:
        news = [
            New(f"n{i}", b"x", {"noun": NOUNS[i % 5], "base_name": f"base{i % 2}", "method": f"m{i % 3}"})
            for i in range(60)
        ]
        registry.add_many(news)
        for i in range(60):
            labels.tag(registry, f"n{i}", [tag for j, tag in enumerate(TAGS) if i % (j + 2) == 0])
            labels.favourite(registry, f"n{i}", i % 7 == 0)
        yield registry


@pytest.mark.parametrize("few", [0, 10, 5000])
def test_lists_are_the_same_whichever_way_they_are_found(varied, monkeypatch, few):
    monkeypatch.setattr(search, "FEW", few)
    every, said = varied.list(), search.labels(varied, varied.list())
    for noun in (None, *NOUNS[:4], "nothing"):
        for tag in (None, *TAGS, "nothing"):
            for more in ({}, {"favourite": True}, {"base": "base1"}, {"method": "m1", "base": "base0"}):
                told = {"noun": noun, "base_name": more.get("base"), "method": more.get("method")}
                right = [
                    entry.name
                    for entry in every
                    if all(value is None or entry.summary[key] == value for key, value in told.items())
                    and (tag is None or tag in said[entry.name]["tags"])
                    and (not more.get("favourite") or said[entry.name]["favourite"])
                ]
                filters = search.Filters(noun=noun, tag=tag, **more)
                names = [entry.name for entry in search.page(varied, filters, limit=None)]
                assert names == right, filters
                after = [entry.name for entry in search.page(varied, filters, after="n30", limit=3)]
                assert after == [name for name in right if name > "n30"][:3], filters


def test_a_list_by_class_and_tag_does_not_go_through_the_class(registry):
    fill(registry, 6000, lambda done: None)
    steps = []
    registry.index.conn.set_progress_handler(lambda: steps.append(1), 100)
    assert not search.page(registry, search.Filters(noun="dog", tag=TAG), limit=10)
    registry.index.conn.set_progress_handler(None, 0)
    assert len(steps) < 20, "not several instructions for each of 500 dogs"
    assert len(search.page(registry, search.Filters(noun="cat", tag=TAG), limit=10)) == 10


def test_names_that_arrive_together_are_not_compared_with_each_other(yours):
    calls = []

    def count(frame, event, called) -> None:
        if event == "c_call" and called.__name__ == "lower":
            calls.append(1)

    many = [IncomingConcept(f"c{i}", blob(f"c{i}", i)) for i in range(60)]
    sys.setprofile(count)
    try:
        incoming.receive(yours, many, "import")
    finally:
        sys.setprofile(None)
    assert len(calls) < 60 * 10


@pytest.mark.parametrize("key", ["parents", "parent_sha256", "weights"])
def test_the_lists_in_a_header_are_bounded(key):
    for odd in ([1.0] * 1001, "12"):
        with pytest.raises(BadBlob, match=f"their {key} are odd"):
            concept_validation.check(blob(provenance={key: odd}))
