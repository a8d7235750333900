"""PNG files that carry their prompt, seed, concepts and versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from conceptkit.errors import ConceptError
from conceptkit.registry.atomic_files import write_whole

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
    write_whole(path, lambda out: picture.save(out, format="PNG", pnginfo=info), private=False)
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
