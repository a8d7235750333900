"""What leaves a machine: hashes, not the path of its base and not the names of its photos."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conceptkit.concepts.concept import Concept, read
from conceptkit.formats import diffusers
from conceptkit.registry import concept_validation, private_names
from conceptkit.registry.sharing import exchange, locations, sync
from conceptkit.registry.sharing.remote import Remote
from conceptkit.workflows.compose import _public
from tests.blobs import blob, sentence
from tests.commands import run
from tests.tiny import pico_concept, pico_sd

BASE = "/home/me/secret clients/sd15"
PHOTOS = ["Anna 1.jpg", "Anna 2.jpg"]


@pytest.fixture(scope="module")
def learned() -> Concept:
    told = {"photos": PHOTOS, "photos_sha256": "a" * 64, "seed": 0}
    return replace(pico_concept(pico_sd(), "my_dog"), base_name=BASE, provenance=told)


@pytest.fixture
def stored(registry, learned):
    registry.add("my_dog", learned.to_bytes(), learned.summary())
    return registry


def secrets(data: bytes) -> list[str]:
    return [secret for secret in ("/home/me", "secret", "Anna") if secret.encode() in data]


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("storybook", "storybook"),
        ("user/model", "user/model"),
        (BASE, "sd15"),
        ("C:\\Users\\me\\sd15", "sd15"),
        ("~/sd15/", "sd15"),
        ("../sd15", "sd15"),
        ("\\\\server\\share\\models\\sd15", "sd15"),
        ("/", "base"),
    ],
)
def test_of_a_folder_its_name_alone_is_public(name, public):
    assert private_names.public_base(name) == public


def test_bytes_hold_hashes_and_the_index_holds_names(stored, learned):
    assert secrets(learned.to_bytes()) == [] and b"a" * 64 in learned.to_bytes()
    assert Concept.from_bytes(learned.to_bytes()).base_name == "sd15"
    summary = stored.get("my_dog").summary
    assert summary["base_name"] == BASE and summary["photos"] == PHOTOS
    known = read(stored, "my_dog")
    assert known.base_name == BASE and known.provenance["photos"] == PHOTOS
    assert known.to_bytes() == learned.to_bytes()
    for name, tensor in Concept.from_bytes(learned.to_bytes()).delta.items():
        assert all(
            (one == other.half().float()).all() or (one == other).all()
            for one, other in zip(tensor, learned.delta[name], strict=True)
        )


@pytest.mark.parametrize("with_names", [False, True])
def test_files_for_others_hold_names_only_when_asked_for(stored, tmp_path, with_names):
    files = diffusers.export(read(stored, "my_dog"), tmp_path / "out", with_names=with_names)
    found = [secret for file in files for secret in secrets(file.read_bytes())]
    assert set(found) == ({"/home/me", "secret", "Anna"} if with_names else set())


def test_a_bundle_and_a_remote_hold_no_names(stored, tmp_path):
    text = run("export", "my_dog", "--bundle", tmp_path / "b")
    assert "of photos the hashes alone" in text
    with Remote("usb", locations.parse(str(tmp_path / "usb"))) as remote:
        remote.prepare()
        assert sync.push(stored, remote).private == {}
    for file in [tmp_path / "b", *Path(tmp_path / "usb").rglob("*")]:
        assert file.is_dir() or secrets(file.read_bytes()) == []


def test_an_older_concept_that_tells_of_this_machine_is_announced(registry, tmp_path):
    data = blob("my_dog", base_name=BASE, provenance={"photos": PHOTOS, "seed": 0})
    registry.add("my_dog", data, concept_validation.check(data).summary)
    done = exchange.export(registry, exchange.chosen(registry, ["my_dog"]), tmp_path / "b")
    assert done.private == {"my_dog@1": ["the path of its base", "the names of its photos"]}
    assert "my_dog@1" in private_names.sentence(done.private)
    sentence(ValueError(private_names.sentence(done.private)))
    with Remote("usb", locations.parse(str(tmp_path / "usb"))) as remote:
        remote.prepare()
        assert sync.push(registry, remote).private == done.private
        assert sync.push(registry, remote).private == {}
    assert json.dumps(done.to_json())


def test_a_picture_names_a_mask_by_its_file_alone():
    regions = ["my_dog=/home/me/masks/dog.png", "gate=left", "cup=C:\\me\\cup.png"]
    assert _public({"regions": regions}) == {"regions": ["my_dog=dog.png", "gate=left", "cup=cup.png"]}
    assert _public({"auto_regions": True}) == {"auto_regions": True}
