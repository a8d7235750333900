"""What a file's header, and the files that other programs put beside it, say of the words that call it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST = 200
MOST_BYTES = 4 << 20
"""Of a file beside: larger ones are left unread."""
PREVIEWS = (
    ".preview.png",
    ".png",
    ".preview.jpg",
    ".jpg",
    ".jpeg",
    ".preview.jpeg",
    ".webp",
    ".preview.webp",
)
_REPEATS = re.compile(r"\d+_(.+)")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff<>]")


def trigger_words(metadata: Mapping[str, str], file: Path | None = None) -> list[str]:
    """Phrases that call what the file holds, the likeliest first: of its header, then of the files beside it.

    `modelspec.trigger_phrase`, the folder names and tags of `ss_tag_frequency` as kohya writes them, and the
    trained words in `.civitai.info` and `.metadata.json`.
    """
    found = [metadata.get("modelspec.trigger_phrase", "")]
    for beside in () if file is None else sidecars(file):
        found += _trained_words(_json(beside))
    found += _tags(metadata.get("ss_tag_frequency", ""))
    plain = (re.sub(r"\s+", " ", _UNSAFE.sub("", str(text))).strip(" ,")[:LONGEST] for text in found)
    return list(dict.fromkeys(text for text in plain if text))


def sidecars(file: Path) -> list[Path]:
    """The files beside one that describe it."""
    names = (f"{file.stem}.civitai.info", f"{file.stem}.metadata.json")
    return [path for name in names if (path := file.with_name(name)).is_file()]


def preview_of(file: Path) -> Path | None:
    """The picture beside a file that shows it."""
    return next((path for end in PREVIEWS if (path := file.with_name(file.stem + end)).is_file()), None)


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _trained_words(told: Any) -> list[str]:
    if not isinstance(told, dict):
        return []
    inner = told.get("civitai")
    words = told.get("trainedWords") or (inner.get("trainedWords") if isinstance(inner, dict) else None)
    return [text for text in words if isinstance(text, str)] if isinstance(words, list) else []


def _tags(text: str) -> list[str]:
    try:
        told = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return []
    if not isinstance(told, dict):
        return []
    counts: dict[str, int] = {}
    folders = []
    for folder, tags in told.items():
        if found := _REPEATS.fullmatch(str(folder)):
            folders.append(found[1].replace("_", " "))
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int):
                counts[str(tag)] = counts.get(str(tag), 0) + count
    most = sorted(counts, key=lambda tag: -counts[tag])
    return [*folders, *most[:1]]
