"""`fuse_qkv_projections` of diffusers: attention has other maps then, and the old ones no effect."""

from collections.abc import Sequence

from torch import nn

from conceptkit.base.module_walk import submodule
from conceptkit.errors import ConceptError

PROCESSOR = "FusedAttnProcessor"


def check_unfused(unet: nn.Module, maps: Sequence[str], what_they_are: str) -> None:
    """Raises ConceptError when `fuse_qkv_projections` has put others in the place of the maps.

    what_they_are: how the sentence goes on, as in "which my_dog changes".
    """
    for path in maps:
        parent = submodule(unet, path.rpartition(".")[0])
        if type(getattr(parent, "processor", None)).__name__.startswith(PROCESSOR):
            raise ConceptError(
                f"fuse_qkv_projections() has put another map in the place of {path}, {what_they_are}; "
                "call unfuse_qkv_projections() first"
            )
