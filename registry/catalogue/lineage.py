"""What a merge was made of, and what was made of it: a tree over hashes, so that renaming breaks nothing."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from conceptkit.registry.entries import COLUMNS, Entry, from_row
from conceptkit.registry.store import Registry

DEEPEST = 50
"""Generations that are shown; `ancestors` goes through all of them."""


@dataclass(frozen=True)
class Node:
    """A concept and its parents.

    gone: no version here has these bytes any more. repeated: its parents are shown where it came first.
    deeper: its parents are left out, because they are too many generations away.
    weight: how strong it is in what it is a parent of, 1 for as strong as it was learned.
    """

    ref: str  # what it is called now, else what it was called when it was merged
    hash: str | None
    gone: bool = False
    repeated: bool = False
    deeper: bool = False
    parents: "tuple[Node, ...]" = field(default_factory=tuple)
    weight: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """The tree as JSON."""
        marks: dict[str, Any] = {mark: True for mark in ("repeated", "deeper") if getattr(self, mark)}
        marks |= {} if self.weight == 1 else {"weight": self.weight}
        parents = [parent.to_json() for parent in self.parents]
        return {"ref": self.ref, "hash": self.hash, "gone": self.gone, **marks, "parents": parents}


def tree(registry: Registry, name: str) -> Node:
    """What `name` was made of, down to what was learned; each concept's parents once. Raises UnknownConcept.

    So it grows with the number of parents, not with the number of ways to them.
    """
    entry = registry.get(name)
    return _node(registry, entry.ref, entry.hash, {}, 0)


def ancestors(registry: Registry, entries: Iterable[Entry]) -> list[Entry]:
    """Every version here that these were made of, however far away, each once, the nearest first."""
    found: list[Entry] = []
    coming = deque(entries)
    seen: set[str] = set()
    while coming:
        one = coming.popleft()
        for name, version, digest, _ in _parents(registry, one):
            if digest is None or digest in seen:
                continue
            seen.add(digest)
            if (parent := _holder(registry, f"{name}@{version}", digest)) is not None:
                found.append(parent)
                coming.append(parent)
    return found


def children(registry: Registry, entry: Entry) -> list[str]:
    """Refs of the merges that were made of this version."""
    query = """select v.name, v.version from parents p join versions v on v.id = p.version_id
               where p.hash = ? order by v.name, v.version"""
    return [f"{name}@{version}" for name, version in registry.index.query(query, [entry.hash])]


def holder(registry: Registry, digest: str) -> Entry | None:
    """A version with these bytes, whatever it is called now."""
    query = f"select {COLUMNS} from versions v where v.hash = ? order by v.id limit 1"
    return next(map(from_row, registry.index.query(query, [digest])), None)


def parts(registry: Registry, entry: Entry) -> list[str]:
    """What a version was made of, called as it is now, as `compose` takes it: ["my_dog@1:0.8", ...]."""
    found = []
    for name, version, digest, weight in _parents(registry, entry):
        ref = f"{name}@{version}" if version else name
        here = None if digest is None else _holder(registry, ref, digest)
        found.append(_weighted(here.ref if here else ref, weight))
    return found


def made_smaller(entry: Entry) -> bool:
    """Whether a version is one other made smaller, and no merge: that has strengths."""
    return len(entry.summary.get("parents") or ()) == 1 and not entry.summary.get("weights")


def lines(node: Node, first: str = "", rest: str = "") -> Iterator[str]:
    """The tree as text, one line a concept."""
    yield f"{first}{_weighted(node.ref, node.weight)}{_mark(node)}"
    for number, parent in enumerate(node.parents, 1):
        last = number == len(node.parents)
        yield from lines(parent, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "))


def _weighted(ref: str, weight: float) -> str:
    return ref if weight == 1 else f"{ref}:{weight:g}"


def _mark(node: Node) -> str:
    if node.gone:
        return " (no longer here)"
    if node.repeated:
        return " (its parents are shown above)"
    return f" (its parents: `conceptkit lineage {node.ref}`)" if node.deeper else ""


def _node(registry: Registry, ref: str, digest: str | None, shown: dict[str, bool], depth: int) -> Node:
    """The tree below one concept; shown: the hashes whose parents are in it, and whether they have any."""
    if digest is None:
        return Node(ref, None, gone=True)
    entry = _holder(registry, ref, digest)
    if entry is None:
        return Node(ref, digest, gone=True)
    if digest in shown:
        return Node(entry.ref, digest, repeated=shown[digest])
    found = _parents(registry, entry)
    if found and depth == DEEPEST:
        return Node(entry.ref, digest, deeper=True)
    shown[digest] = bool(found)
    parents = tuple(
        replace(_node(registry, f"{name}@{version}" if version else name, parent, shown, depth + 1), weight=w)
        for name, version, parent, w in found
    )
    return Node(entry.ref, digest, parents=parents)


def _parents(registry: Registry, entry: Entry) -> list[tuple[str, int | None, str | None, float]]:
    """(name, version, sha256, strength) of what one version was made of, as it was called then."""
    query = """select name, version, hash from parents
               where version_id = (select id from versions where name = ? and version = ?) order by place"""
    rows = registry.index.query(query, [entry.name, entry.version])
    given = entry.summary.get("weights")
    weights = given if isinstance(given, list) and len(given) == len(rows) else [1.0] * len(rows)
    return [
        (name, version, digest, float(weight) if isinstance(weight, int | float) else 1.0)
        for (name, version, digest), weight in zip(rows, weights, strict=True)
    ]


def _holder(registry: Registry, ref: str, digest: str) -> Entry | None:
    """The version with these bytes that is called so, or else any other with them."""
    name, _, version = ref.partition("@")
    query = f"select {COLUMNS} from versions v where v.name = ? and v.version = ? and v.hash = ?"
    rows = registry.index.query(query, [name, version, digest]) if version.isdecimal() else []
    return from_row(rows[0]) if rows else holder(registry, digest)
