"""What can be done to a registry and killed meanwhile: the rows of the crash harness, `registry_crash`."""

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from conceptkit.registry import backup, blobs, maintenance, packed
from conceptkit.registry.catalogue import history, labels
from conceptkit.registry.entries import New
from conceptkit.registry.sharing import exchange, locations, signing, sync
from conceptkit.registry.sharing.remote import Remote
from conceptkit.registry.store import Registry
from tests.blobs import PNG, blob

DOG = {"kind": "subject", "noun": "dog", "base_name": "storybook", "method": "custom"}


class Seen(NamedTuple):
    """What a home holds, as others see it: (ref, sha256) of all versions, the refs that names point at."""

    versions: frozenset[tuple[str, str]]
    heads: frozenset[str]


def see(home: Path) -> Seen:
    """Also proves that all of it loads and that `verify` is clean."""
    with Registry(home) as registry:
        heads = registry.list()
        versions = [entry for head in heads for entry in registry.versions(head.name)]
        for entry in versions:
            registry.read(entry)
        if problems := maintenance.verify(registry).problems:
            raise AssertionError(problems)
        return Seen(frozenset((e.ref, e.hash) for e in versions), frozenset(e.ref for e in heads))


@dataclass(frozen=True)
class Operation:
    """One row: `prepare` a home, then `act` on it in a process that is killed; `see` says what is visible."""

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Any], object]  # on a registry that is open, or on the home when it is to be closed
    see: Callable[[Path], Any] = see
    commits: str = "commit"  # the step that may make it visible
    opened: bool = True


def stock(home: Path) -> None:
    """Two concepts and their older versions."""
    with Registry(home) as registry:
        for name in ("my_dog", "moongate"):
            for data in (b"old", b"new"):
                registry.add(name, name.encode() + data * 1000, DOG, new_version=True)


def litter(home: Path) -> None:
    """Concepts, and many blobs that nothing names."""
    stock(home)
    blobs.put_many(home / "blobs", [b"nobody's %d" % i for i in range(30)])


def loose(home: Path) -> None:
    """Packed concepts, and others that have files of their own, as an earlier conceptkit wrote them."""
    stock(home)
    datas = [b"small %d" % i * 99 for i in range(20)]
    with Registry(home) as registry:
        blobs.put_many(registry.blobs, datas)
        registry.add_many([New(f"small{i}", data, DOG) for i, data in enumerate(datas)])


def sparse(home: Path) -> None:
    """Packed concepts, of which most were removed."""
    with Registry(home) as registry:
        registry.add_many([New(f"c{i}", b"concept %d" % i * 400, DOG) for i in range(120)])
        for i in range(120):
            if i % 4:
                registry.remove(f"c{i}")


def compact(registry: Registry) -> None:
    """Give back what removed concepts took, in several steps although they are few."""
    packed.SPARE, packed.SLICE = 1 << 15, 10
    if not maintenance.gc(registry, delete=True).freed:
        raise AssertionError("nothing was given back")


def bundled(home: Path) -> None:
    """Concepts, and a bundle with more of them, one of a name that is here already."""
    stock(home)
    with tempfile.TemporaryDirectory() as folder, Registry(folder) as other:
        for name in ("my_dog", "teapot"):
            other.add(name, blob(name), DOG)
            other.set_preview(name, 1, PNG)
            labels.tag(other, name, ["teal"])
        exchange.export(other, exchange.chosen(other, ["my_dog", "teapot"]), home / "ours.bundle")


def unsent(home: Path) -> None:
    """A concept that is not at the remote yet."""
    with Registry(home) as registry:
        registry.add("my_dog", blob("my_dog"), DOG)
        registry.set_preview("my_dog", 1, PNG)


def push(registry: Registry) -> None:
    place = registry.home / "remote"
    with Remote("team", locations.parse(str(place))) as remote:
        remote.prepare()
        sync.push(registry, remote)


def see_remote(home: Path) -> tuple[Seen, Seen]:
    """What is here, and what others get from the remote; also proves that pushing again goes on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if (home / "remote").exists():
            shutil.copytree(home / "remote", folder / "remote")
        with Registry(home) as registry, Remote("team", locations.parse(name + "/remote")) as remote:
            remote.prepare()
            with Registry(folder / "reader") as reader:
                if refused := sync.pull(reader, remote).refused:
                    raise AssertionError(refused)
            visible = see(folder / "reader")
            sync.push(registry, remote)
            with Registry(folder / "reader") as reader:
                sync.pull(reader, remote)
                if {head.hash for head in reader.list()} != {head.hash for head in registry.list()}:
                    raise AssertionError("a push that was killed cannot be gone on with")
    return see(home), visible


def backed_up(home: Path) -> None:
    """Concepts, a backup of their index, and what was said and made after it."""
    stock(home)
    with Registry(home) as registry:
        backup.backup(registry, home / "ours.db")
        labels.tag(registry, "my_dog", ["acknowledged"])
        registry.add("teapot", blob("teapot"), DOG)


def torn(home: Path) -> None:
    """The same, and a page of the index is damaged; of the tags none was on it."""
    backed_up(home)
    with sqlite3.connect(home / "index.db") as conn:
        query = "select rootpage, (select page_size from pragma_page_size) from sqlite_master where name = ?"
        root, size = conn.execute(query, ["history_name"]).fetchone()
    conn.close()
    with (home / "index.db").open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(bytes(100))


def harmed(home: Path) -> None:
    """Packed concepts in a file of which SQLite knows nothing any more."""
    stock(home)
    with (home / "blobs" / packed.FILE).open("r+b") as file:
        file.write(bytes(100))


def see_harmed(home: Path) -> Seen:
    """What is here: all of it can be read, before and after the file was made anew."""
    with Registry(home) as registry:
        heads = registry.list()
        versions = [entry for head in heads for entry in registry.versions(head.name)]
        for entry in versions:
            registry.read(entry)
        return Seen(frozenset((e.ref, e.hash) for e in versions), frozenset(e.ref for e in heads))


def see_all(home: Path) -> tuple[Seen, tuple[str, ...]]:
    """What is here and what is said of it; of a damaged index, what making it anew brings back."""
    if backup.state(home) == "damaged":
        with tempfile.TemporaryDirectory() as name:
            shutil.copytree(home, Path(name) / "home")
            backup.rebuild(Path(name) / "home")
            return see_all(Path(name) / "home")
    with Registry(home) as registry:
        said = tuple(tag for head in registry.list() for tag in labels.tag(registry, head.name))
    return see(home), said


def see_backups(home: Path) -> tuple[Seen, bool]:
    """What is here, and whether the backup is; one that is there is whole."""
    there = (home / "new.db").exists()
    if there:
        backup.check(home / "new.db")
    return see(home), there


def see_keys(home: Path) -> tuple[str, ...]:
    """The names of the keys; all of them can be read."""
    return tuple(key.name for key in signing.keys(home))


def keyed(home: Path) -> None:
    signing.create(home, "me")


MERGE = {"kind": "merge", "parents": ["my_dog@2", "moongate@1"], "method": "constrained"}
BATCH = [New(f"c{i}", b"concept %d" % i * 99, DOG) for i in range(20)]

OPERATIONS = {
    row.name: row
    for row in (
        Operation("first add", lambda home: None, lambda r: r.add("first", b"first" * 60_000, DOG)),
        Operation("add", stock, lambda r: r.add("my_dog", b"third" * 60_000, DOG, new_version=True)),
        Operation("merge", stock, lambda r: r.add("both", b"merged" * 50_000, MERGE)),
        Operation("batch", stock, lambda r: r.add_many(BATCH)),
        Operation("first small", lambda home: None, lambda r: r.add("first", b"first" * 99, DOG)),
        Operation("small", stock, lambda r: r.add("my_dog", b"third" * 99, DOG, new_version=True)),
        Operation("rm", stock, lambda r: r.remove("my_dog")),
        Operation("rename", stock, lambda r: history.rename(r, "my_dog", "rex")),
        Operation("rollback", stock, lambda r: history.rollback(r, "my_dog")),
        Operation("gc", litter, lambda r: maintenance.gc(r, delete=True)),
        Operation("pack", loose, lambda r: maintenance.gc(r, delete=True)),
        Operation("compact", sparse, compact),
        Operation("rebuild packed", harmed, backup.rebuild, see_harmed, "replace", False),
        Operation("import", bundled, lambda r: exchange.import_file(r, r.home / "ours.bundle")),
        Operation("push", unsent, push, see_remote, commits="rename"),
        Operation(
            "restore",
            backed_up,
            lambda r: backup.restore(r.home, r.home / "ours.db"),
            see_all,
            commits="commit",
        ),
        Operation(
            "rebuild",
            backed_up,
            lambda home: backup.rebuild(home, home / "ours.db"),
            see_all,
            "replace",
            False,
        ),
        Operation("rebuild damaged", torn, backup.rebuild, see_all, "replace", False),
        Operation("backup", stock, lambda r: backup.backup(r, r.home / "new.db"), see_backups, "link"),
        Operation("keys", keyed, lambda home: signing.create(home, "spare"), see_keys, "link", False),
    )
}
"""What can be killed; rows are added here."""
