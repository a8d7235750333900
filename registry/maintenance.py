"""Looking after the registry: is all of it whole, what is nobody's any more, how big is it."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from conceptkit.registry import (
    merge_recipe,
    odd_files,
    salvage,
    storage_errors,
    trash_files,
)
from conceptkit.registry.blob_store import BlobStore
from conceptkit.registry.entries import HEADS
from conceptkit.registry.index import index_files
from conceptkit.registry.sources import is_digest
from conceptkit.registry.store import NAMED, Registry

Tick = Callable[[int, int], None]

NAMING = (("versions", "hash"), ("versions", "preview"), ("assets", "hash"), ("uses", "hash"))
"""The columns of an index that name blobs."""
_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")

SLICE = 200
"""Blobs that are deleted under one lock, so that others get their turn."""

REFERENCES = """select hash, name || '@' || version from versions
    union all select preview, 'the preview of ' || name || '@' || version from versions
        where preview is not null
    union all select hash, 'the asset ' || key from assets
    union all select u.hash, role || ' of ' || name || '@' || version
        from uses u left join versions v on v.id = u.version_id"""
"""(sha256, what needs it) of everything that must be there."""

STALE = """select key, hash from assets where key like 'prepared/%'
    and substr(key, 10, 32) not in (select substr(hash, 1, 32) from versions)"""
"""What concepts brought into merges that are no longer here: composing makes it again."""

ROUNDED = "select distinct hash from versions where json_extract(summary, '$.rounded')"
PREVIEWS = "select distinct preview from versions where preview is not null"

RULES = {
    f"select name from names where id not in (select n.id from {HEADS})": "points at a missing version",
    "select name || '@' || version from versions where name not in (select name from names)": "has no name",
    "select n.name from names n join versions v using (name) where v.version > n.newest": "counts wrongly",
    "select name from names where id not in (select id from texts)": "cannot be searched",
    "select role from uses where version_id not in (select id from versions)": "belongs to no version",
    "select name from parents where version_id not in (select id from versions)": "is the parent of nothing",
    "select tag from tags where name_id not in (select id from names)": "is a tag of no name",
    "select text from notes where name_id not in (select id from names)": "is a note of no name",
}
"""What no index may hold, and how to say it."""


@dataclass(frozen=True)
class Check:
    """What `verify` found: problems as sentences, and what merely lies about."""

    blobs: int
    bytes: int
    problems: list[str] = field(default_factory=list)
    orphans: int = 0  # whole files that nothing names: what a killed writer leaves; `gc` removes them
    unfinished: int = 0
    checkpoints: int = 0  # of learning that was stopped and can go on
    strange: list[str] = field(default_factory=list)  # a sentence for each thing that nobody here made

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Garbage:
    """What `gc` would delete, or has deleted."""

    blobs: int
    bytes: int
    concepts: int  # of the blobs, those that are concepts; `rebuild` could have brought them back
    unfinished: int
    deleted: bool
    old: int = 0  # unfinished files, and checkpoints, that nobody will go on with
    old_bytes: int = 0
    unreadable: list[str] = field(
        default_factory=list
    )  # indexes put aside, for whose sake no blob is deleted
    checkpoints: list[str] = field(default_factory=list)  # names whose learning can still go on; these stay
    checkpoint_bytes: int = 0
    packed: int = 0  # small blobs that have files of their own, which are moved into `packed.db`
    freed: int = 0  # bytes of `packed.db` that were given back to the disk

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


def verify(registry: Registry, tick: Tick = lambda done, total: None) -> Check:
    """Read every blob, follow every reference, check the index itself. Safe while others write."""
    problems = list(wrong_rows(registry))
    needed: dict[str, str] = {}
    for digest, what in registry.index.query(REFERENCES):
        needed.setdefault(digest, what or "something")
    store = registry.blob_store
    problems += packed.problems() if (packed := store.packed) else []
    there: dict[str, int] = {}
    orphans, total = 0, store.count()
    for done, (digest, size, whole) in enumerate(store.checked(), 1):
        tick(done, max(done, total))
        if digest in there:  # packed while this went on, or by one that was killed
            continue
        there[digest] = size
        if not whole and registry.index.query(NAMED, [digest] * 4) and not store.whole(digest):
            what = needed.get(digest, digest)
            file = store.place(digest)
            problems.append(f"{what} is damaged: its bytes in {file} are not what they were; {_again(what)}.")
        orphans += digest not in needed and not registry.index.query(NAMED, [digest] * 4)
    for digest in needed.keys() - there.keys():
        if not is_digest(digest):
            problems.append(f"{needed[digest]} is said to be in {digest!r:.80}, which is no stored file.")
        elif registry.index.query(NAMED, [digest] * 4) and not store.whole(digest):
            what = needed[digest]
            problems.append(f"{what} is missing: {store.absence(digest)}; {_again(what)}.")
    for recipe, part in registry.index.query(merge_recipe.MISSING):
        problems.append(f"{recipe} is stored as its recipe, and its part {part} is missing.")
    strange = [
        f"{path} is {what}, which conceptkit did not make: it is left alone, move it elsewhere."
        for path, what in odd_files.strangers(registry.blobs)
    ]
    unfinished = sum(1 for _ in odd_files.leftovers(registry.home))
    return Check(
        len(there),
        sum(there.values()),
        problems,
        orphans,
        unfinished,
        len(odd_files.checkpoints(registry.home)),
        strange,
    )


def gc(registry: Registry, *, delete: bool = False) -> Garbage:
    """Find the blobs that neither the index nor a kept-aside index needs, and delete them if `delete`."""
    kept: set[str] = set()
    unreadable: list[str] = []
    for file in aside(registry.home):
        named, whole = _named_by(file)
        kept |= named
        unreadable += [] if whole else [str(file)]
    stale: dict[str, str] = dict(registry.index.query(STALE))
    if delete and stale:
        with registry.index.writing() as conn:
            conn.executemany("delete from assets where key = ?", [[key] for key in stale])
    needed = ({row[0] for row in registry.index.query(REFERENCES)} - set(stale.values())) | kept
    store = registry.blob_store
    found = {digest: size for digest, size in store.sizes().items() if digest not in needed}
    concepts = sum(_is_concept(store, digest) for digest in found)
    saved = odd_files.checkpoints(registry.home)
    fresh = [left for left in saved if not left.old]
    old = [left for left in (*odd_files.leftovers(registry.home), *saved) if left.old]
    unfinished = sum(1 for _ in odd_files.leftovers(registry.home))
    if delete:
        digests = [] if unreadable else list(found)
        for start in range(0, len(digests), SLICE):
            registry.drop_unused(*digests[start : start + SLICE])
        with registry.index.writing() as conn, storage_errors.told(registry.home):
            conn.execute("insert into texts_fts (texts_fts, rank) values ('merge', 500)")
            for left in old:
                left.file.unlink(missing_ok=True)
    loose = [digest for digest in store.loose() if digest not in found]
    freed = _pack(registry, loose) if delete else 0
    return Garbage(
        len(found),
        sum(found.values()),
        concepts,
        unfinished,
        delete,
        len(old),
        sum(left.bytes for left in old),
        unreadable,
        [left.file.stem for left in fresh],
        sum(left.bytes for left in fresh),
        len(loose),
        freed,
    )


def stats(registry: Registry) -> dict[str, Any]:
    """Counts and bytes, as JSON."""
    query = registry.index.query
    ((names, favourites),) = query("select count(*), coalesce(sum(favourite), 0) from names")
    ((versions, claimed),) = query("select count(*), coalesce(sum(bytes), 0) from versions")
    ((assets, asset_bytes),) = query("select count(*), coalesce(sum(bytes), 0) from assets")
    stored = "select sum(bytes) from (select max(bytes) as bytes from versions group by hash)"
    sizes = registry.blob_store.sizes()
    index = sum(file.stat().st_size for file in index_files(registry.home))
    saved = odd_files.checkpoints(registry.home)
    removals, removed_bytes = trash_files.count(registry.home)
    return {
        "home": str(registry.home),
        "concepts": names,
        "versions": versions,
        "favourites": favourites,
        "tags": query("select count(distinct tag) from tags")[0][0],
        "assets": assets,
        "files": len(sizes),
        "checkpoints": len(saved),
        "trash": removals,
        "bytes": {
            "concepts": query(stored)[0][0] or 0,
            "saved by storing equal ones once": claimed - (query(stored)[0][0] or 0),
            "concepts made smaller": sum(sizes.get(digest, 0) for (digest,) in query(ROUNDED)),
            "previews": sum(sizes.get(digest, 0) for (digest,) in query(PREVIEWS)),
            "assets": asset_bytes,
            "all files": sum(sizes.values()),
            "all files on the disk": registry.blob_store.on_disk(),
            "index": index,
            "checkpoints": sum(left.bytes for left in saved),
            "trash": removed_bytes,
        },
        **{column: _counts(registry, column) for column in ("noun", "base", "method")},
    }


def aside(home: Path) -> list[Path]:
    """Indexes that were backed up or moved aside in this home; the blobs they name are kept."""
    return sorted(file for file in (home / "backups").glob("*.db") if odd_files.plain_size(file) is not None)


def _counts(registry: Registry, column: str) -> dict[str, int]:
    query = f"""select coalesce(v.{column}, '-'), count(*) from {HEADS}
                group by 1 order by 2 desc, 1 limit 20"""
    return dict(registry.index.query(query))


def wrong_rows(registry: Registry) -> Iterator[str]:
    """A sentence for each thing that no index may hold."""
    for (said,) in registry.index.query("pragma integrity_check"):
        if said != "ok":
            yield f"The index is damaged ({said}): make it anew with `conceptkit rebuild`."
    for rule, what in RULES.items():
        for (name,) in registry.index.query(f"{rule} limit 5"):
            yield f"{str(name)[:80]!r} {what}: make the index anew with `conceptkit rebuild`."
    for row in salvage.damaged_rows(registry.index.conn):
        yield f"The row of {row} is damaged: make the index anew with `conceptkit rebuild`."
    if not registry.index.read_only:
        for table in ("texts_fts", "names_fts"):
            try:
                with registry.index.writing() as conn:
                    conn.execute(f"insert into {table} ({table}) values ('integrity-check')")
            except Exception as error:
                if not storage_errors.damaged(error.__cause__ or error):
                    raise
                yield f"The search index {table} is out of step: make it anew with `conceptkit rebuild`."


def _named_by(file: Path) -> tuple[set[str], bool]:
    """The sha256s that an index put aside names, and whether those are all: a damaged one may name more.

    What looks like a sha256 anywhere in a damaged one, or in its log, counts as named.
    """
    found: set[str] = set()
    try:
        conn = sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            tables = {row[0] for row in conn.execute("select name from sqlite_master where type = 'table'")}
            for table, column in NAMING:
                if table in tables:
                    found |= {row[0] for row in conn.execute(f"select {column} from {table}") if row[0]}
            whole = "versions" in tables and conn.execute("pragma quick_check").fetchall() == [("ok",)]
        finally:
            conn.close()
    except (sqlite3.Error, UnicodeDecodeError):
        whole = False
    log = file.with_name(f"{file.name}-wal")
    for part in (log,) if whole else (file, log):
        if odd_files.plain_size(part):
            found |= {digest.decode() for digest in _DIGEST.findall(part.read_bytes())}
    return found, whole


def _pack(registry: Registry, loose: list[str]) -> int:
    """Move small blobs out of files of their own, and give back what removed ones took; the bytes of that."""
    for start in range(0, len(loose), SLICE):
        registry.pack(*loose[start : start + SLICE])
    packed = registry.blob_store.packed
    return packed.compact() if packed else 0


def _again(what: str) -> str:
    """What to do about something stored that cannot be read."""
    if what.startswith("the asset "):
        return "it is made again when it is needed"
    ref = what.rpartition(" of ")[2]
    return f"remove it with `conceptkit rm --now {ref}` and add it again"


def _is_concept(store: BlobStore, digest: str) -> bool:
    try:
        store.header(digest)
    except Exception:
        return False
    return True
