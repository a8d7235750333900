"""PNG files that carry their prompt, seed, concepts and versions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from conceptkit.errors import ConceptError

METADATA_KEY = "conceptkit"


def save_png(picture: Image.Image, path: Path | str, /, **metadata: Any) -> Path:
    """Write a PNG whole or not at all, with JSON metadata, each value also as a text that other apps show."""
    path = Path(path)
    info = PngInfo()
    for key, value in metadata.items():
        info.add_itxt(
            key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        )
    if metadata:
        info.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False, sort_keys=True, default=str))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        picture.save(part, format="PNG", pnginfo=info)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read_metadata(path: Path | str) -> dict[str, Any]:
    """What `save_png` was given; the plain text chunks of another program's PNG; {} when there are none."""
    try:
        with Image.open(path) as image:
            chunks = dict(getattr(image, "text", {}))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConceptError(f"{path} cannot be read as a picture; name a PNG.") from error
    try:
        return dict(json.loads(chunks[METADATA_KEY]))
    except (KeyError, ValueError, TypeError):
        return {key: str(value) for key, value in chunks.items()}
