"""Concepts in one frame: the base says where things stand, each concept what its own looks like, there alone.

The base draws the prompt with class nouns in place of names, from the same noise; where it puts each noun
becomes masks (`layout_masks`). Then the picture is drawn: in its mask each concept's keys, values and LoRA
act on the prompt that names it alone, everything else is what the base predicted for the class nouns, cell
by cell. So regions are those of FreeFuse (2510.23515) and LoRAShop (2505.23758), and outside of them the
picture is the base's own. How nouns are found and concepts kept in their masks is a matter of the denoiser:
see `ConfinementKind`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from conceptkit.base.architectures import architecture_of
from conceptkit.base.text_features import encoders, spelt_out
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.gates import RankGate, rank_gates, reads_text
from conceptkit.inference.confined_maps import Factor, gate_layer, of_words
from conceptkit.inference.denoiser_call import DenoiserCall, Result, take_calls
from conceptkit.inference.drawing_stage import Stage
from conceptkit.inference.layer_check import layers_of
from conceptkit.inference.prompt_scene import with_concept
from conceptkit.inference.token_owners import TokenOwners, UNetCall, both_halves

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PROMPTS = tuple(f"{kind}prompt{n}" for kind in ("", "negative_") for n in ("", "_2", "_3"))
SAID = PROMPTS[:3]


class ConfinementKind(Protocol):
    """How a denoiser is watched while it lays out, and what it computes while concepts are drawn.

    whole: whether layouts are drawn to their end.
    """

    whole: bool

    def beside(self, gates: Sequence[RankGate]) -> Factor:
        """How far maps of the denoiser act that read no text; gates: whose their ranks are."""

    def lay_out(self, stage: Stage, encoded: Sequence[Any], encode: Callable[..., Any]) -> None:
        """A layout reads `encoded`. encode(change): the same with `change(text, k)` in the place of each text
        of prompt k, and what it said."""

    def draw(self, stage: Stage, encoded: Sequence[Any], variants: Mapping[str, Sequence[Any]]) -> None:
        """A drawing reads `encoded`, and in each concept's part its variant."""

    def install(self, denoiser: nn.Module, stage_of: Callable[[], Stage | None]) -> Callable[[], None]:
        """Whatever is needed beside the calls themselves; gives the way back."""

    def step(self, stage: Stage, call: DenoiserCall) -> Result:
        """What a call of the denoiser in a stage gives."""

    def part(
        self, stage: Stage, name: str, call: Mapping[str, Any]
    ) -> tuple[Tensor, UNetCall | None, Callable[[int], Tensor]]:
        """See `Confinement.part`."""


class Confinement:
    """On one pipeline: during a drawing in stages, says what each map and each call computes.

    isolated: whether the prompt that a part of the picture reads names its concept alone.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        concept: Concept,
        reading: TokenOwners | None,
        kind: ConfinementKind,
        isolated: bool = True,
    ) -> None:
        self._isolated, self.kind = isolated, kind
        self._pipe, self._words, self._reading = pipe, concept.words, reading
        self._gates = rank_gates(concept)
        self._here = threading.local()  # one drawing in each thread

    @property
    def stage(self) -> Stage | None:
        """Of this thread's drawing; None outside of one, and while the denoiser runs for somebody else."""
        return getattr(self._here, "stage", None)

    @contextmanager
    def staged(self, stage: Stage | None) -> Iterator[None]:
        """Whatever this thread draws inside of the block is in that stage."""
        before, self._here.stage = self.stage, stage
        try:
            yield
        finally:
            self._here.stage = before

    # What prompts say

    def encode(
        self, encode: Callable[..., Any], bound: Mapping[str, Any], stage: Stage, negative: bool = False
    ) -> tuple[Any, ...]:
        """The features of a drawing's prompts with class nouns, by the pipeline's own `encode`; notes what
        each concept's part of the picture reads.

        negative: whether these are negative prompts, which have a call of their own.
        """
        given = {name: value for name, value in bound.items() if name != "self"}
        if given.get("clean_caption"):  # which takes tokens for markup
            given["clean_caption"] = False
        plain = {n: self._each(v, self._with) for n, v in given.items() if n in PROMPTS and v is not None}
        stage.part = None
        encoded: tuple[Any, ...] = encode(**{**given, **plain})
        halves = architecture_of(self._pipe).halves(encoded)
        if self._reading:
            self._reading.note(halves, both_halves(plain, halves))
        if negative:
            return encoded
        more = {n: v for n, v in given.items() if not n.startswith("negative_prompt")}
        if "do_classifier_free_guidance" in inspect.signature(encode).parameters:
            more["do_classifier_free_guidance"] = False

        def again(change: Callable[[str, int], str]) -> tuple[Any, list[str]]:
            said = {n: self._each(v, change) for n, v in given.items() if n in SAID and v}
            return encode(**{**more, **said}), _listed(said["prompt"])

        if stage.layout is None:
            self.kind.lay_out(stage, encoded, again)
        else:
            self.kind.draw(stage, encoded, {name: self._variant(stage, name, again) for name in stage.names})
        return encoded

    def _variant(self, stage: Stage, name: str, encode: Callable[..., Any]) -> tuple[Any, ...]:
        """What a concept's part reads."""
        said = (name,) if self._isolated else stage.names
        with stage.of_part(name):
            encoded, told = encode(lambda text, _: self._with(text, 0, *said))
        hidden = architecture_of(self._pipe).halves(encoded)[0]
        if self._reading and hidden is not None:
            self._reading.note_more(hidden, told)
        found: tuple[Any, ...] = encoded
        return found

    def _with(self, text: str, _: int = 0, *names: str) -> str:
        return with_concept(text, self._words, names)

    def _each(self, value: Any, change: Callable[[str, int], str]) -> Any:
        if isinstance(value, str):
            return written(self._pipe, change(value, 0))
        return written(self._pipe, [change(text, k) for k, text in enumerate(value)])

    # What the denoiser computes

    def install(self, denoiser: nn.Module) -> Callable[[], None]:
        """Listen to the denoiser and the maps that concepts change; gives the way back."""

        def take(call: DenoiserCall) -> Any:
            stage = self.stage
            return call.run() if stage is None or stage.plain is None else self.kind.step(stage, call)

        undo = [take_calls(denoiser, take), self.kind.install(denoiser, lambda: self.stage)]
        beside = self.kind.beside(self._gates)
        for owner in (denoiser, *(encoder for _, encoder in encoders(self._pipe))):
            for path, layer in layers_of(owner).items():
                text = owner is not denoiser or reads_text(path)
                undo.append(gate_layer(layer, lambda: self.stage, of_words if text else beside))

        def take_off() -> None:
            for step in reversed(undo):
                step()

        return take_off

    def part(
        self, name: str, call: Mapping[str, Any]
    ) -> tuple[Tensor, UNetCall | None, Callable[[int], Tensor]] | None:
        """In a call of the denoiser that draws concepts into a layout: what a concept's part reads (B, T, d),
        whose words those are, and from a number of cells where it is (P, cells); None in all others."""
        stage = self.stage
        if stage is None or stage.layout is None or stage.calls < stage.first or name not in stage.names:
            return None
        return self.kind.part(stage, name, call)

    def replayed(self) -> bool:
        """Whether the call of the denoiser that is under way computes nothing of the concepts."""
        stage = self.stage
        return stage is not None and (
            stage.layout is None or stage.calls <= stage.first or stage.skips(stage.calls - 1)
        )


def written(pipe: DiffusionPipeline, text: str | list[str] | None) -> str | list[str] | None:
    """Prompts with all vectors of tokens, where the pipeline itself does not write them out."""
    if text is None or hasattr(pipe, "maybe_convert_prompt"):
        return text
    said = spelt_out(pipe, encoders(pipe)[0][0], [text] if isinstance(text, str) else text)
    return said[0] if isinstance(text, str) else said


def _listed(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)
