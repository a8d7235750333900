"""Pushing to and pulling from folders, a real sshd and a real S3 server; and remotes that lie or go away."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from conceptkit.cli.main import main
from conceptkit.errors import BadRemote, ConceptError, UnknownConcept
from conceptkit.registry import concept_validation
from conceptkit.registry.catalogue import labels
from conceptkit.registry.sharing import incoming, locations, remote_config, sync
from conceptkit.registry.sharing import remote as rooms
from conceptkit.registry.sharing.incoming import IncomingConcept
from conceptkit.registry.sharing.remote import Remote
from conceptkit.registry.store import Registry
from tests import servers
from tests.blobs import PNG, blob, sentence


@pytest.fixture(params=["folder", "sftp", "s3"])
def place(request, tmp_path, monkeypatch):
    """(address, options) of an empty remote of each kind that is tested against the real thing."""
    if request.param == "folder":
        yield str(tmp_path / "remote"), {}
    elif request.param == "sftp":
        with servers.sshd(tmp_path / "sshd") as running:
            yield running.url(tmp_path / "remote"), running.options
    else:
        with servers.s3(monkeypatch) as (url, options):
            yield url, options


@pytest.fixture
def folder(tmp_path):
    remote_config.add(tmp_path / "mine", "team", str(tmp_path / "remote"))
    return tmp_path / "remote"


def team(registry: Registry) -> Remote:
    return Remote("team", remote_config.find(registry.home, "team"))


def at(folder: Path) -> Remote:
    return Remote("team", locations.parse(str(folder)))


def put(registry: Registry, name: str, seed: int = 0) -> None:
    data = blob(name, seed)
    registry.add(name, data, concept_validation.check(data).summary, new_version=True)


def contents(registry: Registry) -> dict[str, set[bytes]]:
    return {
        head.name: {registry.read(entry) for entry in registry.versions(head.name)}
        for head in registry.list()
    }


def refused(call, *match: str) -> str:
    with pytest.raises(ConceptError) as caught:
        call()
    sentence(caught.value)
    for part in match:
        assert part in str(caught.value)
    return str(caught.value)


# every kind of remote


def test_what_is_pushed_is_pulled(mine, yours, place):
    put(mine, "my_dog", 1)
    put(mine, "my_dog", 2)
    put(mine, "moongate")
    mine.set_preview("my_dog", 2, PNG)
    labels.tag(mine, "my_dog", ["teal"])
    labels.note(mine, "my_dog", "good")
    put(yours, "my_dog", 7)
    for registry in (mine, yours):
        remote_config.add(registry.home, "team", *place)
    with team(mine) as remote:
        sent = sync.push(mine, remote).sent
        assert [one.new for one in sent] == [True] * 3
        assert not any(one.new for one in sync.push(mine, remote).sent)
    with team(yours) as remote:
        arrived = sync.pull(yours, remote)
        assert [arrival.new for arrival in arrived.arrivals] == [True] * 3 and not arrived.refused
        assert contents(yours)["my_dog"] == {blob("my_dog", seed) for seed in (1, 2, 7)}
        assert yours.get("my_dog@1").hash == hashlib.sha256(blob("my_dog", 7)).hexdigest()
        assert yours.read("my_dog") == blob("my_dog", 7) and labels.tag(yours, "my_dog") == []
        sync.pull(yours, remote, take=True)
        assert yours.read("my_dog") == blob("my_dog", 2)
        assert labels.tag(yours, "my_dog") == ["teal"] and labels.notes(yours, "my_dog")[0].text == "good"
        pictures = [yours.preview(entry) for entry in yours.versions("my_dog")]
        assert pictures.count(PNG) == 1
        assert not any(arrival.new for arrival in sync.pull(yours, remote).arrivals)
        assert [one.entry.ref for one in sync.push(yours, remote).sent if one.new] == ["my_dog@1"]
    with team(mine) as remote:
        sync.pull(mine, remote)
    assert contents(mine) == contents(yours)
    assert mine.read("my_dog") == blob("my_dog", 2), "a name means what its owner made"


def test_a_remote_that_disappears_half_way(mine, yours, place, tmp_path, monkeypatch):
    for seed in range(4):
        put(mine, f"dog{seed}", seed)
    for registry in (mine, yours):
        remote_config.add(registry.home, "team", *place)
    calls = []
    write = Remote.write

    def breaking(self, path, data):
        calls.append(path)
        if len(calls) == 4:
            self.fs.open = self.fs.pipe_file = gone
        write(self, path, data)

    def gone(*_, **__):
        raise ConnectionResetError("the line went dead")

    with monkeypatch.context() as patch, team(mine) as remote:
        patch.setattr(Remote, "write", breaking)
        refused(lambda: sync.push(mine, remote), "'team'", "the line went dead", "try again")
    with team(yours) as remote:
        assert [arrival.entry.name for arrival in sync.pull(yours, remote).arrivals] == ["dog0"]
    with team(mine) as remote:
        assert [one.new for one in sync.push(mine, remote).sent] == [False, True, True, True]
    with team(yours) as remote:
        sync.pull(yours, remote)
    assert contents(mine) == contents(yours)


def test_two_who_push_at_once_lose_nothing(tmp_path, place):
    homes = [tmp_path / f"home{i}" for i in range(3)]
    for number, home in enumerate(homes):
        with Registry(home) as registry:
            for seed in range(2):
                put(registry, "shared", 10 * number + seed)
        remote_config.add(home, "team", *place)
    errors = []

    def work(home):
        try:
            with Registry(home) as registry, team(registry) as remote:
                sync.push(registry, remote)
        except Exception as error:
            errors.append(error)

    threads = [Thread(target=work, args=[home]) for home in homes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with Registry(tmp_path / "reader") as registry, Remote("team", locations.parse(*place)) as remote:
        sync.pull(registry, remote)
        wanted = {blob("shared", 10 * number + seed) for number in range(3) for seed in range(2)}
        assert contents(registry) == {"shared": wanted}


# servers that are switched off, or are not who they say


def test_an_ssh_server_that_is_switched_off_half_way(mine, yours, tmp_path, monkeypatch):
    with servers.sshd(tmp_path / "sshd") as running:
        for registry in (mine, yours):
            remote_config.add(registry.home, "team", running.url(tmp_path / "remote"), running.options)
        put(mine, "my_dog")
        put(mine, "teapot")
        with team(mine) as remote:
            sync.push(mine, remote)
        read = Remote.read

        def once(self, path, *rest):
            if path.startswith("blobs/") and yours.list():
                running.stop()
            return read(self, path, *rest)

        monkeypatch.setattr(Remote, "read", once)
        with team(yours) as remote:
            refused(lambda: sync.pull(yours, remote), "'team'")
        assert contents(yours) == {"my_dog": {blob("my_dog")}}, (
            "what had arrived is whole, the rest is not there"
        )
        refused(lambda: sync.pull(yours, team(yours)), "'team'")


def test_an_ssh_server_with_another_host_key_is_not_believed(mine, tmp_path):
    with servers.sshd(tmp_path / "sshd") as running:
        (tmp_path / "known").write_text("")
        options = running.options | {"known_hosts": str(tmp_path / "known")}
        url = running.url(tmp_path / "remote")
        refused(lambda: remote_config.add(mine.home, "team", url, options), "host key", "log in there once")
        options = running.options | {"known_hosts": str(tmp_path / "none")}
        refused(lambda: remote_config.add(mine.home, "team", url, options), "host key")
    assert remote_config.load(mine.home) == {} and not (tmp_path / "remote").exists()


def test_an_s3_server_that_is_not_there(mine, monkeypatch):
    pytest.importorskip("s3fs")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "testing")
    options = {"endpoint_url": f"http://127.0.0.1:{servers.free_port()}", "region": "us-east-1"}
    refused(lambda: remote_config.add(mine.home, "team", "s3://team/x", options), "'team'")


def test_a_bucket_that_is_not_there(mine, monkeypatch):
    with servers.s3(monkeypatch) as (_, options):
        refused(lambda: remote_config.add(mine.home, "team", "s3://nobody/x", options), "'team'")


# folders: what is there, and what may be there


def test_a_remote_holds_nothing_but_hashes(mine, folder):
    put(mine, "my_dog")
    mine.set_preview("my_dog", 1, PNG)
    sync.push(mine, team(mine))
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "conceptkit.json":
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            assert file.stem == digest or file.parent.name + file.name == digest
    assert not list((folder / "incoming").iterdir())


def test_records_and_blobs_that_lie_are_refused_and_the_rest_arrives(mine, yours, folder, tmp_path):
    put(mine, "good")
    sync.push(mine, team(mine))
    (good,) = (folder / "concepts" / "good").iterdir()
    honest = json.loads(good.read_bytes())

    def plant(where: str, file: str | None = None, **changes) -> Path:
        text = json.dumps(honest | {"name": where} | changes).encode()
        target = folder / "concepts" / where / (file or f"{hashlib.sha256(text).hexdigest()}.json")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(text)
        return target

    plant("traversal", hash="../../../../etc/passwd")
    plant("huge", bytes=1 << 40)
    plant("negative", bytes=-1)
    plant("missing", hash="0" * 64)
    plant("other", name="good")
    plant("extra", surprise=1)
    plant("newer", format=2)
    plant("tags", tags=["\x1b[2J"])
    plant("dated", created="tomorrow")
    plant("preview", preview=[honest["hash"], honest["bytes"]])
    plant("unhashed", file="0" * 64 + ".json")  # as good as none: its bytes are not its name
    plant("a.b")
    plant("good", file="notes.txt")
    wrong = hashlib.sha256(b"promised").hexdigest()
    (folder / "blobs" / wrong[:2]).mkdir(exist_ok=True)
    (folder / "blobs" / wrong[:2] / wrong[2:]).write_bytes(b"sent....")
    plant("swapped", hash=wrong, bytes=8)
    unsafe = b"not a concept"
    digest = hashlib.sha256(unsafe).hexdigest()
    (folder / "blobs" / digest[:2]).mkdir(exist_ok=True)
    (folder / "blobs" / digest[:2] / digest[2:]).write_bytes(unsafe)
    plant("unsafe", hash=digest, bytes=len(unsafe))
    link = hashlib.sha256(b"secret").hexdigest()
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "blobs" / link[:2]).mkdir(exist_ok=True)
    (folder / "blobs" / link[:2] / link[2:]).symlink_to(tmp_path / "secret")
    plant("linked", hash=link, bytes=6)
    pipe = hashlib.sha256(b"pipe").hexdigest()
    (folder / "blobs" / pipe[:2]).mkdir(exist_ok=True)
    os.mkfifo(folder / "blobs" / pipe[:2] / pipe[2:])
    plant("piped", hash=pipe, bytes=4)
    (folder / "concepts" / "loop").symlink_to(folder / "concepts")

    result = sync.pull(yours, at(folder))
    assert contents(yours) == {"good": {blob("good")}}
    names = {text.partition(" ")[0] for text in result.refused}
    assert names == {
        *("traversal", "huge", "negative", "missing", "other", "extra", "newer", "tags", "dated", "preview"),
        *("swapped", "unsafe", "linked", "piped"),
    }
    for text in result.refused:
        sentence(ConceptError(text))
    for name in ("traversal", "huge", "missing"):
        with pytest.raises(UnknownConcept):
            yours.get(name)


def test_a_link_in_a_remote_does_not_lead_a_push_out_of_it(mine, folder, tmp_path):
    put(mine, "my_dog")
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "blobs").symlink_to(outside)
    refused(lambda: sync.push(mine, team(mine)), "leads out of the remote")
    assert not list(outside.rglob("*.*")) and not [path for path in outside.rglob("*") if path.is_file()]


def test_an_unplugged_folder_is_not_filled_in_its_place(mine, folder):
    put(mine, "my_dog")
    folder.rename(folder.with_name("unplugged"))
    for call in (sync.push, sync.pull):
        refused(lambda call=call: call(mine, team(mine)), "'team' is not at", "connect what it is on")
    assert not folder.exists()
    folder.mkdir()
    refused(lambda: sync.push(mine, team(mine)), "is not at")
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(mine, folder):
    put(mine, "my_dog")
    folder.chmod(0o500)
    refused(lambda: sync.push(mine, team(mine)), "'team'")
    folder.chmod(0o700)


def test_an_unwritable_target_is_one_sentence(mine, folder, monkeypatch):
    put(mine, "my_dog")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.mv", full)
    refused(lambda: sync.push(mine, team(mine)), "No space left on device", "nothing half-written")
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left == {"conceptkit.json"}


def test_a_long_blob_goes_on_where_it_broke_off(mine, yours, folder, monkeypatch):
    monkeypatch.setattr(sync, "CHUNK", 100)
    put(mine, "my_dog")
    sync.push(mine, team(mine))
    places_read = []
    read = Remote.read

    def breaking(self, path, size, start=0):
        if path.startswith("blobs/"):
            places_read.append(start)
            if len(places_read) == 6:
                raise BadRemote("The line went dead.")
        return read(self, path, size, start)

    monkeypatch.setattr(Remote, "read", breaking)
    refused(lambda: sync.pull(yours, at(folder)), "line went dead")
    assert yours.list() == []
    (part,) = (yours.home / "incoming").iterdir()
    assert stat.S_IMODE(part.stat().st_mode) == 0o600 and part.stat().st_size == 500
    sync.pull(yours, at(folder))
    assert places_read[5:8] == [500, 500, 600] and contents(yours) == {"my_dog": {blob("my_dog")}}
    assert not list((yours.home / "incoming").iterdir())


@pytest.mark.parametrize("left", [b"x" * 300, b"x" * 100_000])
def test_a_damaged_beginning_is_thrown_away(mine, yours, folder, monkeypatch, left):
    monkeypatch.setattr(sync, "CHUNK", 100)
    put(mine, "my_dog")
    sync.push(mine, team(mine))
    (yours.home / "incoming").mkdir()
    (yours.home / "incoming" / f"{mine.get('my_dog').hash}.part").write_bytes(left)
    sync.pull(yours, at(folder))
    sync.pull(yours, at(folder))
    assert contents(yours) == {"my_dog": {blob("my_dog")}}


def test_half_written_files_at_a_remote_are_written_again(mine, yours, folder):
    put(mine, "my_dog")
    sync.push(mine, team(mine))
    for file in [*(folder / "blobs").glob("*/*"), *(folder / "concepts").glob("*/*")]:
        file.write_bytes(file.read_bytes()[:50])
    assert sync.pull(yours, at(folder)).arrivals == []
    assert [one.new for one in sync.push(mine, team(mine)).sent] == [True]
    sync.pull(yours, at(folder))
    assert contents(yours) == contents(mine)


def test_what_was_left_half_written_long_ago_is_swept(mine, folder):
    (folder / "incoming").mkdir(exist_ok=True)
    for name, age in (("0" * 24, 3 * 86400), ("1" * 24, 60)):
        (folder / "incoming" / name).write_bytes(b"half")
        then = os.stat(folder / "incoming" / name).st_mtime - age
        os.utime(folder / "incoming" / name, (then, then))
    sync.push(mine, team(mine))
    assert [path.name for path in (folder / "incoming").iterdir()] == ["1" * 24]


def test_a_version_that_nobody_could_read_does_not_stop_the_others(mine, folder):
    put(mine, "my_dog")
    mine.add("odd", b"not a concept", {})
    result = sync.push(mine, team(mine))
    assert [one.entry.name for one in result.sent if one.new] == ["my_dog"]
    assert len(result.refused) == 1 and "odd@1 cannot be shared" in result.refused[0]


def test_only_the_names_that_were_asked_for(mine, yours, folder):
    put(mine, "my_dog")
    put(mine, "teapot")
    sync.push(mine, team(mine), ["my_dog"])
    assert [path.name for path in (folder / "concepts").iterdir()] == ["my_dog"]
    sync.push(mine, team(mine))
    sync.pull(yours, at(folder), ["teapot"])
    assert list(contents(yours)) == ["teapot"]
    refused(lambda: sync.pull(yours, at(folder), ["nothing"]), "no concept named 'nothing'")
    refused(lambda: sync.pull(yours, at(folder), ["../x"]), "cannot be a concept's name")
    refused(lambda: sync.push(mine, team(mine), ["nothing"]), "no concept named 'nothing'")


def folded(folder: Path) -> None:
    """As a disk that folds case has them: twins in one folder, which has the name of the first."""
    for twin in ("rex", "rEx"):
        for record in (folder / "concepts" / twin).iterdir():
            record.rename(folder / "concepts" / "Rex" / record.name)
        (folder / "concepts" / twin).rmdir()


@pytest.mark.parametrize("folds", [False, True])
def test_twins_of_case_stay_as_many_concepts(mine, yours, folder, folds):
    twins = ("Rex", "rEx", "rex")
    for number, name in enumerate(twins):
        put(mine, name, number)
    sync.push(mine, team(mine))
    if folds:
        folded(folder)
    for _ in range(2):
        sync.pull(yours, at(folder))
        assert contents(yours) == contents(mine)
        assert {entry.name: entry.version for entry in yours.list()} == dict.fromkeys(twins, 1)


def test_one_twin_alone_does_not_go_onto_the_other(mine, yours, folder):
    for number, name in enumerate(("Rex", "rex")):
        put(mine, name, number)
    sync.push(mine, team(mine))
    for name in ("Rex", "rex"):
        sync.pull(yours, at(folder), [name])
    assert contents(yours) == contents(mine)


def test_the_names_of_a_folder_are_listed_one_after_the_other(mine, folder, monkeypatch):
    """What is no name is never kept, and a folder that never ends is left after so many."""
    for number in range(4):
        (folder / "concepts" / f"dog{number}").mkdir(parents=True)
    (folder / "concepts" / "no name").mkdir()
    (folder / "concepts" / "a_file").write_text("")
    (folder / "concepts" / "a_link").symlink_to(folder)
    assert at(folder).names() == ["dog0", "dog1", "dog2", "dog3"]
    monkeypatch.setattr(rooms, "MOST_NAMES", 3)
    seen = []
    entries = Remote._entries
    monkeypatch.setattr(Remote, "_entries", lambda *a: (seen.append(e) or e for e in entries(*a)))
    refused(at(folder).names, "over 3 names", "one by one")
    assert len(seen) <= 7 and sum(e.folder and " " not in e.name for e in seen) == 4


def test_what_a_remote_has_lost_is_pushed_again_by_name(mine, yours, folder):
    put(mine, "my_dog")
    labels.note(mine, "my_dog", "fine")
    mine.index.conn.execute("update notes set text = 'of old\r\nwith \x1b[31m'")
    sync.push(mine, team(mine))
    digest = mine.get("my_dog").hash
    (folder / "blobs" / digest[:2] / digest[2:]).unlink()
    assert "by its name" in sync.pull(yours, at(folder)).refused[0]
    assert not any(one.new for one in sync.push(mine, team(mine)).sent)
    assert [one.new for one in sync.push(mine, team(mine), ["my_dog"]).sent] == [True]
    assert [one.new for one in sync.push(mine, team(mine), ["my_dog"]).sent] == [False]
    assert not sync.pull(yours, at(folder)).refused and contents(yours) == contents(mine)
    assert labels.notes(yours, "my_dog") == []


def test_tags_that_come_later_arrive_too(mine, yours, folder):
    put(mine, "my_dog")
    sync.push(mine, team(mine))
    sync.pull(yours, at(folder))
    labels.tag(mine, "my_dog", ["teal"])
    labels.tag(yours, "my_dog", ["round"])
    sync.push(mine, team(mine))
    sync.pull(yours, at(folder))
    assert labels.tag(yours, "my_dog") == ["round", "teal"]


# addresses


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://host/x",
            "ftp://host/x",
            "simplecache::s3://b/x",
            "zip://a::s3://b",
            "",
            "s3://",
            "sftp://host",
        ),
        *(
            "sftp://me:secret@host/x",
            "hf://user",
            "s3://b/../c",
            "sftp://host:99999999/x",
            "a\nb",
            "gs://b/x",
        ),
    ],
)
def test_places_that_are_none(mine, url):
    text = refused(lambda: remote_config.add(mine.home, "team", url), "no place for a remote")
    assert "secret@" not in text or "password" in text
    assert remote_config.load(mine.home) == {}


def test_places():
    assert locations.parse("hf://datasets/me/concepts").root == "datasets/me/concepts"
    assert locations.parse("hf://me/concepts/here").connect == {"use_listings_cache": False}
    connect = locations.parse("ssh://me@host:2222/srv/x/").connect
    assert (connect["host"], connect["port"], connect["username"]) == ("host", 2222, "me")
    assert locations.parse("~/x").root == (Path.home() / "x").as_posix()
    refused(lambda: locations.parse("s3://b/x", {"key_file": "x"}), "no option 'key_file'", "endpoint_url")


def test_remotes_are_remembered_and_forgotten(mine, tmp_path):
    refused(lambda: remote_config.find(mine.home, "team"), "no remote 'team'", "conceptkit remote add")
    remote_config.add(mine.home, "team", str(tmp_path / "remote"))
    assert stat.S_IMODE((mine.home / "remotes.json").stat().st_mode) == 0o600
    refused(lambda: remote_config.add(mine.home, "team", str(tmp_path / "x")), "already")
    refused(lambda: remote_config.find(mine.home, "temm"), "there are team")
    refused(
        lambda: remote_config.add(mine.home, "deep", str(tmp_path / "no" / "where")),
        "no folder to make it in",
    )
    remote_config.remove(mine.home, "team")
    refused(lambda: remote_config.remove(mine.home, "team"), "no remote 'team'")
    for text in ("{", "[]", '{"a": 1}', '{"../x": {"url": "x", "options": {}}}', '{"a": {"url": 1}}'):
        (mine.home / "remotes.json").write_text(text)
        refused(lambda: remote_config.load(mine.home), "remotes.json is damaged")


def test_a_marker_of_a_newer_conceptkit(mine, folder):
    (folder / rooms.MARKER).write_text('{"conceptkit":"remote","format":2}')
    refused(lambda: sync.push(mine, team(mine)), "newer conceptkit")


def test_a_missing_library_is_named(mine, monkeypatch):
    monkeypatch.delitem(import_module("fsspec.registry")._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    refused(lambda: remote_config.add(mine.home, "x", "s3://b/x"), "pip install 'conceptkit[s3]'")
    monkeypatch.setitem(sys.modules, "paramiko", None)
    refused(lambda: remote_config.add(mine.home, "x", "sftp://host/x"), "pip install 'conceptkit[sftp]'")


# the commands


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_the_whole_road_on_the_command_line(home, tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    with Registry() as registry:
        put(registry, "my_dog", 1)
        put(registry, "my_dog", 2)
    assert "No remotes yet" in run("remote", "list") and "No keys yet" in run("keys", "list")
    public = run("keys", "create", "me").split()[-1]
    assert run("keys", "list", "--json").count(public) == 1
    file = tmp_path / "ours.bundle"
    assert f"Wrote {file} with my_dog@2.\n" in run("export", "my_dog", "--bundle", file, "--sign")
    run("export", "my_dog", "--bundle", tmp_path / "all", "--all-versions")
    assert "Give one of --out" in run("export", "my_dog", code=2)
    assert "belong to --bundle" in run("export", "my_dog", "--out", "x", "--sign", code=2)
    assert "Added team" in run("remote", "add", "team", tmp_path / "remote")
    assert str(tmp_path / "remote") in run("remote", "list")
    assert run("push", "team") == "Sent my_dog@1.\nSent my_dog@2.\n"
    assert "Nothing to do" in run("sync", "team")

    monkeypatch.setenv("CONCEPTKIT_HOME", str(tmp_path / "other"))
    assert "do not trust" in run("import", "--require-signed", file, code=2)
    assert "Note: It is signed with a key that you have not trusted" in run("import", file)
    assert "is alice's" in run("keys", "trust", "alice", public).replace("are alice's now", "is alice's")
    assert "my_dog@1 is here already.\nIt is signed by alice." in run("import", "--require-signed", file)
    done = json.loads(run("import", tmp_path / "all", "--json"))
    assert [arrival["new"] for arrival in done[0]["arrivals"]] == [True, False]
    run("keys", "distrust", "alice")
    assert "no remote 'team'" in run("pull", "team", code=2)
    run("remote", "add", "team", tmp_path / "remote")
    pulled = json.loads(run("pull", "team", "my_dog", "--json"))
    assert [arrival["new"] for arrival in pulled["pulled"]] == [False, False] and pulled["refused"] == []
    with Registry() as registry:
        registry.add("odd", b"not a concept", {})
    assert "All but one thing was sent" in run("sync", "team", code=2)
    assert "Forgot team" in run("remote", "rm", "team")


def test_parcels_are_checked_before_anything_is_stored(mine):
    with pytest.raises(ConceptError):
        incoming.receive(
            mine,
            [IncomingConcept("a", blob("a")), IncomingConcept("b", blob("b"), preview=b"no picture")],
            "pull",
        )
    assert mine.list() == [] and not list(mine.blobs.glob("??/*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("name", ["import", "push"])
def test_killed_at_any_step_leaves_all_or_nothing(name, tmp_path):
    code = (
        "import sys; from pathlib import Path;"
        "from benchmarks.registry_crash import OPERATIONS, at_every_step;"
        "print(sum(at_every_step(OPERATIONS[sys.argv[1]], Path(sys.argv[2])).values()))"
    )
    command = [sys.executable, "-c", code, name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15
