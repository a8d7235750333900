"""A method of another package: a rare word, and values of cross-attention on the UNet's way up.

Its pyproject.toml says where it is:

    [project.entry-points."conceptkit.methods"]
    values-only = "values_only"
"""

from dataclasses import dataclass

from conceptkit.errors import BadRecipe
from conceptkit.learn.methods.base import Adapter
from conceptkit.learn.methods.table import register_method
from conceptkit.learn.target_modules import UNET, TargetMaps
from conceptkit.learn.train_config import TrainConfig


@dataclass(frozen=True)
class ValuesConfig(TrainConfig):
    """blocks: of the UNet that learn, the last of its way up."""

    blocks: int = 1


class Values(Adapter):
    """A delta on the values of the last blocks."""

    name = "values"
    split_by_rows = True

    def check_recipe(self, recipe: TrainConfig) -> None:
        """At least one block learns."""
        if recipe.blocks < 1:
            raise BadRecipe(f"blocks = {recipe.blocks} leaves nothing to learn; give 1 or more")

    def target_modules(self, base, recipe: TrainConfig) -> dict[str, TargetMaps]:
        """Values of the last blocks."""
        last = tuple(f"up_blocks.{k}." for k in range(len(base.unet.up_blocks))[-recipe.blocks :])
        maps = {
            name: module
            for name, module in base.unet.named_modules()
            if name.startswith(last) and name.endswith("attn2.to_v")
        }
        return {UNET: TargetMaps(maps, recipe.rank)}


register_method(
    "values-only",
    Values(),
    ValuesConfig("values-only", adapter="values", token_init="rare", token_train_steps=0, rank=2),
    families={"storybook": ValuesConfig("values-only", adapter="values", token_init="rare", rank=4)},
)
