"""Files named by the sha256 of their bytes, written whole or not at all: `blobs/ab/cdef...`."""

import hashlib
import os
import tempfile
import time
from pathlib import Path

from conceptkit.errors import BadBlob
from conceptkit.registry.paths import make_private, sync

ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which an unfinished file is taken for the remains of a killed process."""


def place(folder: Path, digest: str) -> Path:
    """The file of `digest` (64 hex characters) under `folder`, whether it exists or not."""
    return folder / digest[:2] / digest[2:]


def put(folder: Path, data: bytes) -> str:
    """Store `data` durably and return its sha256 in hex; storing the same bytes again changes nothing."""
    digest = hashlib.sha256(data).hexdigest()
    target = place(folder, digest)
    if _intact(target, digest):
        return digest
    incoming = make_private(folder / "incoming")
    _sweep(incoming)
    handle, name = tempfile.mkstemp(dir=incoming)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, make_private(target.parent) / target.name)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync(target.parent)
    return digest


def get(folder: Path, digest: str) -> bytes:
    """The bytes stored as `digest`; BadBlob when they are gone or are no longer those bytes."""
    target = place(folder, digest)
    try:
        data = target.read_bytes()
    except FileNotFoundError:
        raise BadBlob(f"The stored file {target} is missing.") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise BadBlob(f"The stored file {target} is damaged: its bytes no longer match its name.")
    return data


def drop(folder: Path, digest: str) -> None:
    """Delete the bytes of `digest`, if they are there."""
    place(folder, digest).unlink(missing_ok=True)


def _intact(target: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(target.read_bytes()).hexdigest() == digest
    except FileNotFoundError:
        return False


def _sweep(incoming: Path) -> None:
    for file in incoming.iterdir():
        try:
            if time.time() - file.stat().st_mtime > ABANDONED_AFTER:
                file.unlink()
        except FileNotFoundError:
            pass  # another process finished it or swept it first
