"""KEYED, a PEFT tuner: a delta whose down factor all maps share.

It is for programs that learn with PEFT: `add` learns the same with KV_DELTA layers that share a frozen down.
"""

from dataclasses import dataclass
from typing import ClassVar

from conceptkit.errors import BadRecipe
from conceptkit.tuners.kv_delta import ConceptPeftType, KVDeltaConfig, KVDeltaLinear, KVDeltaModel


@dataclass
class KeyedConfig(KVDeltaConfig):
    """r: number of keys s, at least 1. `inject.share_down` sets the keys (s, d); only values learn."""

    r: int = 1
    freeze_down: bool = True

    of_type: ClassVar[ConceptPeftType] = ConceptPeftType.KEYED

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 1 or not self.freeze_down:
            given = f"r = {self.r}, freeze_down = {self.freeze_down}"
            raise BadRecipe(f"A keyed delta has keys that stand still, not {given}; use KV_DELTA instead")


class KeyedLinear(KVDeltaLinear):
    """y = W x + scaling (values (keys x)), with values (o, s) that learn and keys (s, d) that do not."""

    adapter_layer_names = ("keyed_values", "keyed_keys")
    up_name, down_name = adapter_layer_names


class KeyedModel(KVDeltaModel):
    """Puts KeyedLinear layers into a model."""

    prefix = "keyed_"
    tuner_layer_cls = KeyedLinear
