"""Reading the golden files: concepts and merges by name, pictures, exports."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open

from tests.golden import api
from tests.golden.cases import Merging, Picture

DATA = Path(__file__).parents[1] / "data" / "v1"


@dataclass(frozen=True)
class Golden:
    """The folder of the golden files, and what golden.json says of them."""

    root: Path
    told: dict[str, Any]

    @classmethod
    def open(cls, root: Path = DATA) -> "Golden":
        """What `tests.golden.write` wrote."""
        return cls(root, json.loads((root / "golden.json").read_text()))

    def path(self, name: str) -> Path:
        """The file of "concepts/case/name" or "merges/name"."""
        return self.root / f"{name}.safetensors"

    def concept(self, name: str) -> Any:
        """The concept in that file."""
        return api.read(self.path(name).read_bytes())

    def picture(self, name: str) -> Image.Image:
        """A stored picture."""
        return Image.open(self.root / "drawn" / f"{name}.png")

    def merged(self, merging: Merging, home: Path) -> tuple[Any, dict[str, torch.Tensor]]:
        """A merge made now of stored concepts, and the numbers of its report; `home` keeps what it needs."""
        for source in merging.beside:
            api.receive(home, self.path(f"concepts/{source}"))
        parts = [self.concept(f"concepts/{source}") for source in merging.sources]
        return api.merge(parts, merging.how, merging.weights, merging.base, home)

    def drawn(self, picture: Picture, home: Path) -> Image.Image:
        """A picture drawn now with stored concepts; `home` keeps what it needs."""
        return api.draw(picture, [self.concept(source) for source in picture.sources], home)


def export_tensors(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An export's tensors by "file: key", and the ranks and alphas that readers scale the LoRA by."""
    tensors: dict[str, torch.Tensor] = {}
    settings: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        held = safetensors.torch.load_file(file)
        tensors |= {f"{file.name}: {key}": held[key].float() for key in sorted(held)}
        with safe_open(file, "pt") as opened:
            settings |= json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    return tensors, settings
