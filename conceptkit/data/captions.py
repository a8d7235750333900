"""Captions beside photos: `1.txt` for `1.jpg`, in the photo's own folder."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from conceptkit.errors import BadPhotos
from conceptkit.registry.texts import composed

LONGEST = 1000  # characters of a caption; a prompt holds a quarter of that
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""What a text begins with that says how it is written; UTF-32's mark begins with that of UTF-16."""
UNUSED = frozenset(b"\x81\x8d\x8f\x90\x9d")
"""Bytes that stand for nothing in Windows-1252, which is Latin-1 with quotes and dashes in the gap."""


def captions_beside(photos: Sequence[Path]) -> tuple[str | None, ...]:
    """For each photo the text of the .txt file of its name beside it, on one line; () when no photo has one.

    The suffix may be in upper case, and accents of the name composed or not. Texts are UTF-8, UTF-16 or
    UTF-32 with a mark, or else Windows-1252; control characters count as spaces. Raises BadPhotos when a
    caption cannot be read or is too long.
    """
    texts: dict[Path, dict[str, Path]] = {}
    for photo in photos:
        if photo.parent not in texts:
            texts[photo.parent] = _texts(photo.parent)
    files = [texts[photo.parent].get(composed(photo.stem)) for photo in photos]
    found = tuple((_text(file) or None) if file else None for file in files)
    return found if any(found) else ()


def _texts(folder: Path) -> dict[str, Path]:
    """The text files of a folder by their stems; of 1.TXT and 1.txt the latter."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".txt" and file.is_file())
    except OSError:
        return {}  # photos in it are known by name; that it cannot be listed is no fault of theirs
    return {composed(file.stem): file for file in files}


def _text(file: Path) -> str:
    try:
        text = _decoded(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BadPhotos(f"{file} cannot be read as a caption; save it as text in UTF-8.") from error
    plain = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    text = " ".join(plain.split())
    if len(text) > LONGEST:
        raise BadPhotos(f"{file} has {len(text)} characters, too many for a caption; keep to {LONGEST}.")
    return text


def _decoded(data: bytes) -> str:
    """The text in the bytes. Raises ValueError where they are no text."""
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding)
    if b"\0" in data:
        raise ValueError("bytes of value 0 are in no text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252" if not UNUSED & set(data) else "latin-1")
