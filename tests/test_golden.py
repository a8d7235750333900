"""What was learned, stored and drawn by the version that wrote tests/data/v1 is so still, to the last bit.

On another machine or with other libraries numbers are compared by tolerance, and a warning says so. The files
are old ones on purpose: they are read for as long as conceptkit reads concepts at all.
"""

import hashlib
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.commands import run
from tests.golden import api, compare
from tests.golden.cases import CASES, EXPORTS, HOME, MERGED, MERGES, PICTURES
from tests.golden.files import DATA, Golden, export_tensors

FILES = [
    *(f"concepts/{case.name}/{name}" for case in CASES for name in case.concepts),
    *(f"merges/{merging.name}" for merging in MERGES),
]
TOUCHY = (
    "on a pico base another machine's rounding decides how many rows count; storybook's merge is compared"
)


def rows(cases, slow):
    """Parameters by their names, some of them for the slow tests."""
    marks = {True: pytest.mark.slow, False: ()}
    return [pytest.param(case, id=case.name, marks=marks[slow(case)]) for case in cases]


@pytest.fixture(scope="module")
def golden() -> Golden:
    torch.set_num_threads(1)
    return Golden.open()


@pytest.fixture(scope="module")
def exact(golden) -> bool:
    return compare.exact(golden.told)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A home that keeps what merges work out once for a base."""
    return tmp_path_factory.mktemp("shared")


def told(golden: Golden, file: str) -> dict:
    """What golden.json says of a file."""
    kind, _, name = file.partition("/")
    return golden.told[kind][name]


def check(exact: bool, concept, stored) -> None:
    """A concept made now, once it went through its bytes, is the one that was stored."""
    again = api.read(api.written(concept))
    assert api.about(again) == api.about(stored)
    if exact:
        compare.same(api.tensors(again), compare.shas(api.tensors(stored)))
    else:
        compare.near(api.effects(again), api.effects(stored))


@pytest.mark.parametrize("name", sorted({case.base for case in CASES}))
def test_bases_are_the_same(golden, exact, name):
    case = next(case for case in CASES if case.base == name)
    stored = golden.concept(f"concepts/{case.name}/{case.concepts[0]}")
    assert api.distance(stored, name) <= (0 if exact else compare.BASE)


@pytest.mark.parametrize("case", rows(CASES, lambda case: case.slow))
def test_the_same_is_learned(golden, exact, case, tmp_path):
    made = api.learn(case, DATA / "photos", tmp_path)
    assert list(made) == case.concepts
    for name, concept in made.items():
        file = f"concepts/{case.name}/{name}"
        check(exact, concept, golden.concept(file))
        if exact:
            compare.same(api.tensors(concept), told(golden, file)["learned"])


@pytest.mark.parametrize("file", FILES)
def test_stored_files_are_read(golden, file):
    data = golden.path(file).read_bytes()
    entry = told(golden, file)
    assert hashlib.sha256(data).hexdigest() == entry["bytes"], "the stored file itself was changed"
    concept = api.read(data)
    assert api.about(concept) == entry["about"]
    assert compare.digest(api.tensors(concept)) == entry["stored"]
    assert compare.digest(api.tensors(api.read(api.written(concept)))) == entry["stored"]


def test_no_stored_file_is_left_out(golden):
    there = [file.relative_to(DATA).with_suffix("") for file in DATA.glob("[cm]*/**/*.safetensors")]
    assert sorted(map(str, there)) == sorted(FILES)
    assert sorted(golden.told["concepts"]) + sorted(golden.told["merges"]) == sorted(
        file.partition("/")[2] for file in FILES if file.startswith("concepts")
    ) + sorted(merging.name for merging in MERGES)
    pictures = sorted(file.stem for file in DATA.glob("drawn/*.png"))
    assert pictures == sorted(golden.told["pictures"]) == sorted(picture.name for picture in PICTURES)
    assert sorted(file.name for file in DATA.glob("export/*")) == sorted(golden.told["exports"])


@pytest.mark.parametrize("merging", MERGES, ids=lambda merging: merging.name)
def test_stored_concepts_are_merged_as_they_were(golden, exact, merging, shared):
    if merging.touchy and not exact:
        pytest.skip(TOUCHY)
    concept, figures = golden.merged(merging, shared)
    check(exact, concept, golden.concept(f"merges/{merging.name}"))
    entry = told(golden, f"merges/{merging.name}")
    if exact:
        compare.same(figures, entry["report_sha"])
    else:
        numbers = {name: [math.nan if x is None else x for x in row] for name, row in entry["report"].items()}
        compare.near(figures, {name: torch.tensor(row).double() for name, row in numbers.items()})


@pytest.mark.parametrize("picture", rows(PICTURES, lambda picture: picture.slow))
def test_stored_concepts_are_drawn_as_they_were(golden, exact, picture, shared):
    drawn = golden.drawn(picture, shared)
    stored = golden.picture(picture.name)
    wanted = golden.told["pictures"][picture.name]["pixels"]
    assert compare.pixel_sha(stored) == wanted, "the stored picture itself was changed"
    if exact:
        assert compare.pixel_sha(drawn) == wanted
    else:
        compare.near_picture(drawn, stored)


@pytest.mark.parametrize("name", EXPORTS)
def test_stored_concepts_are_exported_as_they_were(golden, name, tmp_path):
    """No number is computed on the way, so that all machines write the same."""
    api.export(golden.concept(EXPORTS[name]), tmp_path / "out")
    wanted, scaled = export_tensors(DATA / "export" / name)
    assert compare.digest(wanted) == golden.told["exports"][name]["tensors"], "a stored file was changed"
    assert scaled == golden.told["exports"][name]["settings"]
    tensors, settings = export_tensors(tmp_path / "out")
    compare.same(tensors, compare.shas(wanted))
    assert settings == scaled


def test_an_old_home_is_opened(golden, home):
    shutil.copytree(DATA / "home", home, dirs_exist_ok=True)
    assert api.contents(home) == golden.told["home"]["contents"]
    assert not api.problems(home)
    listed = run("list")
    assert all(name in listed for name in (*HOME, MERGED))
    versions = {f"{name}@{i}": file for name, files in HOME.items() for i, file in enumerate(files, 1)}
    for ref, file in versions.items():
        assert compare.digest(api.tensors(api.read(api.stored(home, ref)))) == told(golden, file)["stored"]
    merged = api.read(api.stored(home, MERGED))
    assert compare.digest(api.tensors(merged)) == golden.told["home"]["merged"]


def test_a_merge_in_an_old_home_is_rebuilt(exact, home):
    if not exact:
        pytest.skip(TOUCHY)
    shutil.copytree(DATA / "home", home, dirs_exist_ok=True)
    check(exact, api.rebuild(MERGED, "pico", home), api.read(api.stored(home, MERGED)))


def test_an_old_bundle_is_imported(golden, home):
    api.receive(home, DATA / "concepts.bundle")
    assert api.contents(home) == golden.told["home"]["received"]
    assert not api.problems(home)
    assert "my_dog" in run("list")


def test_an_old_home_is_sent_on_as_it_was(golden, home, tmp_path):
    old, received = tmp_path / "old", golden.told["home"]["received"]
    shutil.copytree(DATA / "home", old)
    api.send(old, ["my_dog", MERGED, "looked"], tmp_path / "new.bundle")
    api.receive(home, tmp_path / "new.bundle")
    assert api.contents(home) == received


def test_a_changed_number_is_seen(golden):
    """The comparison itself: the smallest step of one float, and a pixel, are told from what is stored."""
    found = api.tensors(golden.concept("concepts/custom/my_dog"))
    name = next(name for name in found if name.startswith("delta"))
    wanted = compare.shas(found)
    compare.same(found, wanted)
    changed = found[name].clone()
    changed[0, 0] = torch.nextafter(changed[0, 0], torch.tensor(math.inf))
    with pytest.raises(AssertionError, match="1 of"):
        compare.same(found | {name: changed}, wanted)
    assert compare.digest(found | {name: changed}) != compare.digest(found)
    with pytest.raises(AssertionError, match="is off by"):
        compare.near(found | {name: found[name] * (1 + 2 * compare.EACH)}, found)
    with pytest.raises(AssertionError, match=r"(delta|token|rows) is off by"):
        compare.near({each: value * (1 + 2 * compare.ALL) for each, value in found.items()}, found)
    picture = golden.picture("custom-alone").convert("RGB")
    other = picture.copy()
    red, *rest = other.getpixel((0, 0))
    other.putpixel((0, 0), (red + 2 if red < 128 else red - 2, *rest))
    with pytest.raises(AssertionError, match="off by 2"):
        compare.near_picture(other, picture)
