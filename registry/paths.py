"""Where conceptkit keeps its things on this machine."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """`$CONCEPTKIT_HOME`, or the user's data folder; not created here."""
    if chosen := os.environ.get("CONCEPTKIT_HOME"):
        return Path(chosen).expanduser().absolute()
    return Path(platformdirs.user_data_dir("conceptkit", appauthor=False))


def make_private(folder: Path) -> Path:
    """Create `folder` and its missing parents for their owner only; what exists stays as it is."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)
        sync(place.parent)
    return folder


def sync(folder: Path) -> None:
    """Make the entries of `folder` survive a power cut, where the system can do that for folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
