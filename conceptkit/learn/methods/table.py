"""The table of methods. Other packages add theirs by an entry point, which is read when it is asked for:

    [project.entry-points."conceptkit.methods"]
    my_method = "my_package.my_method"

The module calls `register_method`, or the entry point is a `Method` itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from conceptkit import extension_table
from conceptkit.concepts.recipe_fields import todays_value
from conceptkit.errors import BadRecipe
from conceptkit.extension_table import ExtensionTable

if TYPE_CHECKING:
    from conceptkit.learn.methods.base import Adapter, Method
    from conceptkit.learn.train_config import TrainConfig

GROUP = "conceptkit.methods"
BUILT_IN = {
    "custom": "custom",
    "custom-diffusion": "custom_diffusion",
    "dreambooth": "dreambooth",
    "dreambooth-full": "dreambooth",
    "pivotal-tuning": "pivotal_tuning",
    "textual-inversion": "textual_inversion",
    "vico": "vico",
}
"""The module beside this one that registers each; read when it is asked for, as it imports torch."""


class MethodTable(ExtensionTable["Method"]):
    """Methods by name, those of this package first."""

    def __getitem__(self, name: str) -> Method:
        self._own(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._own(name)
        return super().__contains__(name)

    def names(self) -> list[str]:
        """The names alone, which loads no method."""
        others = [point.name for point in extension_table.entry_points(group=self.group)]
        return list(dict.fromkeys([*BUILT_IN, *self._rows, *others]))

    def own(self) -> list[Method]:
        """The methods of this package."""
        return [self[name] for name in BUILT_IN]

    def _own(self, name: object) -> None:
        if isinstance(name, str) and name in BUILT_IN and name not in self._rows:
            import_module(f"{__package__}.{BUILT_IN[name]}")

    def _load(self) -> None:
        for name in BUILT_IN:
            self._own(name)
        super()._load()


METHODS = MethodTable("method", GROUP)


def register_method(
    name: str, adapter: Adapter, config: TrainConfig, families: Mapping[str, TrainConfig] | None = None
) -> Method:
    """Add a method: its adapter, its recipe, and other recipes for families of bases.

    families: the one under "stable-diffusion" is also for bases of families that are not named.
    Raises ConceptError when there is another method of that name.
    """
    from conceptkit.learn.methods.base import Method

    return METHODS.register(name, Method(name, adapter, {**(families or {}), "": config}))


def find_method(name: str) -> Method:
    """The method of that name. Raises BadRecipe that lists the known ones."""
    if name not in METHODS:
        raise BadRecipe(f"There is no method {name!r}; choose one of {', '.join(METHODS.names())}")
    return METHODS[name]


def adapters() -> Iterator[Method]:
    """Of each adapter the first method that learns there, whose numbers suit it; own ones first."""
    seen: set[str] = set()
    for methods in (METHODS.own, lambda: list(METHODS.values())):
        for method in methods():
            if method.adapter.name not in seen:
                seen.add(method.adapter.name)
                yield method


def method_of_adapter(name: str) -> Method:
    """The method whose numbers suit an adapter. Raises BadRecipe where there is none of that name."""
    known = []
    for method in adapters():
        if method.adapter.name == name:
            return method
        known.append(method.adapter.name)
    today = todays_value("adapter", name)
    if today != name:
        raise BadRecipe(f"The adapter {name} is called {today} now; use that name")
    raise BadRecipe(f"There is no adapter {name!r}; choose one of {', '.join(known)}")


def adapter_of(recipe: TrainConfig) -> Adapter:
    """Where a recipe learns."""
    return method_of_adapter(recipe.adapter).adapter
