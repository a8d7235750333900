"""The remotes of one home, in a small file of their own: `remotes.json`."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from conceptkit.registry import atomic_files, odd_files, storage_errors
from conceptkit.registry.errors import BadRemote, ConceptError
from conceptkit.registry.names import check_name
from conceptkit.registry.sharing.locations import Place, parse
from conceptkit.registry.sharing.remote import Remote

Rows = dict[str, dict[str, object]]


def add(
    home: Path,
    name: str,
    url: str,
    options: Mapping[str, str] | None = None,
    keys: frozenset[str] = frozenset(),
) -> Place:
    """Remember a place under a name, after marking it as a remote. Raises BadName and BadRemote.

    keys: the public keys whose concepts are taken from there; none of them means anybody's.
    """
    check_name(name)
    place = replace(parse(url, options), keys=keys)
    _check_free(home, name)
    with Remote(name, place) as remote:
        remote.prepare()
    with atomic_files.turn(home, "remotes.lock"):
        _check_free(home, name)  # another may have taken it while this one was prepared
        row: dict[str, object] = {"url": place.url, "options": dict(options or {})}
        row |= {"keys": sorted(keys)} if keys else {}
        rows = _rows(home) | {name: row}
        _write(home, rows)
    return place


def remove(home: Path, name: str) -> Place:
    """Forget a remote; what is there stays there. Raises BadRemote when there is none of that name."""
    with atomic_files.turn(home, "remotes.lock"):
        place = find(home, name)
        _write(home, {key: row for key, row in _rows(home).items() if key != name})
    return place


def load(home: Path) -> dict[str, Place]:
    """The remotes of this home, by name. Raises BadRemote when their file is damaged."""
    try:
        rows = _rows(home)
        return {
            check_name(name): replace(
                parse(str(rows[name]["url"]), _options(rows[name]["options"])), keys=_keys(rows[name])
            )
            for name in sorted(rows)
        }
    except (LookupError, TypeError, AttributeError, ConceptError) as error:
        raise BadRemote(_damaged(home)) from error


def find(home: Path, name: str) -> Place:
    """Where a remote is. Raises BadRemote, with those there are."""
    known = load(home)
    if name in known:
        return known[name]
    advice = f"there are {', '.join(known)}" if known else "add one with `conceptkit remote add NAME PLACE`"
    raise BadRemote(f"There is no remote {name[:80]!r}: {advice}.")


def _check_free(home: Path, name: str) -> None:
    if name in load(home):
        raise BadRemote(
            f"There is a remote {name!r} already: choose another name, or `conceptkit remote rm` it."
        )


def _keys(row: Mapping[str, Any]) -> frozenset[str]:
    keys = row.get("keys", [])
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise TypeError
    return frozenset(keys)


def _options(value: Any) -> dict[str, str]:
    return {str(key): str(text) for key, text in value.items()}


def _rows(home: Path) -> Rows:
    try:
        with storage_errors.told(home):
            value = json.loads(odd_files.read_own(file)) if (file := home / "remotes.json").exists() else {}
    except (ValueError, RecursionError) as error:
        raise BadRemote(_damaged(home)) from error
    if not isinstance(value, dict):
        raise BadRemote(_damaged(home))
    return value


def _write(home: Path, rows: Rows) -> None:
    text = json.dumps(rows, indent=2, sort_keys=True).encode()
    atomic_files.write_whole(home / "remotes.json", lambda out: out.write(text))


def _damaged(home: Path) -> str:
    return f"{home / 'remotes.json'} is damaged: delete it and add your remotes again."
