"""A pipeline with concepts on it is not saved: half of it would be the base's, and half the concepts'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from conceptkit.base.architectures import denoiser_of
from conceptkit.base.text_features import encoders
from conceptkit.errors import ConceptError
from conceptkit.inference.method_override import override

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def refuse_saving(pipe: DiffusionPipeline, names: Sequence[str]) -> Callable[[], None]:
    """`save_pretrained` of the pipeline, its UNet and its text encoders is a ConceptError; the way back."""
    whose = " and ".join(names)

    def refused(*_: Any, **__: Any) -> None:
        raise ConceptError(
            f"This pipeline carries {whose}, so what would be saved is neither the base nor the concepts; "
            "detach first, and use conceptkit's export for the concepts"
        )

    with ExitStack() as undo:
        for thing in (pipe, denoiser_of(pipe), *(encoder for _, encoder in encoders(pipe))):
            undo.callback(override(thing, "save_pretrained", refused))
        return undo.pop_all().close
