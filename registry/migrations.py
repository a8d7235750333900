"""The index's schema as steps that are only ever appended to; their names stand in `index.STEPS` too."""

import json
from typing import TYPE_CHECKING, Any

from sqlite_utils import Migrations

if TYPE_CHECKING:
    from sqlite_utils import Database


migrations = Migrations("conceptkit")


def _table(db: "Database", name: str) -> Any:
    return db[name]


@migrations()
def m001_names_versions_assets(db: "Database") -> None:
    """Names point at versions, versions at blobs; assets are blobs found by a key."""
    _table(db, "versions").create(
        {
            "name": str,
            "version": int,
            "hash": str,
            "bytes": int,
            "created": str,
            "summary": str,
            "preview": str,
        },
        pk=("name", "version"),
        not_null={"hash", "bytes", "created", "summary"},
    )
    _table(db, "names").create({"name": str, "version": int}, pk="name", not_null={"version"})
    _table(db, "assets").create(
        {"key": str, "hash": str, "bytes": int, "created": str},
        pk="key",
        not_null={"hash", "bytes", "created"},
    )


_M002_INDEXES = (
    "unique index versions_name on versions (name, version)",
    "index versions_hash on versions (hash)",
    "index versions_preview on versions (preview) where preview is not null",
    "index versions_noun on versions (noun, name collate nocase, name)",
    "index versions_base on versions (base, name collate nocase, name)",
    "index versions_method on versions (method, name collate nocase, name)",
    "unique index names_name on names (name)",
    "index names_order on names (name collate nocase, name)",
    "index names_favourite on names (favourite) where favourite",
    "index assets_hash on assets (hash)",
    "index uses_hash on uses (hash)",
    "index tags_tag on tags (tag, name_id)",
    "index notes_name on notes (name_id)",
    "index parents_hash on parents (hash)",
    "index history_name_id on history (name_id)",
    "index history_name on history (name)",
)


@migrations()
def m002_catalogue(db: "Database") -> None:
    """Numbers that outlive a rename; labels, history, lineage, and further files of a version.

    names.newest: the highest version a name ever had, so that no number is given out twice.
    versions.noun, base, method, captions: copied from the summary, for filters and search.
    uses: blobs that a version needs besides its own (photos, prior sets), each in a role.
    parents: what a merge was made of, by name and by hash. history: what a name has pointed at.
    """
    versions, names = list(_table(db, "versions").rows), list(_table(db, "names").rows)
    _table(db, "versions").drop()
    _table(db, "names").drop()
    _table(db, "versions").create(
        {
            "id": int,
            "name": str,
            "version": int,
            "hash": str,
            "bytes": int,
            "created": str,
            "summary": str,
            "preview": str,
            "noun": str,
            "base": str,
            "method": str,
            "captions": str,
        },
        pk="id",
        not_null={"name", "version", "hash", "bytes", "created", "summary"},
    )
    _table(db, "names").create(
        {"id": int, "name": str, "version": int, "newest": int, "favourite": int},
        pk="id",
        not_null={"name", "version", "newest", "favourite"},
        defaults={"favourite": 0},
    )
    _table(db, "uses").create({"version_id": int, "role": str, "hash": str}, pk=("version_id", "role"))
    _table(db, "tags").create({"name_id": int, "tag": str}, pk=("name_id", "tag"))
    _table(db, "notes").create({"id": int, "name_id": int, "text": str, "created": str}, pk="id")
    _table(db, "parents").create(
        {"version_id": int, "place": int, "name": str, "version": int, "hash": str},
        pk=("version_id", "place"),
    )
    _table(db, "history").create(
        {
            "id": int,
            "name_id": int,
            "name": str,
            "event": str,
            "version": int,
            "hash": str,
            "at": str,
            "detail": str,
        },
        pk="id",
    )
    for index in _M002_INDEXES:
        db.execute(f"create {index}")
    _carry_over(db, versions, names)


@migrations()
def m003_search(db: "Database") -> None:
    """Full-text search over what is known of each name, and trigrams of the names for near misses."""
    _table(db, "texts").create(
        {"id": int, "name": str, "noun": str, "tags": str, "captions": str, "notes": str}, pk="id"
    )
    db.execute(
        """insert into texts select names.id, name, coalesce(noun, ''), '', coalesce(captions, ''), ''
           from names join versions using (name, version)"""
    )
    columns = ["name", "noun", "tags", "captions", "notes"]
    _table(db, "texts").enable_fts(columns, create_triggers=True, tokenize="unicode61 remove_diacritics 2")
    _table(db, "names").enable_fts(["name"], create_triggers=True, tokenize="trigram")
    # most changes of a row of names leave the name as it is, and its trigrams are dear
    (trigger,) = db.query("select sql from sqlite_master where name = 'names_au'")
    db.execute("drop trigger names_au")
    db.execute(trigger["sql"].replace("AFTER UPDATE ON", "AFTER UPDATE OF name ON"))


@migrations()
def m004_packed_blobs(db: "Database") -> None:
    """No table changes. From here on small blobs are in `blobs/packed.db`; a conceptkit that does not know of
    that file says that it is too old, where it would find them missing."""


def _carry_over(db: "Database", versions: list[dict[str, Any]], names: list[dict[str, Any]]) -> None:
    """The rows of the first schema in the tables of the second; when each was added is all the history."""
    numbers = {row["name"]: number for number, row in enumerate(names, 1)}
    newest: dict[str, int] = {}
    hashes = {(row["name"], row["version"]): row["hash"] for row in versions}
    for number, row in enumerate(sorted(versions, key=lambda row: (row["name"], row["version"])), 1):
        newest[row["name"]] = row["version"]
        summary = json.loads(row["summary"])
        texts = {
            "noun": summary.get("noun"),
            "base": summary.get("base_name"),
            "method": summary.get("method"),
        }
        texts = {column: value for column, value in texts.items() if isinstance(value, str)}
        _table(db, "versions").insert({"id": number, **row, **texts})
        parents = summary.get("parents")
        for place, parent in enumerate(parents if isinstance(parents, list) else []):
            name, _, written = str(parent).partition("@")
            version = int(written) if written.isdecimal() else None
            parts = {"name": name, "version": version, "hash": hashes.get((name, version or 0))}
            _table(db, "parents").insert({"version_id": number, "place": place, **parts})
        event = {"event": "add", "version": row["version"], "hash": row["hash"], "at": row["created"]}
        _table(db, "history").insert({"name_id": numbers[row["name"]], "name": row["name"], **event})
    for row in names:
        number = numbers[row["name"]]
        _table(db, "names").insert({"id": number, "newest": newest[row["name"]], "favourite": 0, **row})
