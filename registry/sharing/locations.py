"""Where remotes can be: the kinds there are, and what an address means. Nothing here reaches for one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conceptkit.registry import paths
from conceptkit.registry.errors import BadRemote

PATIENCE = 60.0
"""Seconds that a server may be silent."""


@dataclass(frozen=True)
class Kind:
    """One kind of place: what fsspec calls it, and what it can do.

    renames: files can be renamed at no cost, and are visible while they are written.
    flat: all files below a folder are listed at once. options: what `remote add --option` may set.
    """

    title: str
    protocol: str
    renames: bool
    flat: bool
    install: str = "pip install fsspec"
    options: frozenset[str] = frozenset()


_SFTP = Kind(
    "A server reached by ssh",
    "sftp",
    True,
    False,
    "pip install 'conceptkit[sftp]'",
    frozenset({"key_file", "known_hosts"}),
)
KINDS = {
    "": Kind("A folder", "file", True, False),
    "file": Kind("A folder", "file", True, False),
    "sftp": _SFTP,
    "ssh": _SFTP,
    "s3": Kind(
        "S3 storage",
        "s3",
        False,
        True,
        "pip install 'conceptkit[s3]'",
        frozenset({"endpoint_url", "profile", "region"}),
    ),
    "hf": Kind("The Hugging Face Hub", "hf", False, True, "pip install huggingface_hub"),
}


@dataclass(frozen=True)
class Place:
    """Where a remote is: its kind, its root as fsspec writes it, how to connect, and whose word counts there.

    keys: public keys; when there are some, only what one of them signed is taken from it.
    """

    url: str
    kind: Kind
    root: str
    connect: Mapping[str, Any] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()


def parse(url: str, options: Mapping[str, str] | None = None) -> Place:
    """The place that `url` means. Raises BadRemote for what is none, without reaching for it."""
    scheme = url.partition("://")[0] if "://" in url else ""
    kind = KINDS.get(scheme)
    if kind is None or "::" in url or not url.isprintable() or not url.strip():
        raise BadRemote(
            f"{url[:80]!r} is no place for a remote: use a folder, sftp://HOST/FOLDER, s3://BUCKET/FOLDER "
            "or hf://USER/REPOSITORY."
        )
    if unknown := sorted(set(options or {}) - kind.options):
        known = ", ".join(sorted(kind.options)) or "none"
        raise BadRemote(f"{kind.title} has no option {unknown[0][:80]!r}: it has {known}.")
    try:
        return _PARSERS[kind.protocol](url, kind, dict(options or {}))
    except ValueError as error:
        raise BadRemote(f"{url[:80]!r} is no place for a remote ({error}): mend the address.") from error


def _folder(url: str, kind: Kind, options: Mapping[str, str]) -> Place:
    path = paths.expanded(url.removeprefix("file://")).absolute()
    return Place(str(path), kind, path.as_posix())


def _sftp(url: str, kind: Kind, options: Mapping[str, str]) -> Place:
    parts = urlsplit(url)
    if parts.password:
        raise ValueError("a password does not belong in it, use an ssh key")
    if not parts.hostname or not parts.path.strip("/"):
        raise ValueError("it needs a host and a folder")
    known = options.get("known_hosts", str(Path("~/.ssh/known_hosts").expanduser()))
    connect: dict[str, Any] = {"host": parts.hostname, "port": parts.port or 22, "known_hosts": known}
    connect |= {"timeout": 15, "banner_timeout": 15, "auth_timeout": 15}
    if parts.username:
        connect["username"] = parts.username
    if key := options.get("key_file"):
        connect |= {"key_filename": key, "look_for_keys": False, "allow_agent": False}
    return Place(url, kind, parts.path.rstrip("/"), connect)


def _s3(url: str, kind: Kind, options: Mapping[str, str]) -> Place:
    connect: dict[str, Any] = {
        "use_listings_cache": False,
        "config_kwargs": {"connect_timeout": 10, "read_timeout": PATIENCE, "retries": {"max_attempts": 2}},
    }
    connect |= {key: options[key] for key in ("endpoint_url", "profile") if key in options}
    if region := options.get("region"):
        connect["client_kwargs"] = {"region_name": region}
    return Place(url, kind, _bucket(url), connect)


def _hub(url: str, kind: Kind, options: Mapping[str, str]) -> Place:
    root = _bucket(url)
    if len(root.split("/")) < (3 if root.startswith(("datasets/", "spaces/")) else 2):
        raise ValueError("it needs a user and a repository")
    return Place(url, kind, root, {"use_listings_cache": False})


def _bucket(url: str) -> str:
    root = url.partition("://")[2].strip("/")
    if not root or "@" in root or ".." in root.split("/") or "//" in root:
        raise ValueError("it needs a name, and no more than names")
    return root


_PARSERS = {"file": _folder, "sftp": _sftp, "s3": _s3, "hf": _hub}
