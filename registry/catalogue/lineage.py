"""What a merge was made of, and what was made of it: a tree over hashes, so that renaming breaks nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from conceptkit.registry.entries import COLUMNS, Entry, from_row
from conceptkit.registry.store import Registry

DEEPEST = 50


@dataclass(frozen=True)
class Node:
    """A concept and its parents; gone when no version here has these bytes any more."""

    ref: str  # what it is called now, else what it was called when it was merged
    hash: str | None
    gone: bool = False
    parents: "tuple[Node, ...]" = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        parents = [parent.to_json() for parent in self.parents]
        return {"ref": self.ref, "hash": self.hash, "gone": self.gone, "parents": parents}


def tree(registry: Registry, name: str) -> Node:
    """What `name` was made of, down to what was learned. Raises UnknownConcept."""
    entry = registry.get(name)
    return _node(registry, entry.ref, entry.hash, (entry.hash,))


def children(registry: Registry, entry: Entry) -> list[str]:
    """Refs of the merges that were made of this version."""
    query = """select v.name, v.version from parents p join versions v on v.id = p.version_id
               where p.hash = ? order by v.name, v.version"""
    return [f"{name}@{version}" for name, version in registry.index.query(query, [entry.hash])]


def holder(registry: Registry, digest: str) -> Entry | None:
    """A version with these bytes, whatever it is called now."""
    query = f"select {COLUMNS} from versions v where v.hash = ? order by v.id"
    return next(map(from_row, registry.index.query(query, [digest])), None)


def lines(node: Node, first: str = "", rest: str = "") -> Iterator[str]:
    """The tree as text, one line a concept."""
    yield f"{first}{node.ref}{' (no longer here)' if node.gone else ''}"
    for number, parent in enumerate(node.parents, 1):
        last = number == len(node.parents)
        yield from lines(parent, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "))


def _node(registry: Registry, ref: str, digest: str | None, above: tuple[str, ...]) -> Node:
    if digest is None:
        return Node(ref, None, gone=True)
    here = registry.index.query("select id, name, version from versions where hash = ? order by id", [digest])
    if not here:
        return Node(ref, digest, gone=True)
    refs = [f"{name}@{version}" for _, name, version in here]
    shown = ref if ref in refs else refs[0]
    query = "select name, version, hash from parents where version_id = ? order by place"
    found = registry.index.query(query, [here[refs.index(shown)][0]])
    parents = tuple(
        _node(registry, f"{name}@{version}" if version else name, parent, (*above, parent or ""))
        for name, version, parent in found
        if parent not in above and len(above) < DEEPEST
    )
    return Node(shown, digest, parents=parents)
