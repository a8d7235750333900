"""Concepts as files: bundles that are whole or refused, single concepts, and whose they are."""

import hashlib
import io
import json
import os
import stat
import sys
import tarfile
from pathlib import Path

import pytest

from conceptkit.concepts.concept import Concept
from conceptkit.errors import BadBlob, BadKey, BadName, ConceptError
from conceptkit.registry import concept_validation
from conceptkit.registry.catalogue import labels, lineage
from conceptkit.registry.sharing import bundle, exchange, incoming, signing
from conceptkit.registry.sharing.incoming import IncomingConcept
from conceptkit.registry.store import Registry
from tests.blobs import PNG, blob, sentence
from tests.tiny import pico_concept, pico_sd, pico_sdxl


def put(registry: Registry, name: str, seed: int = 0, **options):
    data = blob(name, seed)
    return registry.add(name, data, concept_validation.check(data).summary, new_version=True, **options)


def contents(registry: Registry) -> dict[str, set[bytes]]:
    """The bytes of every version of every name, read from the disk."""
    return {
        head.name: {registry.read(entry) for entry in registry.versions(head.name)}
        for head in registry.list()
    }


def bundled(registry: Registry, file: Path, *names: str, **options) -> Path:
    exchange.export(registry, exchange.chosen(registry, names, every=True), file, **options)
    return file


def remade(file: Path, change) -> bytes:
    """The bytes of a bundle whose manifest is `change`d, all headers and hashes right for that."""
    with file.open("rb") as handle:
        announced = bundle.read(handle)
        blobs = {digest: part.read() for digest, part in bundle.parts(handle, announced).items()}
    manifest = json.loads(announced.manifest)
    change(manifest, blobs)
    text = bundle.dumps(manifest)
    out = io.BytesIO()
    bundle._put(out, bundle.MANIFEST, text)
    for digest, _ in manifest["blobs"]:
        bundle._put(out, bundle._path(digest), blobs.get(digest, b""))
    out.write(bytes(1024))
    return out.getvalue()


# what goes in comes out


def test_a_bundle_carries_versions_previews_tags_and_notes(mine, yours, tmp_path):
    put(mine, "my_dog", 1)
    put(mine, "my_dog", 2)
    put(mine, "moongate")
    mine.set_preview("my_dog", 2, PNG)
    labels.tag(mine, "my_dog", ["pets", "teal"])
    labels.note(mine, "my_dog", "the good one\nof two")
    done = exchange.import_file(yours, bundled(mine, tmp_path / "team.bundle", "my_dog", "moongate"))
    assert contents(yours) == contents(mine)
    assert [arrival.sentence() for arrival in done.arrivals] == [
        "my_dog@1 is new.",
        "my_dog@2 is new.",
        "moongate@1 is new.",
    ]
    assert yours.preview("my_dog@2") == PNG and yours.preview("my_dog@1") is None
    assert labels.tag(yours, "my_dog") == ["pets", "teal"]
    assert [note.text for note in labels.notes(yours, "my_dog")] == ["the good one\nof two"]
    for one, other in zip(mine.versions("my_dog"), yours.versions("my_dog"), strict=True):
        assert (one.hash, one.summary, one.created) == (other.hash, other.summary, other.created)


def test_versions_with_equal_bytes_are_one_to_whoever_receives_them(mine, yours, tmp_path):
    put(mine, "my_dog", 1)
    mine.set_preview("my_dog", 1, PNG)
    put(mine, "my_dog", 2)
    put(mine, "my_dog", 1)
    entries = exchange.chosen(mine, ["my_dog"], every=True)
    done = exchange.export(mine, entries, tmp_path / "team.bundle")
    assert [entry.version for entry in done.entries] == [2, 3]
    exchange.import_file(yours, tmp_path / "team.bundle")
    assert yours.read("my_dog") == mine.read("my_dog") and len(yours.versions("my_dog")) == 2


def test_importing_again_changes_nothing(mine, yours, tmp_path):
    put(mine, "my_dog")
    labels.note(mine, "my_dog", "good")
    file = bundled(mine, tmp_path / "b", "my_dog")
    exchange.import_file(yours, file)
    again = exchange.import_file(yours, file)
    assert [arrival.sentence() for arrival in again.arrivals] == ["my_dog@1 is here already."]
    assert len(yours.versions("my_dog")) == len(labels.notes(yours, "my_dog")) == 1


def test_a_preview_that_comes_later_arrives_with_the_same_key(mine, yours, tmp_path):
    put(mine, "my_dog")
    key = signing.create(mine.home, "me")
    signing.trust(yours.home, "alice", key.public)
    exchange.import_file(yours, bundled(mine, tmp_path / "b", "my_dog", signer=""))
    mine.set_preview("my_dog", 1, PNG)
    exchange.import_file(yours, bundled(mine, tmp_path / "b", "my_dog", signer=""))
    assert yours.preview("my_dog") == PNG


def test_two_bundles_with_the_same_name_and_other_content(mine, yours, tmp_path):
    put(mine, "my_dog", 1)
    put(yours, "my_dog", 2)
    files = [bundled(registry, tmp_path / str(i), "my_dog") for i, registry in enumerate((mine, yours))]
    with Registry(tmp_path / "third") as third:
        exchange.import_file(third, files[0])
        (arrival,) = exchange.import_file(third, files[1]).arrivals
        assert "my_dog@2 is new; my_dog was here with other content, both are kept" in arrival.sentence()
        assert contents(third) == {"my_dog": {blob("my_dog", 1), blob("my_dog", 2)}}


def test_a_name_follows_those_it_came_from(mine):
    old = IncomingConcept("my_dog", blob("my_dog", 1), "2020-01-01T00:00:00+00:00")
    new = IncomingConcept("my_dog", blob("my_dog", 2), "2021-01-01T00:00:00+00:00")
    for parcel in (old, new):
        incoming.receive(mine, [parcel], "pull", origin="remote team")
        assert mine.read("my_dog") == parcel.data
    late = IncomingConcept("my_dog", blob("my_dog", 3), "9999-01-01T00:00:00+00:00")
    (arrival,) = incoming.receive(mine, [late], "pull", origin="remote other")
    assert mine.read("my_dog") == new.data and not arrival.points
    assert arrival.entry.created < "9998", "nobody can claim to be the newest for ever"


def test_a_name_means_here_what_it_meant_there(mine, yours, tmp_path):
    """A merge's parent that was learned again since, and an old version that was asked for, come before."""
    old = put(mine, "my_dog", 1)
    data = blob("both", kind="merge", provenance={"parents": [old.ref], "parent_sha256": [old.hash]})
    mine.add("both", data, concept_validation.check(data).summary)
    put(mine, "my_dog", 2)
    for names in (["my_dog", "both"], ["my_dog", "my_dog@1"]):
        chosen = exchange.chosen(mine, names, parents=True)
        assert {entry.ref for entry in chosen} >= {"my_dog@1", "my_dog@2"}
        exchange.export(mine, chosen, tmp_path / names[1])
        with Registry(tmp_path / f"home {names[1]}") as there:
            exchange.import_file(there, tmp_path / names[1])
            assert there.read("my_dog") == blob("my_dog", 2)


def test_parents_of_every_version_come_along(mine):
    for name, part in (("first", put(mine, "my_dog")), ("second", put(mine, "moongate"))):
        told = {"parents": [part.ref], "parent_sha256": [part.hash]}
        data = blob("both", kind="merge", provenance=told, noun=name)
        mine.add("both", data, concept_validation.check(data).summary, new_version=True)
    found = exchange.chosen(mine, ["both"], every=True, parents=True)
    assert {entry.ref for entry in found} == {"both@1", "both@2", "my_dog@1", "moongate@1"}


def test_parents_come_along_when_asked_for(mine, yours, tmp_path):
    dog, gate = put(mine, "my_dog"), put(mine, "moongate")
    parents = {"parents": [dog.ref, gate.ref], "parent_sha256": [dog.hash, gate.hash]}
    data = blob("both", kind="merge", provenance=parents)
    mine.add("both", data, concept_validation.check(data).summary)
    alone = exchange.chosen(mine, ["both"])
    family = exchange.chosen(mine, ["both"], parents=True)
    assert [entry.ref for entry in alone] == ["both@1"]
    assert {entry.ref for entry in family} == {"both@1", "my_dog@1", "moongate@1"}
    exchange.export(mine, family, tmp_path / "b")
    put(yours, "my_dog", 7)  # another dog of that name
    exchange.import_file(yours, tmp_path / "b")
    tree = lineage.tree(yours, "both")
    assert {node.hash for node in tree.parents} == {dog.hash, gate.hash}
    assert not any(node.gone for node in tree.parents)


@pytest.mark.parametrize("build", [pico_sd, pico_sdxl])
@pytest.mark.parametrize("options", [{"rank": 2, "vectors": 2}, {"rank": 0}])
def test_what_is_learned_passes_the_check(build, options):
    concept = pico_concept(build(), **options)
    header = concept_validation.check(concept.to_bytes())
    assert header.name == concept.name
    assert {key: header.summary[key] for key in concept.summary()} == concept.summary()


def test_a_single_concept_file_is_taken_too(yours, tmp_path):
    concept = pico_concept(pico_sd())
    (tmp_path / "x.safetensors").write_bytes(concept.to_bytes())
    (arrival,) = exchange.import_file(yours, tmp_path / "x.safetensors").arrivals
    assert arrival.entry.name == concept.name
    assert Concept.from_bytes(yours.read(arrival.entry)).name == concept.name


def test_a_single_concept_with_an_impossible_name(yours, tmp_path):
    (tmp_path / "x").write_bytes(blob("../../etc/passwd"))
    with pytest.raises(BadName):
        exchange.import_file(yours, tmp_path / "x")


# the file


def test_the_same_concepts_are_the_same_bytes_and_any_tar_program_reads_them(mine, tmp_path):
    put(mine, "my_dog", 1)
    put(mine, "moongate", 2)
    one = bundled(mine, tmp_path / "one", "my_dog", "moongate")
    two = bundled(mine, tmp_path / "two", "my_dog", "moongate")
    assert one.read_bytes() == two.read_bytes()
    assert stat.S_IMODE(one.stat().st_mode) == 0o600
    with tarfile.open(one) as archive:
        assert archive.getnames()[0] == "manifest.json" and len(archive.getnames()) == 3
        for member in archive.getmembers()[1:]:
            data = archive.extractfile(member).read()
            assert member.name.removeprefix("blobs/").replace("/", "") == hashlib.sha256(data).hexdigest()


def test_every_half_copied_bundle_is_refused(mine, yours, tmp_path):
    put(mine, "my_dog")
    whole = bundled(mine, tmp_path / "b", "my_dog").read_bytes()
    for length in [0, 1, 100, 511, 512, *range(513, len(whole), 97), len(whole) - 1]:
        (tmp_path / "half").write_bytes(whole[:length])
        with pytest.raises(BadBlob) as caught:
            exchange.import_file(yours, tmp_path / "half")
        sentence(caught.value)
    (tmp_path / "half").write_bytes(whole + b"\0")
    with pytest.raises(BadBlob, match="something follows its end"):
        exchange.import_file(yours, tmp_path / "half")
    (tmp_path / "half").write_bytes(whole[:-700])
    with pytest.raises(BadBlob, match=r"only [\d,]+ of its [\d,]+ bytes are there.*copy it again"):
        exchange.import_file(yours, tmp_path / "half")
    assert yours.list() == []


def test_every_changed_byte_is_noticed(mine, yours, tmp_path):
    put(mine, "my_dog")
    mine.set_preview("my_dog", 1, PNG)
    whole = bytearray(bundled(mine, tmp_path / "b", "my_dog").read_bytes())
    for place in range(0, len(whole), 41):
        changed = bytes(whole[:place]) + bytes([whole[place] ^ 1]) + bytes(whole[place + 1 :])
        try:
            found = exchange.from_bytes(changed, yours.home)
        except ConceptError:
            continue
        # only what was said of it is not covered by a hash; that is what signatures are for
        assert [parcel.data for parcel in found] == [blob("my_dog")], place


def link(name: str, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_a_tar_with_anything_else_in_it_is_refused(mine, yours, tmp_path):
    put(mine, "my_dog")
    file = bundled(mine, tmp_path / "b", "my_dog")
    with tarfile.open(file) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive.getmembers()]
    elsewhere = tarfile.TarInfo("../../outside")
    elsewhere.size = len(members[1][1])
    for name, order in {
        "traversal": [members[0], (elsewhere, members[1][1])],
        "link": [members[0], (link(members[1][0].name), b"")],
        "link first": [(link("manifest.json"), b""), *members],
        "twice": [*members, members[1]],
        "other order": [members[1], members[0]],
        "more": [*members, (elsewhere, members[1][1])],
    }.items():
        with tarfile.open(tmp_path / "evil", "w", format=tarfile.USTAR_FORMAT) as archive:
            for info, data in order:
                archive.addfile(info, io.BytesIO(data))
        with pytest.raises(ConceptError) as caught:
            exchange.import_file(yours, tmp_path / "evil")
        sentence(caught.value)
        assert yours.list() == [], name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "evil", "mine", "yours"]


def nested(manifest, blobs):
    manifest["concepts"] = 1
    for _ in range(50):
        manifest["concepts"] = [manifest["concepts"]]


def drop_blob(manifest, blobs):
    manifest["blobs"].clear()


def bad_name(name):
    return lambda manifest, _: manifest["concepts"][0].update(name=name)


@pytest.mark.parametrize(
    "change",
    [
        nested,
        drop_blob,
        *map(bad_name, ["../x", "", "a/b", "a\nb", "x" * 300, 7, None, "'; drop table names; --"]),
        lambda manifest, _: manifest["concepts"].append(manifest["concepts"][0]),
        lambda manifest, _: manifest["concepts"][0]["versions"].append(
            manifest["concepts"][0]["versions"][0]
        ),
        lambda manifest, _: manifest["concepts"][0].update(versions=[]),
        lambda manifest, _: manifest["concepts"][0].update(tags=["\x1b[2J"]),
        lambda manifest, _: manifest["concepts"][0].update(tags=["no spaces"]),
        lambda manifest, _: manifest["concepts"][0].update(notes=["\x1b[2J"]),
        lambda manifest, _: manifest["concepts"][0].update(notes=["x" * 20_000]),
        lambda manifest, _: manifest["concepts"][0].update(notes=[f"note {i}" for i in range(2000)]),
        lambda manifest, _: manifest["concepts"][0]["versions"][0].update(created="yesterday"),
        lambda manifest, _: manifest["concepts"][0]["versions"][0].update(created="2020-01-01T00:00:00"),
        lambda manifest, _: manifest["concepts"][0]["versions"][0].update(hash="../../../etc/passwd"),
        lambda manifest, _: manifest["concepts"][0]["versions"][0].update(
            preview=manifest["concepts"][0]["versions"][0]["hash"]
        ),
        lambda manifest, _: manifest["concepts"][0].update(more=1),
        lambda manifest, _: manifest.update(format=2),
        lambda manifest, _: manifest.update(conceptkit="something else"),
        lambda manifest, _: manifest["blobs"].append(["0" * 64, 1 << 62]),
        lambda manifest, _: manifest["blobs"].append(["../" * 20 + "0" * 4, 1]),
        lambda manifest, _: manifest["blobs"].append(manifest["blobs"][0]),
    ],
)
def test_a_manifest_that_says_anything_odd_is_refused_whole(mine, yours, tmp_path, change):
    put(mine, "a_good_one")
    put(mine, "my_dog")
    file = bundled(mine, tmp_path / "b", "my_dog", "a_good_one")
    file.write_bytes(remade(file, lambda *_: None))
    assert len(exchange.from_bytes(file.read_bytes(), yours.home)) == 2
    file.write_bytes(remade(file, change))
    with pytest.raises(ConceptError) as caught:
        exchange.import_file(yours, file)
    sentence(caught.value)
    assert yours.list() == [] and not list(yours.blobs.glob("??/*"))


def test_one_bad_concept_keeps_out_the_others(mine, yours, tmp_path):
    put(mine, "my_dog")
    mine.add("odd", b"not a concept", {})
    with pytest.raises(BadBlob, match="odd@1 cannot be shared"):
        bundled(mine, tmp_path / "b", "my_dog", "odd")
    assert not (tmp_path / "b").exists()
    good = IncomingConcept("my_dog", blob("my_dog"))
    with pytest.raises(BadBlob):
        incoming.receive(yours, [good, IncomingConcept("odd", b"not a concept")], "import")
    assert yours.list() == []


def test_what_is_no_file_is_one_sentence(mine, yours, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(ConceptError, match="name a bundle or a concept") as caught:
            exchange.import_file(yours, path)
        sentence(caught.value)
    put(mine, "my_dog")
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "b", Path("/proc/none/b"), tmp_path / ("x" * 300)):
        with pytest.raises(ConceptError) as caught:
            bundled(mine, path, "my_dog")
        sentence(caught.value)


def test_a_failed_export_leaves_the_old_file(mine, tmp_path, monkeypatch):
    put(mine, "my_dog")
    bundled(mine, tmp_path / "b", "my_dog")
    precious = (tmp_path / "b").read_bytes()
    put(mine, "my_dog", seed=1)
    monkeypatch.setattr("conceptkit.registry.atomic_files.os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bundled(mine, tmp_path / "b", "my_dog")
    assert (tmp_path / "b").read_bytes() == precious
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "mine"]


# keys


@pytest.fixture
def signed(mine, tmp_path):
    pytest.importorskip("cryptography")
    put(mine, "my_dog")
    key = signing.create(mine.home, "me")
    return key, bundled(mine, tmp_path / "signed", "my_dog", signer="")


def test_a_signed_bundle_says_whose_it_is(mine, yours, signed):
    key, file = signed
    assert stat.S_IMODE((mine.home / "keys" / "me.key").stat().st_mode) == 0o600
    stranger = exchange.import_file(yours, file).signer
    assert stranger == signing.Signer(key.public, None) and not stranger.trusted
    with pytest.raises(ConceptError, match="do not trust.*keys trust NAME ck-ed25519:") as caught:
        exchange.import_file(yours, file, require_signed=True)
    sentence(caught.value)
    signing.trust(yours.home, "alice", key.public)
    assert (
        exchange.import_file(yours, file, require_signed=True).signer.sentence() == "It is signed by alice."
    )
    assert exchange.import_file(mine, file, require_signed=True).signer.name == "me"
    signing.distrust(yours.home, "alice")
    with pytest.raises(ConceptError, match="do not trust"):
        exchange.import_file(yours, file, require_signed=True)


def test_unsigned_bundles_are_refused_where_signed_ones_are_required(mine, yours, tmp_path):
    put(mine, "my_dog")
    with pytest.raises(ConceptError, match="not signed") as caught:
        exchange.import_file(yours, bundled(mine, tmp_path / "b", "my_dog"), require_signed=True)
    sentence(caught.value)
    assert yours.list() == []


def test_a_changed_bundle_is_refused_whether_or_not_a_signature_is_required(mine, yours, signed, tmp_path):
    _, file = signed
    data = file.read_bytes()
    for old, new in ((b'"my_dog"', b'"my_cat"'), (b'"signature":"', b'"signature":"A')):
        assert old in data
        changed = data.replace(old, new)[: len(data)] if len(old) == len(new) else data
        if len(old) != len(new):
            place = data.index(old) + len(old)
            changed = data[:place] + (b"B" if data[place : place + 1] == b"A" else b"A") + data[place + 1 :]
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(BadBlob, match="signature is wrong"):
            exchange.import_file(yours, tmp_path / "changed")
    assert yours.list() == []


def test_keys_that_are_none(mine, tmp_path):
    pytest.importorskip("cryptography")
    put(mine, "my_dog")
    with pytest.raises(BadKey, match="conceptkit keys create"):
        bundled(mine, tmp_path / "b", "my_dog", signer="")
    key = signing.create(mine.home, "me")
    signing.create(mine.home, "work")
    with pytest.raises(BadKey, match="several.*me, work"):
        bundled(mine, tmp_path / "b", "my_dog", signer="")
    with pytest.raises(BadKey, match="no key 'you'"):
        bundled(mine, tmp_path / "b", "my_dog", signer="you")
    bundled(mine, tmp_path / "b", "my_dog", signer="work")
    for wrong in ("", "x", key.public[:-2], "ssh-ed25519 AAAA"):
        with pytest.raises(BadKey, match="no public key"):
            signing.trust(mine.home, "bob", wrong)
    with pytest.raises(BadKey, match="already, as 'me'"):
        signing.trust(mine.home, "myself", key.public)
    with pytest.raises(BadKey, match="here already"):
        signing.create(mine.home, "me")
    (mine.home / "keys" / "me.key").write_text("nonsense")
    with pytest.raises(BadKey, match="damaged") as caught:
        signing.keys(mine.home)
    sentence(caught.value)


def test_a_missing_library_is_named(mine, yours, signed, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(ConceptError, match=r"pip install 'conceptkit\[signing\]'") as caught:
        signing.create(mine.home, "again")
    sentence(caught.value)
    with pytest.raises(ConceptError, match=r"pip install"):
        exchange.import_file(yours, signed[1])
