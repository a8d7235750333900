"""The maps of a loaded base under every name that files of other programs have for them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from conceptkit.base.pipeline import Base
from conceptkit.formats.module_keys import ANY, DENOISER, flat
from conceptkit.formats.module_names import NAMES, UNET, family_by_maps, sdxl

PARTS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True, eq=False)
class ModuleIndex:
    """family: of the base. maps: name in a delta -> linear map or convolution.

    by_key: (part, module) of a file -> its maps, in the order in which they are joined.
    """

    family: str
    maps: dict[str, nn.Linear | nn.Conv2d]
    by_key: dict[tuple[str, str], tuple[str, ...]]

    def find(self, part: str, module: str) -> tuple[str, ...]:
        """The maps of a module; () where the base has none of that name."""
        places = (part,) if part != ANY else (DENOISER, *PARTS)
        return next((self.by_key[place, module] for place in places if (place, module) in self.by_key), ())

    def weight(self, name: str) -> Tensor:
        """The base's own weight of a map, in float32 on the CPU."""
        return self.maps[name].weight.detach().float().cpu()

    def kernel(self, name: str) -> tuple[int, int] | None:
        """The size of a convolution's kernel, None of a linear map."""
        shape = tuple(self.maps[name].weight.shape)
        return (shape[2], shape[3]) if len(shape) == 4 else None


def index_of(base: Base) -> ModuleIndex:
    """All linear maps and convolutions of the denoiser and the text encoders."""
    maps: dict[str, nn.Linear | nn.Conv2d] = {}
    keys: dict[tuple[str, str], dict[int, str]] = {}
    own = _plain_maps(base.unet)
    family = family_by_maps(list(own), base.width, len(base.encoders))
    for name, module in own.items():
        maps[name] = module
        keys[DENOISER, flat(name)] = {0: name}
        for naming in dict.fromkeys((NAMES[family].denoiser, sdxl)):
            if (place := naming(name)) is not None:
                keys.setdefault((DENOISER, place.key.removeprefix(UNET)), {})[place.part] = name
    for part, (_, encoder) in zip(PARTS, base.encoders, strict=False):
        for name, module in _plain_maps(encoder).items():
            maps[f"{part}.{name}"] = module
            keys[part, flat(name)] = {0: f"{part}.{name}"}
    ordered = {key: tuple(held[i] for i in sorted(held)) for key, held in keys.items()}
    return ModuleIndex(family, maps, ordered)


def _plain_maps(owner: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Name without tuners -> the map below them."""
    return {
        name.replace(".base_layer", ""): module
        for name, module in owner.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name and ".kv_delta_" not in name
    }
