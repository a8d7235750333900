"""The layers of attached concepts: wrapped around the maps once, they get the tensors of one concept after
the other, as long as the concepts change the same maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from conceptkit.base.module_walk import submodule
from conceptkit.concepts.delta import Delta
from conceptkit.tuners.inject import ADAPTER, exchange, install_on, uninstall
from conceptkit.tuners.kv_delta import KVDeltaLinear

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Layers = dict[str, KVDeltaLinear]


class InstalledDelta:
    """The delta of attached concepts on the parts of a pipeline, and off again."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self._pipe = pipe
        self._parts: list[tuple[nn.Module, Layers]] = []

    def put(self, delta: Delta) -> list[tuple[nn.Module, Layers]]:
        """Put a delta on in the place of the last one: each part that it changes, with its layers by name.

        Raises what `install` raises; then nothing is on the pipeline.
        """
        parts = delta.by_component()
        if self._parts and self._fits(parts):
            for (owner, layers), part in zip(self._parts, parts.values(), strict=True):
                exchange(owner, layers, part)
                for layer in layers.values():
                    layer._disable_adapters = False
            return self._parts
        self.remove()
        self._parts = install_on(self._pipe, delta)
        return self._parts

    def layers_on(self, owner: nn.Module) -> Layers:
        """The layers of one part of the pipeline, by the names of their maps."""
        return next((layers for one, layers in self._parts if one is owner), {})

    def silence(self) -> None:
        """Let the maps be those of the base, with the layers still around them."""
        for _, layers in self._parts:
            for layer in layers.values():
                layer.gates.pop(ADAPTER, None)
                layer.silenced.pop(ADAPTER, None)
                layer._disable_adapters = True

    def remove(self) -> None:
        """Take the layers off; a second call does nothing."""
        parts, self._parts = self._parts, []
        for owner, _ in parts:
            uninstall(owner, ADAPTER)

    def _fits(self, parts: dict[str, Delta]) -> bool:
        """Whether the layers are those that `install` would make for a delta, and nobody else's too."""
        if len(parts) != len(self._parts):
            return False
        for (owner, layers), (place, part) in zip(self._parts, parts.items(), strict=True):
            if getattr(self._pipe, place, None) is not owner or part.keys() != layers.keys():
                return False
            if ADAPTER not in getattr(owner, "peft_config", {}):
                return False
            for name, layer in layers.items():
                alone = layer.scaling.keys() == {ADAPTER} and not layer.merged
                if not alone or submodule(owner, name) is not layer or part[name].shape != layer.map_shape:
                    return False
        return True
