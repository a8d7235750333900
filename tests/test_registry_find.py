"""Finding concepts and following them: search, filters, pages, labels, history, lineage, near names."""

import json
import random
import sqlite3
import time

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptkit.cli.main import main
from conceptkit.errors import BadName, ConceptError, NameTaken, UnknownConcept
from conceptkit.registry import spelling
from conceptkit.registry.catalogue import history, labels, lineage, search
from conceptkit.registry.catalogue.search import Filters
from conceptkit.registry.entries import New
from conceptkit.registry.index import FASTER, STEPS, Index
from conceptkit.registry.migrations import migrations
from conceptkit.registry.store import Registry
from tests.commands import run

DOG = {"kind": "subject", "noun": "dog", "base_name": "storybook", "method": "custom"}


@pytest.fixture
def stocked(registry):
    """Five concepts of three classes, two bases and three sizes."""
    gate = DOG | {"noun": "gate", "base_name": "sd15", "method": "textual-inversion"}
    registry.add("my_dog", b"x" * 100, DOG)
    registry.add("your-dog", b"y" * 200, DOG | {"captions": ["a Läufer on the beach"]})
    registry.add("Moongate", b"z" * 300, gate)
    registry.add("cat", b"c", DOG | {"noun": "cat"})
    registry.add(
        "both", b"b", {"kind": "merge", "parents": ["my_dog@1", "Moongate"], "method": "constrained"}
    )
    return registry


def names(entries) -> list[str]:
    return [entry.name for entry in entries]


# search


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("my_dog", {"my_dog", "both"}),
        ("dog", {"my_dog", "your-dog", "both"}),
        ("DOG your", {"your-dog"}),
        ("do", {"my_dog", "your-dog", "both"}),
        ("og", set()),
        ("laufer beach", {"your-dog"}),
        ("gate", {"Moongate"}),
        ("nothing", set()),
        ('dog" OR "cat', set()),
        ("dog*", {"my_dog", "your-dog", "both"}),
        ("NOT dog", set()),
        ("name:dog", set()),
    ],
)
def test_search(stocked, words, found):
    assert set(names(search.search(stocked, words))) == found


def test_a_concept_of_exactly_that_name_comes_first(registry):
    for name in ("dog-dog", "dog", "dog_2"):
        registry.add(name, name.encode(), DOG)
    assert names(search.search(registry, "dog"))[0] == "dog"
    assert len(search.search(registry, "dog", limit=2)) == 2


def test_search_knows_tags_notes_and_the_present_version_alone(stocked):
    labels.tag(stocked, "cat", ["pets"])
    labels.note(stocked, "cat", "Sleeps on the radiator")
    assert names(search.search(stocked, "pets")) == names(search.search(stocked, "radiator")) == ["cat"]
    stocked.add("cat", b"new", DOG | {"noun": "tiger"}, new_version=True)
    assert names(search.search(stocked, "tiger")) == ["cat"]
    assert names(search.search(stocked, "pets radiator tiger")) == ["cat"]
    history.rollback(stocked, "cat")
    assert search.search(stocked, "tiger") == []
    labels.tag(stocked, "cat", remove=["pets"])
    assert search.search(stocked, "pets") == []
    stocked.remove("cat")
    assert search.search(stocked, "radiator") == []


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_no_words_are_syntax(words):
    expression = None
    try:
        expression = search.expression(words)
    except ConceptError as error:
        assert "no word to look for" in str(error)
    if expression:
        conn = sqlite3.connect(":memory:")
        conn.execute("create virtual table t using fts5(a)")
        conn.execute("select * from t where t match ?", [expression]).fetchall()


# filters and pages


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (Filters(), ["both", "cat", "Moongate", "my_dog", "your-dog"]),
        (Filters(noun="dog"), ["my_dog", "your-dog"]),
        (Filters(base="sd15"), ["Moongate"]),
        (Filters(method="constrained"), ["both"]),
        (Filters(min_size=200), ["Moongate", "your-dog"]),
        (Filters(max_size=100, noun="dog"), ["my_dog"]),
        (Filters(since="2020-01-01"), ["both", "cat", "Moongate", "my_dog", "your-dog"]),
        (Filters(until="2020-01-01"), []),
        (Filters(tag="pets"), ["cat"]),
        (Filters(favourite=True), ["my_dog"]),
    ],
)
def test_filters(stocked, filters, found):
    labels.tag(stocked, "cat", ["pets"])
    labels.favourite(stocked, "my_dog")
    assert names(search.page(stocked, filters)) == found
    assert set(names(search.search(stocked, "dog", filters))) == set(found) & {"my_dog", "your-dog", "both"}


def test_days_count_to_their_end(stocked):
    day = stocked.get("cat").created[:10]
    assert len(search.page(stocked, Filters(since=day, until=day))) == 5
    with pytest.raises(ConceptError, match="'yesterday' is no date"):
        search.page(stocked, Filters(since="yesterday"))


def test_pages_are_the_list(registry):
    wanted = [f"{letter}{i}" for letter in "aBcD" for i in range(7)]
    random.Random(0).shuffle(wanted)
    registry.add_many([New(name, name.encode(), DOG) for name in wanted])
    for filters in (Filters(), Filters(noun="dog"), Filters(base="storybook", method="custom")):
        leafed, after = [], None
        while page := search.page(registry, filters, after=after, limit=5):
            leafed += page
            after = page[-1].name
        assert leafed == registry.list() == search.page(registry, limit=None)


# near names


def test_near_names_among_very_many(registry):
    rng = random.Random(1)
    syllables = ["ba", "do", "ki", "lu", "mo", "ne", "ra", "su", "ti", "ve"]
    many = {"".join(rng.choices(syllables, k=rng.randint(3, 6))) for _ in range(5000)} | {
        "my_golden_retriever"
    }
    registry.add_many([New(name, b"same", DOG) for name in sorted(many)])
    for meant in [*rng.sample(sorted(many), 20), "my_golden_retriever"]:
        i = rng.randrange(1, len(meant) - 1)
        for typed in (meant[:i] + meant[i + 1 :], meant[:i] + "x" + meant[i:], meant.upper()):
            if typed not in many:
                found = spelling.likely(registry.index, typed)
                assert meant in found and len(found) <= spelling.FOUND
    for typed in ("my_golden_retriver_", "mygoldenretriever", "golden_retriever", "my_golden_labrador"):
        with pytest.raises(UnknownConcept, match="did you mean 'my_golden_retriever'"):
            registry.get(typed)
    with pytest.raises(UnknownConcept, match="conceptkit list"):
        registry.get("zzz")


# labels


def test_tags_notes_and_favourites_belong_to_the_name(stocked):
    assert labels.tag(stocked, "cat", ["b", "a", "b"]) == ["a", "b"]
    assert labels.tag(stocked, "cat", remove=["a"]) == ["b"]
    first = labels.note(stocked, "cat", "  one ")
    labels.note(stocked, "cat", "two")
    assert [note.text for note in labels.notes(stocked, "cat")] == ["one", "two"]
    labels.drop_note(stocked, "cat", first.number)
    labels.favourite(stocked, "cat")
    history.rename(stocked, "cat", "tom")
    assert labels.tag(stocked, "tom") == ["b"] and [n.text for n in labels.notes(stocked, "tom")] == ["two"]
    assert search.labels(stocked, [stocked.get("tom")]) == {"tom": {"tags": ["b"], "favourite": True}}
    stocked.remove("tom")
    stocked.add("tom", b"another", DOG)
    assert labels.tag(stocked, "tom") == [] and labels.notes(stocked, "tom") == []


def test_labels_that_cannot_be(stocked):
    for wrong in ("", "two words", "x" * 65, "a\n"):
        with pytest.raises(ConceptError, match="cannot be a tag"):
            labels.tag(stocked, "cat", [wrong])
    with pytest.raises(ConceptError, match="has no tag 'x'"):
        labels.tag(stocked, "cat", ["fine"], ["x"])
    assert labels.tag(stocked, "cat") == [], "all or nothing"
    with pytest.raises(ConceptError, match="has no note 7"):
        labels.drop_note(stocked, "cat", 7)
    with pytest.raises(ConceptError, match="A note has 1 to"):
        labels.note(stocked, "cat", " ")
    with pytest.raises(ConceptError, match="A note has no control characters"):
        labels.note(stocked, "cat", "red\x1b[31m")
    with pytest.raises(UnknownConcept, match="did you mean 'cat'"):
        labels.favourite(stocked, "catt")


def test_a_note_from_another_system_has_plain_line_breaks(stocked):
    assert labels.note(stocked, "cat", "one\r\ntwo\u2028three\rfour").text == "one\ntwo\nthree\nfour"


# history


def test_going_back_deletes_nothing_and_is_an_event(registry):
    for data in (b"one", b"two", b"three"):
        registry.add("my_dog", data, DOG, new_version=True)
    assert history.rollback(registry, "my_dog").version == 2
    assert history.rollback(registry, "my_dog").version == 1
    assert registry.read("my_dog") == b"one" and len(registry.versions("my_dog")) == 3
    with pytest.raises(ConceptError, match="nothing to go back to"):
        history.rollback(registry, "my_dog")
    with pytest.raises(ConceptError, match="already"):
        history.rollback(registry, "my_dog", 1)
    assert history.rollback(registry, "my_dog@3").version == 3
    assert registry.add("my_dog", b"four", DOG, new_version=True).version == 4
    told = [(event.event, event.version) for event in history.history(registry, "my_dog")]
    assert told == [
        *[("add", 1), ("add", 2), ("add", 3), ("rollback", 2), ("rollback", 1)],
        *[("rollback", 3), ("add", 4)],
    ]


def test_a_version_number_is_never_given_out_twice(registry):
    for data in (b"one", b"two"):
        registry.add("my_dog", data, DOG, new_version=True)
    registry.remove("my_dog@2")
    assert registry.add("my_dog", b"three", DOG, new_version=True).version == 3
    registry.remove("my_dog@3")
    assert registry.get("my_dog").version == 1
    assert [event.event for event in history.history(registry, "my_dog")].count("remove") == 2


def test_removing_another_version_leaves_the_name_where_it_points(registry):
    for data in (b"one", b"two", b"three"):
        registry.add("my_dog", data, DOG, new_version=True)
    history.rollback(registry, "my_dog", 1)
    registry.remove("my_dog@3")
    assert registry.get("my_dog").version == 1


def test_removing_the_version_in_use_leaves_the_name_where_it_pointed_before(registry):
    registry.add("my_dog", b"mine", DOG)
    registry.add_many([New("my_dog", b"theirs", DOG, event="pull", origin="remote team")], new_version=True)
    registry.add("my_dog", b"mine again", DOG, new_version=True)
    registry.remove("my_dog@3")
    assert registry.get("my_dog").version == 1 and registry.read("my_dog") == b"mine"


def test_a_new_name_has_no_history_of_a_removed_one(registry):
    registry.add("my_dog", b"one", DOG)
    registry.add("cup", b"two", DOG)
    registry.remove("cup")
    registry.add("teapot", b"three", DOG)
    assert [event.name for event in history.history(registry, "teapot")] == ["teapot"]
    assert [event.event for event in history.history(registry, "cup")] == ["add", "remove"]
    assert history.history(registry, "teapot@1") == history.history(registry, "teapot")
    with pytest.raises(UnknownConcept, match="no version 7"):
        history.history(registry, "teapot@7")


def test_rename(stocked):
    old = stocked.get("my_dog")
    new = history.rename(stocked, "my_dog", "rex")
    assert (new.ref, new.hash) == ("rex@1", old.hash)
    with pytest.raises(UnknownConcept):
        stocked.get("my_dog")
    assert names(search.search(stocked, "rex")) == ["rex"]
    assert [event.event for event in history.history(stocked, "rex")] == ["add", "rename"]
    assert history.history(stocked, "my_dog")[0].event == "add"
    with pytest.raises(NameTaken, match="'cat' is already"):
        history.rename(stocked, "rex", "cat")
    with pytest.raises(BadName):
        history.rename(stocked, "rex", "../rex")
    with pytest.raises(UnknownConcept, match="without a version"):
        history.rename(stocked, "rex@1", "max")
    with pytest.raises(UnknownConcept, match="did you mean 'rex'"):
        history.history(stocked, "rexx")


def test_a_clock_that_goes_backwards_changes_no_order(registry, monkeypatch):
    times = iter(["2030-01-01T00:00:00+00:00", "2020-01-01T00:00:00+00:00", "2025-01-01T00:00:00+00:00"] * 9)
    monkeypatch.setattr("conceptkit.registry.entries.now", lambda: next(times))
    for data in (b"one", b"two", b"three"):
        registry.add("my_dog", data, DOG, new_version=True)
    assert registry.read("my_dog") == b"three"
    assert [event.version for event in history.history(registry, "my_dog")] == [1, 2, 3]
    assert history.rollback(registry, "my_dog").version == 2


def test_a_few_of_some_size_or_day_are_found_without_looking_at_all(registry):
    """However many have the tag: the plan of the listing begins with the few that an index finds."""
    day = "2026-01-0{}T12:00:00+00:00"
    for number, name in enumerate(("small", "middle", "large"), 1):
        registry.add(name, b"x" * 100 * number, DOG)
        labels.tag(registry, name, ["good"])
        with registry.index.writing() as conn:
            conn.execute("update versions set created = ? where name = ?", [day.format(number), name])
    for filters, found in (
        (Filters(tag="good", min_size=150), ["large", "middle"]),
        (Filters(tag="good", min_size=150, max_size=250), ["middle"]),
        (Filters(tag="good", since="2026-01-02", until="2026-01-02"), ["middle"]),
        (Filters(max_size=150), ["small"]),
        (Filters(noun="dog", until="2026-01-02"), ["middle", "small"]),
    ):
        seen = []
        registry.index.conn.set_trace_callback(seen.append)
        assert [entry.name for entry in search.page(registry, filters)] == found
        registry.index.conn.set_trace_callback(None)
        plan = registry.index.query(f"explain query plan {seen[-1]}")
        assert any("versions_bytes" in row[3] or "versions_created" in row[3] for row in plan)
        assert not any(row[3].startswith("SCAN") and "few" not in row[3] for row in plan), plan


def test_the_first_and_the_last_day_there_are_bound_nothing(stocked, monkeypatch):
    for zone in ("Etc/GMT-14", "Etc/GMT+12"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert len(search.page(stocked, Filters(since="0001-01-01", until="9999-12-31"))) == 5
        assert search.page(stocked, Filters(until="0001-01-01")) == []
        assert search.page(stocked, Filters(since="9999-12-31")) == []
    monkeypatch.undo()
    time.tzset()
    with pytest.raises(ConceptError, match="is no date"):
        search.page(stocked, Filters(since="9999-12-32"))


def test_an_index_without_what_makes_it_faster_is_as_whole(home):
    """It gets that when it is opened; where somebody writes, or nothing can be written, it goes without."""
    with Registry(home) as registry:
        registry.add("my_dog", b"x" * 100, DOG)
        with registry.index.writing() as conn:
            for name in FASTER:
                conn.execute(f"drop index {name}")

    def found() -> bool:
        with Registry(home) as registry:
            assert [entry.name for entry in search.page(registry, Filters(min_size=50))] == ["my_dog"]
            there = {row[0] for row in registry.index.query("select name from sqlite_master")}
            return there >= FASTER.keys()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Index, "_open", lambda self: _refuse())
        assert not found()
    writer = sqlite3.connect(home / "index.db", isolation_level=None)
    writer.execute("begin immediate")
    assert not found()
    writer.execute("rollback")
    writer.close()
    assert found()


def _refuse():
    raise sqlite3.OperationalError("attempt to write a readonly database")


# lineage


def test_lineage_survives_renames_and_removals(stocked):
    stocked.add("more", b"m", {"kind": "merge", "parents": ["both@1", "cat@1"]})
    history.rename(stocked, "my_dog", "rex")
    text = "\n".join(lineage.lines(lineage.tree(stocked, "more")))
    assert text == "more@1\n├── both@1\n│   ├── rex@1\n│   └── Moongate@1\n└── cat@1"
    assert lineage.children(stocked, stocked.get("rex")) == ["both@1"]
    stocked.remove("cat")
    assert "└── cat@1 (no longer here)" in "\n".join(lineage.lines(lineage.tree(stocked, "more")))
    stocked.add("cat", b"another cat", DOG)
    assert "cat@1 (no longer here)" in "\n".join(lineage.lines(lineage.tree(stocked, "more"))), "by hash"


# the schema


def test_the_steps_known_without_sqlite_utils_are_the_steps():
    assert tuple(step.name for step in migrations._migrations) == STEPS


def test_an_index_of_the_first_schema_is_carried_over(home):
    from sqlite_utils import Database

    digest = "ab" * 32
    db = Database(home / "index.db")
    migrations.apply(db, stop_before="m002_catalogue")
    row = {"hash": digest, "bytes": 3, "created": "2026-01-01T00:00:00+00:00"}
    summary = json.dumps(DOG | {"parents": ["old@1"]})
    db["versions"].insert_all(
        [
            row | {"name": "old", "version": 1, "summary": json.dumps(DOG), "preview": "cd" * 32},
            row | {"name": "old", "version": 2, "summary": json.dumps(DOG), "preview": None},
            row | {"name": "merged", "version": 1, "summary": summary, "preview": None, "hash": "ef" * 32},
        ]
    )
    db["names"].insert_all([{"name": "old", "version": 2}, {"name": "merged", "version": 1}])
    db.close()
    with Registry(home) as registry:
        assert [entry.ref for entry in registry.list()] == ["merged@1", "old@2"]
        assert registry.get("old@1").preview == "cd" * 32
        assert names(search.search(registry, "dog")) and names(search.page(registry, Filters(noun="dog")))
        assert [event.version for event in history.history(registry, "old")] == [1, 2]
        assert lineage.tree(registry, "merged").parents[0].hash == digest
        assert registry.add("old", b"new", DOG, new_version=True).version == 3


# the commands


def test_the_commands(stocked):
    assert run("tag", "cat", "pets", "--remove", "pets") == "cat: no tags\n"
    assert run("tag", "cat", "pets", "home") == "cat: home, pets\n"
    assert json.loads(run("tag", "cat", "--json")) == ["home", "pets"]
    assert run("tag", "cat@1") == "cat@1: home, pets\n"
    assert "Sleeps" in run("note", "cat", "Sleeps well")
    assert json.loads(run("note", "cat", "--json"))[0]["text"] == "Sleeps well"
    assert run("favourite", "cat") == "cat: favourite\n"
    assert run("search", "sleeps").splitlines()[1].split()[-3:] == ["★", "home", "pets"]
    (shown,) = json.loads(run("search", "sleeps", "--json"))
    assert (shown["name"], shown["tags"], shown["favourite"]) == ("cat", ["home", "pets"], True)
    assert run("search", "zebra").startswith("Nothing has zebra")
    assert len(json.loads(run("list", "--class", "dog", "--min-size", "0.15kB", "--json"))) == 1
    assert run("list", "--tag", "nothing").startswith("No concept is like that")
    assert len(run("list", "--limit", 2).splitlines()) == 3
    assert run("list", "--after", "Moongate", "--limit", 1).splitlines()[1].startswith("my_dog")
    assert run("rename", "cat", "tom") == "cat is now tom@1.\n"
    stocked.add("tom", b"two", DOG, new_version=True)
    assert run("rollback", "tom") == "tom points at version 1 now.\n"
    assert [line.split()[2] for line in run("history", "tom").splitlines()[1:]] == [
        "add",
        "rename",
        "add",
        "rollback",
    ]
    assert len(json.loads(run("history", "tom", "--json"))) == 4
    assert run("lineage", "both").splitlines()[0] == "both@1"
    assert run("lineage", "my_dog").endswith("Merged into both@1.\n")
    assert json.loads(run("lineage", "both", "--json"))["parents"][1]["ref"] == "Moongate@1"
    result = CliRunner().invoke(main, ["list", "--min-size", "big"])
    assert result.exit_code == 2 and "is no size" in result.stderr


def test_a_base_in_a_folder_is_found_by_any_path_to_it(registry, tmp_path, monkeypatch):
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    registry.add("chair", b"chair", {"base_name": str(folder.resolve())})
    monkeypatch.chdir(tmp_path)
    assert "chair" in run("list", "--base", "models/mine") and "chair" in run("list", "--base", str(folder))
    assert "chair" not in run("list", "--base", "storybook")


def test_accents_are_the_same_however_they_are_composed(tmp_path):
    apart, together = "S\u030ca\u0301rka", "\u0160\u00e1rka"
    with Registry(tmp_path) as registry:
        entry = registry.add("my_dog", b"x", DOG)
        assert labels.tag(registry, "my_dog", [apart]) == [together]
        assert (
            search.page(registry, Filters(tag=apart))
            == search.page(registry, Filters(tag=together))
            == [entry]
        )
        assert labels.tag(registry, "my_dog", [], [apart]) == []
        assert labels.note(registry, "my_dog", f"a dog named {apart}").text == f"a dog named {together}"
        assert search.search(registry, apart) == search.search(registry, together) == [entry]
