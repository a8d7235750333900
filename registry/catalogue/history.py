"""What a name has pointed at: renaming it, going back, and what there was. Lines are only ever added."""

from dataclasses import asdict, dataclass

from conceptkit.registry.catalogue.labels import number_of
from conceptkit.registry.entries import POINTS, Entry, record, refresh
from conceptkit.registry.errors import ConceptError, NameTaken, UnknownConcept
from conceptkit.registry.names import check_name, split_version
from conceptkit.registry.store import Registry


@dataclass(frozen=True)
class Event:
    """One line of the history; number says the order, `at` only what the clock said."""

    number: int
    name: str  # at that time
    event: str
    version: int | None
    hash: str | None
    at: str  # UTC, ISO 8601
    detail: str | None = None

    def to_json(self) -> dict[str, object]:
        """All of it as JSON."""
        return asdict(self)


def history(registry: Registry, name: str) -> list[Event]:
    """All that happened to a name, oldest first, also under the names it had before and after a removal.

    Raises UnknownConcept for a name that never was.
    """
    name, version = split_version(name)
    query = """select id, name, event, version, hash, at, detail from history
               where name_id = (select id from names where name = ?) or name = ? order by id"""
    if version is not None:
        registry.get(name, version)
    if not (found := [Event(*row) for row in registry.index.query(query, [name, name])]):
        registry.get(name)
    return found


def rollback(registry: Registry, name: str, version: int | None = None) -> Entry:
    """Let a name point at an older version: the one before, or `version`, also as `"my_dog@1"`.

    Nothing is deleted, and going back is itself an event. Raises UnknownConcept, and ConceptError when there
    is nothing to go back to.
    """
    bare, written = split_version(name)
    version = written if version is None else version
    with registry.index.writing() as conn:
        now = registry.get(bare)
        target = registry.get(bare, version) if version is not None else _before(registry, now)
        if target.version == now.version:
            raise ConceptError(f"{bare!r} points at version {now.version} already: name another version.")
        number = number_of(registry, bare)
        conn.execute("update names set version = ? where id = ?", [target.version, number])
        record(conn, number, bare, "rollback", target.version, target.hash, f"from version {now.version}")
        refresh(conn, number)
    return target


def point(registry: Registry, entry: Entry, event: str, detail: str | None) -> None:
    """Let a name point at that version of it, and note why; in a transaction."""
    number, conn = number_of(registry, entry.name), registry.index.conn
    if registry.get(entry.name).version != entry.version:
        conn.execute("update names set version = ? where id = ?", [entry.version, number])
        record(conn, number, entry.name, event, entry.version, entry.hash, detail)
        refresh(conn, number)


def take(registry: Registry, name: str, digest: str, origin: str) -> Entry | None:
    """Let a name point at its version of these bytes because the user said so; None when it does already."""
    with registry.index.writing():
        entry = next((one for one in registry.versions(name) if one.hash == digest), None)
        if entry is None or registry.get(name).version == entry.version:
            return None
        point(registry, entry, "take", origin)
    return entry


def rename(registry: Registry, old: str, new: str) -> Entry:
    """Give a name with all its versions, labels and history another name; returns what that points at.

    Raises BadName, NameTaken, UnknownConcept.
    """
    check_name(new)
    with registry.index.writing() as conn:
        head = registry.get(old)
        if "@" in old:
            raise UnknownConcept(f"All versions are renamed at once: use {head.name!r} without a version.")
        if registry.index.query("select 1 from names where name = ?", [new]):
            raise NameTaken(f"{new!r} is already in the registry: choose another name.")
        number = number_of(registry, old)
        conn.execute("update names set name = ? where id = ?", [new, number])
        conn.execute("update versions set name = ? where name = ?", [new, old])
        record(conn, number, new, "rename", head.version, head.hash, f"from {old}")
        refresh(conn, number)
    return registry.get(new)


def _before(registry: Registry, now: Entry) -> Entry:
    """What the name pointed at just before it first came to point at this version."""
    there = {entry.version: entry for entry in registry.versions(now.name)}
    query = f"select version from history where name_id = ? and {POINTS} order by id"
    trail = [row[0] for row in registry.index.query(query, [number_of(registry, now.name)])]
    earlier = trail[: trail.index(now.version)] if now.version in trail else trail
    for version in reversed(earlier):
        if version in there:
            return there[version]
    raise ConceptError(f"{now.ref} is the first version there is: there is nothing to go back to.")
