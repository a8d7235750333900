"""The index's schema as steps that are only ever appended to."""

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
