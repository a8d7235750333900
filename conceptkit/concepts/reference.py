"""A reference photo that a concept carries, and the maps by which a base looks at it: a value, and its bytes.

The maps are those of image cross-attention (ViCo, 2306.00971), under the names of the UNet's blocks,
"up_blocks.1.attentions.0.transformer_blocks.0.to_q". See `attention` for what they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from conceptkit.concepts.delta import Delta
from conceptkit.errors import BadBlob

PREFIX = "reference."
LATENT = f"{PREFIX}latent"
OUT = "to_out"


@dataclass(frozen=True, eq=False)
class Reference:
    """latent (c, h, w): the photo as the base's autoencoder encodes it. maps: added to the base's own."""

    latent: Tensor
    maps: Delta

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", Delta(self.maps))

    def scaled(self, weight: float) -> Reference:
        """The same with `weight` times as much added to the picture."""
        maps = {
            name: factors.scaled(weight) if name.endswith(OUT) else factors
            for name, factors in self.maps.items()
        }
        return replace(self, maps=Delta(maps, self.maps.shared))

    def flat(self) -> Tensor:
        """The latent as a matrix (c, h w) in half precision."""
        return self.latent.detach().to("cpu").half().flatten(1).contiguous()


def reference_of(
    about: Mapping[str, Any],
    maps: Delta,
    take: Callable[[str], Tensor],
) -> Reference:
    """What `flat` and a header that tells the latent's size, [h, w], were made of. Raises BadBlob."""
    height, width = about["size"]
    latent = take(LATENT)
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise BadBlob("The reference photo of this concept has an odd size; import or learn it again")
    if height * width != latent.shape[1] or not maps:
        raise BadBlob("The reference photo of this concept is damaged; import or learn it again")
    return Reference(latent.unflatten(1, (height, width)), maps)
