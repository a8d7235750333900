"""Concepts in one frame: the base says where things stand, each concept what its own looks like, there alone.

The base draws the prompt with class nouns in place of names, from the same noise; attention to the nouns
becomes masks (`layout_masks`). Then the picture is drawn: in its mask each concept's keys, values and LoRA
act on the prompt that names it alone, everything else is what the base predicted for the class nouns, cell
by cell. So regions are those of FreeFuse (2510.23515) and LoRAShop (2505.23758), and outside of them the
picture is the base's own.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from conceptkit.base.text_features import encoders, spell
from conceptkit.concepts.concept import Concept
from conceptkit.concepts.gates import rank_gates, reads_text
from conceptkit.errors import ConceptError
from conceptkit.inference.attention_masks import cells_inside, hidden_words, level
from conceptkit.inference.confined_maps import gate_layer, of_cells, of_words
from conceptkit.inference.drawing_stage import Stage, repeated
from conceptkit.inference.layer_check import layers_of
from conceptkit.inference.layout_attention import AttentionKind, Watch, watch_hooks
from conceptkit.inference.method_override import override
from conceptkit.inference.prompt_scene import with_concept
from conceptkit.inference.token_owners import TokenOwners, UNetCall, both_halves

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PROMPTS = tuple(f"{kind}prompt{n}" for kind in ("", "negative_") for n in ("", "_2", "_3"))
SAID = PROMPTS[:3]


class Confinement:
    """On one pipeline: during a drawing in stages, says what each map, attention and call computes.

    given: masks (G, G) of the concepts whose place the user has said. isolated: whether the prompt that a
    part of the picture reads names its concept alone.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        concept: Concept,
        reading: TokenOwners | None,
        kind: AttentionKind,
        given: Mapping[str, np.ndarray],
        isolated: bool = True,
    ) -> None:
        self._isolated = isolated
        self._given = {name: torch.from_numpy(cells).float() for name, cells in given.items()}
        self._pipe, self._words, self._reading, self._kind = pipe, concept.words, reading, kind
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

    def encode(self, encode: Callable[..., Any], bound: Mapping[str, Any], stage: Stage) -> tuple[Any, ...]:
        """The features of a drawing's prompts with class nouns, by the pipeline's own `encode`; notes what
        each concept's part of the picture reads."""
        given = {name: value for name, value in bound.items() if name != "self"}
        plain = {n: _each(v, self._with) for n, v in given.items() if n in PROMPTS and v is not None}
        stage.part = None
        encoded: tuple[Any, ...] = encode(**{**given, **plain})
        stage.plain = encoded[0]
        if self._reading:
            self._reading.note(encoded[:2], both_halves(plain, encoded))
        if stage.layout is None:
            stage.watch = Watch(self._nouns(stage), self._kind)
            return encoded
        more = {n: v for n, v in given.items() if not n.startswith("negative_prompt")}
        for name in stage.names:
            said = (name,) if self._isolated else stage.names
            told = {n: _each(v, self._with, *said) for n, v in given.items() if n in SAID and v}
            stage.part = name
            features = encode(**{**more, **told, "do_classifier_free_guidance": False})[0]
            stage.part, stage.variants[name] = None, features
            if self._reading:
                self._reading.note_more(features, _listed(told["prompt"]))
        return encoded

    def _nouns(self, stage: Stage) -> Tensor:
        """Which positions of each picture's prompt are which thing's noun: (P, T, N)."""
        assert stage.plain is not None
        most = max(len(scene.things) for scene in stage.scenes)
        own = torch.zeros(len(stage.scenes), stage.plain.shape[1], most)
        for s, scene in enumerate(stage.scenes):
            for i, thing in enumerate(scene.things):
                before, so_far = (self._with(scene.plain[:end]) for end in (thing.start, thing.end))
                begin, end = (1 + len(spell(self._pipe, text)[0]) for text in (before, so_far))
                own[s, begin:end, i] = 1
        return own.repeat_interleave(stage.pictures // len(own), dim=0)

    def _with(self, text: str, *names: str) -> str:
        return with_concept(text, self._words, names)

    # What the denoiser computes

    def install(self, denoiser: nn.Module) -> Callable[[], None]:
        """Listen to the denoiser, its attention and the maps that concepts change; gives the way back."""
        original = denoiser.forward
        (*parameters,) = inspect.signature(type(denoiser).forward).parameters.values()
        accepted = inspect.Signature(parameters[1:])

        def forward(*args: Any, **kwargs: Any) -> Any:
            stage = self.stage
            if stage is None:
                return original(*args, **kwargs)
            call = accepted.bind(*args, **kwargs).arguments
            return self._step(stage, call, functools.partial(original, *args, **kwargs))

        undo = [
            override(denoiser, "forward", functools.wraps(original)(forward)),
            watch_hooks(denoiser, self._kind, self._before, self._after),
        ]
        cells = of_cells(self._gates)
        for owner in (denoiser, *(encoder for _, encoder in encoders(self._pipe))):
            for path, layer in layers_of(owner).items():
                text = owner is not denoiser or reads_text(path)
                factor = of_words if text else cells
                undo.append(gate_layer(layer, lambda: self.stage, factor))

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
        stage.read(call["sample"], call["encoder_hidden_states"])
        features, scene = stage.features(name, self._reading)
        return features, scene, lambda cells: stage.cells(cells)[:, stage.names.index(name)]

    def replayed(self) -> bool:
        """Whether the call of the denoiser that is under way computes nothing of the concepts."""
        stage = self.stage
        return stage is not None and (
            stage.layout is None or stage.calls <= stage.first or stage.skips(stage.calls - 1)
        )

    def _step(self, stage: Stage, call: dict[str, Any], run: Callable[[], Any]) -> Any:
        """One call of the denoiser in a stage."""
        sample, number, layout = call["sample"], stage.calls, stage.layout
        if stage.plain is None:
            return run()
        stage.begin(sample, call["encoder_hidden_states"])
        if layout is None:
            result = run()
            stage.predictions.append(result[0].detach())
            if stage.look:
                stage.look(stage)
            return result
        if number >= len(layout.predictions):
            return run()
        base = layout.predictions[number].to(sample)
        if base.shape[0] != sample.shape[0] or base.shape[2:] != sample.shape[2:]:
            raise ConceptError(
                "The pipeline calls its denoiser in another way than when it drew the layout; leave "
                "callbacks out that change the guidance, or attach with confine=False"
            )
        if number < stage.first:
            return (base,) if call.get("return_dict") is False else _packed(base)
        drawn = stage.carried(number, call["timestep"], self._pipe.scheduler)
        if drawn is None:
            drawn = run()[0]
            stage.keep(drawn, sample, call["timestep"])
        assert stage.masks is not None
        inside = repeated(stage.masks.sum(dim=1, keepdim=True).clamp(max=1), len(base))
        blended = base + inside * (drawn - base)
        return (blended,) if call.get("return_dict") is False else _packed(blended)

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """In a layout: watch, and show the nouns of things with a place of their own there alone."""
        stage = self.stage
        if stage is None or stage.watch is None or stage.rows is None:
            return None
        queries = args[0] if args else kwargs["hidden_states"]
        first = [int((stage.rows == p).nonzero()[0]) for p in range(stage.pictures)]
        rows = torch.tensor(first, device=queries.device)
        stage.watch.look(module, args, kwargs, rows, len(queries))
        if not any(name in self._given for name in stage.names):
            return None
        size = level(stage.watch.size, queries.shape[1])
        own = torch.zeros(len(queries), *stage.watch.own.shape[1:])
        inside = torch.ones(len(queries), own.shape[2], queries.shape[1], dtype=torch.bool)
        for b, at in enumerate(stage.rows.tolist()):
            if at < 0:
                continue
            own[b] = stage.watch.own[at]
            for i, thing in enumerate(stage.scene(at).things):
                if thing.name in self._given:
                    inside[b, i] = cells_inside(self._given[thing.name][None], size).flatten()
        return args, hidden_words(kwargs, own.to(queries.device), inside.to(queries.device), queries)

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """In each concept's mask, what the cells see in the prompt that names it."""
        stage = self.stage
        if stage is None or stage.layout is None or stage.part is not None or stage.masks is None:
            return None
        inside = repeated(stage.cells(output.shape[1]), len(output)).unsqueeze(3).to(output)
        blended = output * (1 - inside.sum(dim=1).clamp(max=1))
        for i, name in enumerate(stage.names):
            features, scene = stage.features(name, self._reading)
            stage.part = name
            try:
                with self._reading.reads(scene) if self._reading and scene else nullcontext():
                    own = self._kind.reading(module, args, kwargs, features)
            finally:
                stage.part = None
            blended = blended + own * inside[:, i]
        return blended


def _listed(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _each(value: Any, change: Callable[..., str], *more: str) -> Any:
    if isinstance(value, str):
        return change(value, *more)
    return [change(text, *more) for text in value]


def _packed(sample: Tensor) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    return UNet2DConditionOutput(sample=sample)
