"""How a base that comes by its name is loaded; checked before torch is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from conceptkit.errors import BadRecipe

DTYPES = ("fp32", "bf16", "fp16")
QUANTIZATIONS = ("bnb-8bit", "bnb-4bit", "torchao-int8")
OFFLOADS = ("model", "group")


@dataclass(frozen=True)
class LoadOptions:
    """The precision of a base, and where its parts are.

    dtype: "fp32", "bf16" or "fp16". quantization: of the denoiser's maps that read no text, a row of
    QUANTIZATIONS; None: none. offload: parts wait on the CPU until they are used, whole ones ("model") or
    layer by layer ("group"); None: all parts stay on the device.

    Raises BadRecipe for a value that is none of these.
    """

    dtype: str = "fp32"
    quantization: str | None = None
    offload: str | None = None

    def __post_init__(self) -> None:
        choices = {"dtype": DTYPES, "quantization": (None, *QUANTIZATIONS), "offload": (None, *OFFLOADS)}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                shown = ", ".join(str(one) for one in known if one)
                raise BadRecipe(f"{name} = {value!r} is unknown; choose one of {shown}")

    @property
    def given(self) -> dict[str, str]:
        """What differs from the usual, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(LoadOptions, name)}

    def check_unused(self, base: str) -> None:
        """Raises BadRecipe where something was asked for of a base that is loaded already."""
        for name, value in self.given.items():
            raise BadRecipe(
                f"{name} = {value} is for a base that comes by its name, and {base} is loaded already; "
                "leave it out, or give it to load"
            )

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple[LoadOptions, dict[str, Any]]:
        """The options that are about loading, and the others."""
        names = {each.name for each in fields(cls)}
        own = {name: value for name, value in options.items() if name in names and value is not None}
        return cls(**own), {name: value for name, value in options.items() if name not in names}


AS_USUAL = LoadOptions()
